"""From nothing to a configuration, through the installed command."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from pathlib import Path
from typing import Any

import pytest

from command_line import PROGRAM, CommandLine
from patience import limit_s
from schemas import fits


@pytest.fixture
def cli(swarm_home: Path) -> CommandLine:
    return CommandLine(swarm_home)


@pytest.mark.parametrize("platform", ["local", "slurm", "lepton"])
def test_a_new_configuration_is_valid_as_it_is(
    cli: CommandLine, tmp_path: Path, platform: str
) -> None:
    path = tmp_path / "swarm.yaml"
    written = cli.installed("init", "config", "--platform", platform, "--output", path)
    assert (written.returncode, written.stdout) == (0, f"{path}\n"), written.stderr
    assert cli.ok("init", "config", "--platform", platform) == path.read_text()
    report = cli.json("config", "check", path) if platform != "lepton" else None
    if report is not None:
        sources = {one["key"]: one["source"] for one in report["settings"]}
        assert report["schema_version"] == 1
        assert sources["model"].startswith(f"{path}:")
        assert sources["replicas"] == "built-in"
    assert not cli.home.exists()


def test_flags_reach_the_file_which_is_not_replaced_unasked(
    cli: CommandLine, tmp_path: Path
) -> None:
    path = tmp_path / "swarm.yaml"
    flags = ["--platform", "slurm", "--model", "my/model: 1", "--name", "mine", "-r", 3]
    more = ["--partition", "boost", "--account", "me", "--time-limit", "90", "--set", "port=9000"]
    cli.ok("init", "config", *flags, *more, "--output", path)
    plan = cli.json("plan", "-c", path)["plan"]
    assert (plan["name"], plan["model"], plan["port_from"]) == ("mine", "my/model: 1", 9000)
    assert plan["layout"]["replicas"] == 3
    options = plan["backend_options"]
    assert [options[key] for key in ("partition", "account", "time_limit")] == ["boost", "me", "90"]

    before = path.read_text()
    refused = cli("init", "config", "--output", path)
    assert refused.returncode == 2
    assert "--force" in refused.stderr
    assert path.read_text() == before
    cli.ok("init", "config", "--output", path, "--force")
    assert "engine: llamacpp" in path.read_text()


def test_flags_that_cannot_be_are_all_told_and_write_nothing(
    cli: CommandLine, tmp_path: Path
) -> None:
    path = tmp_path / "swarm.yaml"
    done = cli("init", "config", "--partition", "p", "--engine", "vlm", "--output", path)
    assert done.returncode == 2
    assert "--partition: backend.partition: unknown key" in done.stderr
    assert "--engine: must be 'vllm'" in done.stderr
    assert not path.exists()
    nowhere = cli("init", "config", "--output", tmp_path / "no" / "x.yaml")
    assert (nowhere.returncode, nowhere.stdout) == (2, "")
    assert "cannot be written" in nowhere.stderr


FLAGS = {
    "--engine": ("engine", "sglang"),
    "--image": ("image", "/images/a b.sif"),
    "--gpus-per-node": ("gpus_per_node", 8),
    "--partition": ("backend.partition", "boost"),
    "--account": ("backend.account", "me"),
    "--qos": ("backend.qos", "long"),
    "--time-limit": ("backend.time_limit", "12:00:00"),
    "--container": ("backend.container", "singularity"),
    "--venv-path": ("backend.venv_path", "/venv"),
    "--mail-user": ("backend.mail_user", "me@example.org"),
    "--hf-home": ("env.HF_HOME", "/models"),
    "--home-directory": ("home_directory", "/shared/swarms"),
}


def test_every_default_takes_effect_and_tells_where_it_comes_from(
    cli: CommandLine, tmp_path: Path
) -> None:
    swarm = tmp_path / "swarm.yaml"
    swarm.write_text("model: m\nname: s\nbackend: {type: slurm, partition: own}\n")
    before = cli.json("plan", "-c", swarm)
    words = [str(word) for flag, (_, value) in FLAGS.items() for word in (flag, value)]
    written = cli.json(
        "init", "defaults", "--platform", "slurm", *words, "--set", "watchdog.max_restarts=7"
    )
    fits(written, "init defaults")
    defaults = Path(written["path"])
    assert defaults == cli.home / "defaults.yaml"
    assert defaults.stat().st_mode & 0o777 == 0o600

    swarm.write_text("model: m\nname: s\n")
    report = cli.json("config", "check", swarm)
    settings = {one["key"]: one for one in report["settings"]}
    for key, value in [*FLAGS.values(), ("watchdog.max_restarts", 7)]:
        assert settings[key]["value"] == value
        assert settings[key]["source"].startswith(f"{defaults}:")
    after = cli.json("plan", "-c", swarm)
    plan, options = after["plan"], after["plan"]["backend_options"]
    assert (plan["engine"], plan["image"]) == ("sglang", "/images/a b.sif")
    assert plan["layout"]["gpus_per_node"] == 8 != before["plan"]["layout"]["gpus_per_node"]
    assert plan["env"]["HF_HOME"] == "/models"
    assert plan["home_directory"] == "/shared/swarms"
    assert options["container"] == "singularity"
    scripts = "\n".join(after["scripts"].values())
    for text in ("boost", "me", "long", "12:00:00", "me@example.org", "/venv"):
        assert text in scripts, text
    shown = cli.ok("config", "check", swarm, "--provenance")
    assert f"{defaults}:" in next(line for line in shown.splitlines() if "backend.qos" in line)

    refused = cli("init", "defaults", "--platform", "local")
    assert refused.returncode == 2
    assert "--force" in refused.stderr
    cli.ok("init", "defaults", "--platform", "local", "--engine", "sim", "--force")
    assert cli.json("plan", "-c", swarm)["plan"]["engine"] == "sim"


def test_a_person_is_asked_and_a_wrong_answer_is_asked_again(
    cli: CommandLine, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "mine" / "site.yaml"
    answers = ["laptop", "local", "vlm", "sim", "/models", "", "many", "0", "9100"]
    primary, secondary = pty.openpty()
    with subprocess.Popen(
        [PROGRAM, "init", "defaults"],
        stdin=secondary,
        stdout=subprocess.PIPE,
        stderr=secondary,
        text=True,
        env={**cli.environment, "DOMYN_SWARM_DEFAULTS": str(elsewhere)},
    ) as asked:
        os.close(secondary)
        os.write(primary, ("\n".join(answers) + "\n").encode())
        stdout = asked.communicate(timeout=limit_s())[0]
        said = os.read(primary, 65536).decode()
    os.close(primary)
    assert asked.returncode == 0, said
    assert stdout == f"{elsewhere}\n"
    for words in (
        "Answer one of local | slurm | lepton",
        "must be 'vllm'",
        "must be a whole number",
    ):
        assert words in said
    swarm = tmp_path / "swarm.yaml"
    swarm.write_text("model: m\nname: s\n")
    environment = {**cli.environment, "DOMYN_SWARM_DEFAULTS": str(elsewhere)}
    plan = json.loads(
        subprocess.run(
            [PROGRAM, "plan", "-c", str(swarm), "--json"],
            capture_output=True,
            check=True,
            env=environment,
        ).stdout
    )["plan"]
    assert (plan["engine"], plan["port_from"], plan["env"]) == ("sim", 9100, {"HF_HOME": "/models"})
    assert plan["layout"]["gpus_per_node"] == 0


def test_without_a_terminal_nobody_is_asked(cli: CommandLine) -> None:
    done = cli("init", "defaults")
    assert done.returncode == 2
    assert "--platform" in done.stderr
    wrong = cli("init", "defaults", "--time-limit", "soon", "--platform", "slurm")
    assert wrong.returncode == 2
    assert "--time-limit: backend.time_limit: write a time like" in wrong.stderr
    assert not cli.home.exists()


def test_check_tells_every_mistake_with_file_line_and_key(cli: CommandLine, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("model: m\nreplcas: 2\nbackend:\n  type: slurm\n  time_limit: soon\n")
    done = cli("config", "check", path, "--json", "--set", "port=high")
    assert done.returncode == 2
    report: dict[str, Any] = json.loads(done.stdout)
    assert (report["schema_version"], report["valid"], report["settings"]) == (1, False, [])
    assert [(one["source"], one["line"], one["key"]) for one in report["mistakes"]] == [
        (str(path), 2, "replcas"),
        (str(path), 3, "backend.partition"),
        (str(path), 5, "backend.time_limit"),
        ("--set port", None, "port"),
    ]
    assert report["mistakes"][0]["message"] == "unknown key; did you mean replicas?"
    table = cli("config", "check", path)
    assert table.returncode == 2
    assert f"{path}:2" in table.stdout
    assert "3 mistakes" in table.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: [", "not YAML"),
        ("model: m\nengine: command\nbackend: local\n", "argv"),
        ("model: /nowhere.gguf\nengine: llamacpp\nbackend: local\n", "/nowhere.gguf"),
    ],
)
def test_check_looks_behind_the_keys(
    cli: CommandLine, tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    done = cli("config", "check", path, "--json")
    assert done.returncode == 2
    (mistake,) = json.loads(done.stdout)["mistakes"]
    assert mistake["source"] == str(path)
    assert said in mistake["message"]


def test_the_schema_is_printed_and_written(cli: CommandLine, tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    assert cli.ok("config", "schema", "--output", path) == f"{path}\n"
    schema = json.loads(cli.installed("config", "schema").stdout)
    assert schema == json.loads(path.read_text())
    assert schema["properties"]["replicas"]["description"]
    assert "json-schema.org" in schema["$schema"]
