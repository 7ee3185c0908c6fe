"""What every command really prints fits its promised schema, in JSON and in YAML."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from typer.testing import CliRunner

from command_line import CommandLine, write_sim_config
from domyn_swarm.cli.app import app
from domyn_swarm.paths import SwarmPaths
from patience import until
from schemas import PRINTS, fits

if TYPE_CHECKING:
    from acceptance.conftest import Standing


def arguments(command: str, job_id: str, config: Path) -> list[str]:
    """What a command is asked for about the swarm `demo` and a job of its."""
    about: dict[str, list[str]] = {
        "status": ["demo"],
        "endpoint": ["demo"],
        "plan": ["-c", str(config)],
        "doctor": ["-c", str(config)],
        "config check": [str(config)],
        "checkpoints list": [],
        "job list": ["--name", "demo"],
        "version": [],
        "db upgrade": [],
        "db stamp": [],
        "db prune": [],
        "swarm list": [],
        "swarm describe": ["demo"],
        "wait": ["demo"],
        "usage": ["--swarm", "demo"],
        "rehearse": ["-c", str(config), "--rows", "1000"],
    }
    return [*command.split(), *about.get(command, [job_id])]


CHANGING = {"up", "down", "scale"}
ELSEWHERE = {
    "init defaults",
    "checkpoints rm",
    "pool up",
    "pool status",
    "pool down",
    "job submit --dry-run",
    "job preview",
    "job submit --forecast",
}  # in tests of theirs
READING = sorted(
    command
    for command, record in PRINTS.items()
    if record != "job-handle" and command not in CHANGING | ELSEWHERE
)


@pytest.fixture(scope="module")
def job_id(standing: Standing) -> str:
    """A job that has ended; the handle of its submission fits."""
    job = standing.job("printed", 3)
    handle = json.loads(standing.cli.installed(*job.submission("--name", "demo")).stdout)
    fits(handle, "job submit")
    return str(handle["job_id"])


@pytest.mark.parametrize("command", READING)
def test_a_command_prints_what_it_promises(standing: Standing, job_id: str, command: str) -> None:
    asked = arguments(command, job_id, standing.sim.path)
    done = standing.cli.installed(*asked, "--json")
    assert done.returncode == 0, done.stderr
    fits(json.loads(done.stdout), command)
    told = CliRunner(env={"DOMYN_SWARM_HOME": str(standing.cli.home)})
    as_yaml = told.invoke(app, [*asked, "--yaml"])
    fits(yaml.safe_load(as_yaml.stdout), command)
    assert told.invoke(app, asked).output.strip() not in ("", as_yaml.stdout.strip())


def test_what_a_swarm_goes_through_is_printed_as_promised(cli: CommandLine, tmp_path: Path) -> None:
    config = write_sim_config(tmp_path, "passing")
    fits(cli.json("--log-format", "json", "up", "-c", config.path, "--no-wait"), "up")
    fits(cli.json("status", "passing"), "status")
    fits(cli.json("swarm", "list"), "swarm list")
    until(lambda: cli.json("status", "passing")["observed"] == "ready")
    scaled = cli.installed("scale", "passing", 2, "--json")
    fits(json.loads(scaled.stdout), "scale")
    ended = cli.json("down", "-c", config.path, "-y")  # by its file
    fits(ended, "down")
    assert "stopped" in json.dumps(ended)
    log = SwarmPaths.of(cli.home, "passing").endpoint_log  # it writes as `up` was told to
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    assert lines
    assert all({"at", "level", "logger", "message"} <= set(line) for line in lines)
