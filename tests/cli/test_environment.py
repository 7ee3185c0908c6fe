"""Each variable of the environment has an effect, also from `.env` in the home, seen from outside.

`DOMYN_SWARM_DEFAULTS` is tried in `test_config_files.py`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from command_line import PROGRAM, CommandLine, write_job, write_sim_config
from patience import limit_s, until


def run(
    cli: CommandLine, *words: object, cwd: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """The installed command with more variables than the home."""
    return subprocess.run(
        [PROGRAM, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=limit_s(),
        check=False,
        cwd=cwd,
        env={**cli.environment, **variables},
    )


@pytest.fixture
def cli(swarm_home: Path, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    for name in ("VLLM_API_KEY", "RAY_ADDRESS", "DOMYN_SWARM_RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    return CommandLine(swarm_home)


def test_the_home_is_where_everything_lies(cli: CommandLine, tmp_path: Path) -> None:
    elsewhere = tmp_path / "else where"
    done = run(cli, "swarm", "list", DOMYN_SWARM_HOME=str(elsewhere))
    assert done.returncode == 0, done.stderr
    assert (elsewhere / "swarm.db").exists()
    assert not cli.home.exists()


LOGS = (
    "import sys\n"
    "from domyn_swarm.cli.app import main\n"
    "from domyn_swarm.logs import get_logger\n"
    "sys.argv = ['domyn-swarm', 'version', '--short']\n"
    "try:\n    main()\n"
    "except SystemExit as end:\n    assert not end.code\n"
    "get_logger('domyn_swarm.test').info('a detail')\n"
)


@pytest.mark.parametrize(("content", "seen"), [("", False), ("DOMYN_SWARM_LOG_LEVEL=info\n", True)])
def test_the_log_level_may_stand_in_the_home(cli: CommandLine, content: str, seen: bool) -> None:
    cli.home.mkdir()
    (cli.home / ".env").write_text(content)
    done = subprocess.run(
        [sys.executable, "-c", LOGS],
        capture_output=True,
        text=True,
        timeout=limit_s(),
        check=True,
        env=cli.environment,
    )
    assert ("a detail" in done.stderr) is seen
    assert "a detail" not in done.stdout


FAILS = """
from domyn_swarm import job

@job(output_schema=["answer"])
async def fails(item, client, model):
    raise ValueError("no luck")
"""


def logged(path: Path) -> list[dict[str, str]]:
    """The lines of a log, each of which has to be JSON."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_how_to_log_reaches_every_program_that_is_started(cli: CommandLine, tmp_path: Path) -> None:
    sim, job = write_sim_config(tmp_path), write_job(tmp_path, "unlucky", 3)
    (tmp_path / "mine.py").write_text(FAILS)

    def logs(*words: object) -> subprocess.CompletedProcess[str]:
        form = ("--log-format", "json")
        return run(cli, *form, *words, cwd=tmp_path, DOMYN_SWARM_LOG_LEVEL="debug")

    try:
        up = logs("up", "-c", sim.path, "--set", "notify.url=http://127.0.0.1:9/")
        assert up.returncode == 0, up.stderr
        done = logs(*job.submission("mine:fails", "--workers", "2"))
        assert done.returncode == 7, done.stderr
        log = Path(cli.json("job", "list")["jobs"][0]["log_path"])
        unheard = "the webhook did not take the event job_ended"  # says the wrapper around it
        until(lambda: unheard in [one["message"] for one in logged(log)])
    finally:
        cli.clean_up()
    rows = [one for one in logged(log) if one["level"] == "debug"]  # of the workers' processes
    assert len(rows) == 3
    assert all("ValueError: no luck" in one["error"] for one in rows)
    endpoint = logged(cli.home / "swarms" / "demo" / "logs" / "endpoint" / "endpoint.log")
    assert "info" in {one["level"] for one in endpoint}


