"""The installed command itself: what it imports, how it fails, what goes to which stream."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from command_line import CommandLine, write_sim_config
from command_tree import commands
from patience import limit_s

HEAVY = {
    *("aiohttp", "alembic", "asyncio", "fsspec", "grpc", "jinja2", "msgspec", "numpy", "pandas"),
    *("polars", "psutil", "pyarrow", "pydantic", "pyreqwest", "rich", "smg", "sqlalchemy"),
    *("uvloop", "xllamacpp", "yaml"),
}


def run(*args: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """`domyn-swarm` with these arguments, as a shell would run it."""
    program = Path(sys.executable).with_name("domyn-swarm")
    return subprocess.run(
        [program, *args],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=limit_s(),
        check=False,
        env={**os.environ, **env},
    )


@pytest.mark.parametrize("args", [["--help"], ["job", "--help"], ["swarm", "--help"]])
def test_help_imports_nothing_heavy(args: list[str]) -> None:
    program = (
        "import sys, json\n"
        "from domyn_swarm.cli.app import main\n"
        f"sys.argv = ['domyn-swarm', *{args!r}]\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "sys.stderr.write(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=limit_s(),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stderr)) & HEAVY == set()


def test_every_command_helps_with_an_example() -> None:
    from typer.testing import CliRunner

    from domyn_swarm.cli.app import app

    assert len(commands()) > 12
    for command in commands():
        shown = CliRunner().invoke(app, [*command, "--help"])
        assert shown.exit_code == 0, command
        assert re.search(r"Example: .*domyn-swarm", " ".join(shown.output.split())), command
        assert re.findall(r"<[a-z\[\]| ]+>|\w\.\.\.|\{\w+\}|\[\[", shown.output) == [], command
    for group in ([], ["job"], ["swarm"], ["checkpoints"]):
        assert "..." not in CliRunner().invoke(app, [*group, "--help"]).output.split("Options:")[1]


def test_a_group_says_of_each_command_what_the_command_says_of_itself() -> None:
    from domyn_swarm.cli.app import COMMANDS
    from domyn_swarm.cli.command_tree import Entry, LazyGroup, build

    def compared(entry: Entry) -> None:
        command = build(entry.name, entry.place)
        written = command.help.split("\n\n")[0]
        assert " ".join(written.split()) == " ".join(entry.purpose.split("\n\n")[0].split())
        if isinstance(command, LazyGroup):
            for below in command.entries.values():
                compared(below)

    for entry in COMMANDS:
        compared(entry)


def test_version_is_the_package_s() -> None:
    from domyn_swarm import __version__

    assert run("version", "--short").stdout == f"{__version__}\n"
    assert run("--version").stdout == f"{__version__}\n"
    told = json.loads(run("version", "--json").stdout)
    assert told["schema_version"] == 1
    assert told["domyn-swarm"] == __version__


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["up"], "--config"),
        (["up", "a.yaml", "-c", "b.yaml"], "once"),
        (["plan"], "--config"),
        (["doctor", "a.yaml", "-c", "b.yaml"], "once"),
        (["config", "check"], "--config"),
        (["nonsense"], "nonsense"),
        (["down"], "name the swarms"),
        (["down", "--all"], "needs -y"),
        (["doctor", "--timeout", "5"], "add --rehearse"),
        (["down", "x", "--all", "-y"], "name the swarms"),
        (["status", "--json", "--yaml"], "exclude each other"),
        (["endpoint", "x", "--show-key"], "--env"),
        (["logs", "x", "--endpoint", "--watchdog"], "exclude each other"),
        (["job", "status"], "name the job"),
        (["usage", "--since", "10:00"], "7d, 12h or 90m"),  # minutes, hours, or a time of day?
        (["usage", "--since", "5"], "7d, 12h or 90m"),
        (["usage", "--since", "2999-01-01"], "has not come yet"),
        (["job", "status", "a", "--external-id", "b"], "name the job"),
        (["job", "wait", "--handle-json", "/nowhere/handle.json"], "cannot be read"),
        (["job", "submit", "--input", "a"], "--output"),
        (["job", "submit", "--input", "a", "--output", "b", "--max-concurrency", "0"], "auto"),
        (["job", "submit", "--input", "a", "--output", "b", "--job-kwargs", "[1]"], "JSON object"),
        (
            ["job", "submit", "--input", "a", "--output", "b", "--job-kwargs", "{"],
            "--job-kwargs '{' is not JSON",
        ),
        (["job", "submit", "--input", "a", "--output", "b", "--output-mode", "x"], "append"),
        (
            ["job", "submit", "--input", "a", "--output", "b", "--name", "n", "--endpoint", "u"],
            "exclude each other",
        ),
    ],
)
def test_usage_errors_exit_2_and_name_what_is_wrong(
    args: list[str], said: str, swarm_home: Path
) -> None:
    done = CommandLine(swarm_home)(*args)
    assert done.returncode == 2, done
    assert said in " ".join(done.stderr.split())
    assert done.stderr.startswith("error: ")  # as every other error is
    assert "--help` shows what it takes" in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert not swarm_home.exists()


@pytest.mark.parametrize("words", [["up", "--set"], ["up", "--nonsense"], ["scale", "x", "y"]])
def test_what_is_wrong_with_a_commands_words_names_its_own_help(
    words: list[str], swarm_home: Path
) -> None:
    done = CommandLine(swarm_home)(*words)
    assert f" {words[0]} --help` shows what it takes." in done.stderr


def test_what_has_nothing_to_do_says_so(swarm_home: Path) -> None:
    cli = CommandLine(swarm_home)
    assert "No swarm is live: nothing was stopped." in cli("down", "--all", "-y").stderr
    assert "There is nothing to forget." in cli("db", "prune", "-y").stderr


@pytest.mark.parametrize("words", [[], ["up"], ["job"], ["job", "list"]])
def test_h_is_short_for_help(words: list[str], swarm_home: Path) -> None:
    cli = CommandLine(swarm_home)
    assert cli.ok(*words, "-h") == cli.ok(*words, "--help")


def test_a_file_and_a_name_may_be_given_the_short_way(
    swarm_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli = CommandLine(swarm_home)
    file = write_sim_config(tmp_path, "any").path
    planned = cli.json("plan", "-c", file, "--name", "mine")
    assert planned["plan"]["name"] == "mine"
    assert cli.json("plan", file, "-n", "mine") == planned
    assert cli.json("up", file, "-n", "mine", "--dry-run") == planned
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cli.json("plan", "--config=~/any.yaml", "-n", "mine") == planned
    assert cli.json("config", "check", file) == cli.json("config", "check", "-c", file)
    assert "rehearsal" in cli("doctor", file).stdout  # only where there is a file
    for words in (["down"], ["status"], ["wait"], ["endpoint"], ["logs"], ["swarm", "describe"]):
        none = cli(*words, file)
        assert (none.returncode, none.stdout) == (3, "")
        assert "no swarm named 'any'" in none.stderr


def test_a_handle_that_is_none_is_refused() -> None:
    done = run("job", "status", "--handle-json", "-", stdin='{"job_id": 1}')
    assert done.returncode == 2
    assert "not a job's handle" in done.stderr


def test_an_error_is_one_message_and_a_hint(tmp_path: Path) -> None:
    done = run("up", "-c", str(tmp_path / "nowhere.yaml"))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert "nowhere.yaml" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_engine_that_is_not_installed_is_refused_before_anything_is_recorded(
    tmp_path: Path, swarm_home: Path
) -> None:
    if find_spec("vllm") is not None:
        pytest.skip("VLLM IS INSTALLED")
    file = tmp_path / "swarm.yaml"
    file.write_text("model: m\nname: demo\nengine: vllm\ngpus_per_replica: 0\nbackend: local\n")
    cli = CommandLine(swarm_home)
    done = cli("up", "-c", file)
    assert done.returncode == 2, done
    assert "vllm is not installed in this environment" in done.stderr
    assert "pip install vllm" in done.stderr
    assert cli("status", "demo").returncode == 3
    assert cli("plan", "-c", file).returncode == 0  # it may be meant for another machine


def test_an_unknown_swarm_or_job_exits_3(swarm_home: Path) -> None:
    cli = CommandLine(swarm_home)
    for args in (["status", "ghost"], ["endpoint", "ghost"], ["logs", "ghost"], ["down", "ghost"]):
        done = cli(*args)
        assert done.returncode == 3, done
        assert "ghost" in done.stderr
        assert done.stdout == ""
    done = run("job", "status", "ghost")
    assert done.returncode == 3
    assert "ghost" in done.stderr


def test_an_empty_home_lists_nothing_in_every_format() -> None:
    assert json.loads(run("swarm", "list", "--json").stdout) == {"schema_version": 1, "swarms": []}
    jobs = {"schema_version": 1, "jobs": [], "left_out": 0}
    assert json.loads(run("job", "list", "-o", "json").stdout) == jobs
    assert run("swarm", "list", "--yaml").stdout == "schema_version: 1\nswarms: []\n"
    assert run("swarm", "list").returncode == 0


def test_a_bug_shows_its_traceback_and_exits_70(tmp_path: Path) -> None:
    broken = (
        "import sys\n"
        "from domyn_swarm.cli import app\n"
        "def fail(): raise RuntimeError('unforeseen')\n"
        "app.app.command('fail')(fail)\n"
        "sys.argv = ['domyn-swarm', 'fail']\n"
        "app.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", broken],
        capture_output=True,
        text=True,
        timeout=limit_s(),
        check=False,
    )
    assert done.returncode == 70
    assert "RuntimeError: unforeseen" in done.stderr
    assert "Traceback" in done.stderr


def test_the_two_names_are_one_program() -> None:
    short = Path(sys.executable).with_name("dswarm")
    done = subprocess.run([short, "--help"], capture_output=True, text=True, check=True)
    assert re.sub(r"\bdswarm\b", "domyn-swarm", done.stdout) == run("--help").stdout
