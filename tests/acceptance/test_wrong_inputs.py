"""One clear message, the right exit code, nothing left behind."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

from command_line import CommandLine, SimConfig


def refused(swarm: CommandLine, code: int, *args: object) -> str:
    """Run what must fail so; its stderr."""
    done = swarm(*args)
    assert done.returncode == code, done.stdout + done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error: ") == 1
    return done.stderr


def test_all_wrong_keys_are_named_with_their_lines(swarm: CommandLine, tmp_path: Path) -> None:
    config = tmp_path / "wrong.yaml"
    config.write_text(
        "name: demo\nmodel: sim-model\nengine: sim\nreplica: 2\nbackend: local\nport: high\n",
        encoding="utf-8",
    )
    said = refused(swarm, 2, "up", "-c", config)
    assert "wrong.yaml:4" in said
    assert "replica" in said
    assert "wrong.yaml:6" in said
    assert "port" in said
    assert swarm.processes() == []
    assert swarm.json("swarm", "list")["swarms"] == []


def test_a_model_that_is_not_there(swarm: CommandLine, tmp_path: Path) -> None:
    config = tmp_path / "missing.yaml"
    model = tmp_path / "nothing.gguf"
    config.write_text(f"name: demo\nmodel: {model}\nengine: llamacpp\nbackend: local\n")
    assert str(model) in refused(swarm, 2, "up", "-c", config)
    assert swarm.processes() == []
    assert swarm.json("swarm", "list")["swarms"] == []


def test_a_port_that_is_taken_is_passed_over(
    swarm: CommandLine, sim_config: Callable[..., SimConfig]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        swarm.ok("up", "-c", sim_config().path, "--set", f"port={port}")
        [replica] = swarm.json("status", "demo")["replicas"]
        assert not replica["url"].endswith(f":{port}")


def test_a_second_up_of_a_live_name(
    swarm: CommandLine, sim_config: Callable[..., SimConfig]
) -> None:
    sim = sim_config()
    swarm.ok("up", "-c", sim.path)
    before = {one.pid for one in swarm.processes()}
    assert "demo" in refused(swarm, 3, "up", "-c", sim.path)
    assert {one.pid for one in swarm.processes()} == before
    assert swarm.json("status", "demo")["observed"] == "ready"


def test_an_unknown_swarm_suggests_the_close_one(
    swarm: CommandLine, sim_config: Callable[..., SimConfig]
) -> None:
    swarm.ok("up", "-c", sim_config().path)
    assert "Did you mean demo?" in refused(swarm, 3, "status", "demu")
    assert "Did you mean demo?" in refused(swarm, 3, "down", "demu")


def test_a_job_that_cannot_be(
    swarm: CommandLine,
    sim_config: Callable[..., SimConfig],
    rows: Callable[[int], Path],
    tmp_path: Path,
) -> None:
    sim = sim_config()
    swarm.ok("up", "-c", sim.path)
    target = tmp_path / "out.parquet"
    submit = ("job", "submit", "--input", rows(3), "--output", target)
    assert "nosuch" in refused(swarm, 2, *submit, "--input-column", "nosuch")
    assert "nowhere.parquet" in refused(
        swarm, 2, "job", "submit", "--input", tmp_path / "nowhere.parquet", "--output", target
    )
    assert "nosuch:Job" in refused(swarm, 2, "job", "submit", "nosuch:Job", *submit[2:])
    assert "ghost" in refused(swarm, 3, *submit, "--name", "ghost", "--input-column", "prompt")
    assert sim.asked() == []
    assert swarm.json("job", "list")["jobs"] == []
    assert not target.exists()


def test_an_engine_that_cannot_run_ends_up_with_its_cause(
    swarm: CommandLine, tmp_path: Path
) -> None:
    config = tmp_path / "broken.yaml"
    config.write_text(
        "name: demo\nmodel: m\nengine: command\nbackend: local\n"
        "engine_options:\n  argv: [/bin/sh, -c, 'echo out of luck {port} >&2; exit 3']\n"
        "watchdog: {restart_policy: never}\n",
        encoding="utf-8",
    )
    said = refused(swarm, 5, "up", "-c", config)
    assert "engine.log" in said
    assert swarm.processes() == []