def test_mail_goes_to_who_is_named_unless_the_file_says_otherwise(
    cli: CommandLine, tmp_path: Path
) -> None:
    path = tmp_path / "swarm.yaml"
    path.write_text("model: m\nname: s\nbackend: {type: slurm, partition: p, container: none}\n")

    def mailed(*flags: str, **variables: str) -> list[str]:
        """Whom each script has mailed."""
        planned = run(cli, "plan", "-c", path, "--json", *flags, **variables)
        scripts = json.loads(planned.stdout)["scripts"]
        lines = [line for text in scripts.values() for line in text.splitlines()]
        return [line.partition("--mail-user=")[2] for line in lines if "--mail-user=" in line]

    variable = {"DOMYN_SWARM_MAIL_USER": "me@example.org"}
    assert mailed() == []
    assert mailed(**variable) == ["me@example.org"] * 2  # the replicas' and the endpoint's
    cli.ok("init", "defaults", "--platform", "slurm", "--mail-user", "we@example.org")
    assert mailed(**variable) == ["we@example.org"] * 2
    path.write_text(path.read_text().replace("partition: p", "partition: p, mail_user: a@b.c"))
    assert mailed(**variable) == ["a@b.c"] * 2
    assert mailed("--set", "backend.mail_user=set@b.c", **variable) == ["set@b.c"] * 2


def answer(url: str, key: str) -> int:
    """The status of a request with a key."""
    body = {"model": "sim-model", "messages": [{"role": "user", "content": "?"}]}
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=limit_s()) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_the_clients_key_comes_from_the_home_and_not_from_the_current_folder(
    cli: CommandLine, tmp_path: Path
) -> None:
    cli.home.mkdir(mode=0o700)
    (cli.home / ".env").write_text("VLLM_API_KEY=key-from-the-home\n")
    here = tmp_path / "here"
    here.mkdir()
    (here / ".env").write_text("DOMYN_SWARM_API_TOKEN=key-from-here\n")
    sim = write_sim_config(tmp_path)
    try:
        up = run(cli, "up", "-c", sim.path, cwd=here)
        assert up.returncode == 0, up.stderr
        exports = cli.ok("endpoint", "demo", "--env", "--show-key")
        assert "export OPENAI_API_KEY=key-from-the-home" in exports
        url = cli.json("endpoint", "demo")["url"]
        assert answer(url, "key-from-the-home") == 200
        assert answer(url, "key-from-here") == 401
        cli.ok("down", "demo")
        ours = {"DOMYN_SWARM_API_TOKEN": "ours", "VLLM_API_KEY": "engine's"}
        assert run(cli, "up", "-c", sim.path, "--no-wait", **ours).returncode == 0
        assert (cli.home / "swarms" / "demo" / "secrets" / "api_key").read_text() == "ours"
    finally:
        cli.clean_up()


@pytest.mark.parametrize(
    ("variables", "flags", "address"),
    [
        ({"RAY_ADDRESS": "one:1", "DOMYN_SWARM_RAY_ADDRESS": "two:2"}, [], "two:2"),
        ({"DOMYN_SWARM_RAY_ADDRESS": "two:2"}, ["--ray-address", "three:3"], "three:3"),
    ],
)
def test_a_job_over_ray_is_told_its_cluster_when_it_is_submitted(
    cli: CommandLine, tmp_path: Path, variables: dict[str, str], flags: list[str], address: str
) -> None:
    job = write_job(tmp_path, "ray", 1)
    where = ("--endpoint", "http://127.0.0.1:9", "--model", "m", "--detach")
    try:
        done = run(cli, *job.submission(*where, "--data-backend", "ray", *flags), **variables)
        assert done.returncode == 0, done.stderr
        handle = json.loads(done.stdout)
        spec = json.loads((Path(handle["job_dir"]) / "job.json").read_text())
        assert spec["ray_address"] == address
        cli.ok("job", "cancel", handle["job_id"])
    finally:
        cli.clean_up()
