"""Bringing swarms up and down: what is recorded, what is left behind."""

from __future__ import annotations

import os
import pty
import random
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from command_line import PROGRAM, CommandLine, write_sim_config
from patience import limit_s, until

SLOW_START = ("--set", f"engine_options.start_s={limit_s()}")


def test_a_generated_name_a_taken_port_and_the_name_again(cli: CommandLine, tmp_path: Path) -> None:
    unnamed = write_sim_config(tmp_path, None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        name = cli.ok("up", "-c", unnamed.path, "--no-wait", "--set", f"port={port}").strip()
        assert name
        seen = until(
            lambda: (one := cli.json("status"))["observed"] == "ready" and one  # the only live one
        )
    assert seen["name"] == name
    assert not seen["replicas"][0]["url"].endswith(f":{port}")
    assert cli.processes() != []

    assert cli.ok("down", name) == f"{name} stopped\n"
    assert cli.processes() == []
    assert cli.ok("up", "-c", unnamed.path, "--name", name) == f"{name}\n"


def test_a_dry_run_starts_and_records_nothing(cli: CommandLine, tmp_path: Path) -> None:
    sim = write_sim_config(tmp_path)
    flags = ("-r", "3", "--set", "min_ready=2")
    report = cli.json("up", "-c", sim.path, "--dry-run", *flags)
    plan = report["plan"]
    assert cli.json("plan", "-c", sim.path, *flags) == report
    assert (plan["name"], plan["layout"]["replicas"], plan["min_ready"]) == ("demo", 3, 2)
    assert "demo" in cli.ok("up", "-c", sim.path, "--dry-run")
    assert not cli.home.exists()
    assert cli.processes() == []


def test_up_killed_at_any_moment_leaves_nothing_unrecorded(
    cli: CommandLine, tmp_path: Path
) -> None:
    """Moment by moment: swarm/test_crashes."""
    up = cli.start("up", "-c", write_sim_config(tmp_path, replicas=2).path)
    time.sleep(random.uniform(0.3, 1.5))  # whichever moment it is, the test holds
    up.kill()
    up.communicate()
    listed = [one["name"] for one in cli.json("swarm", "list")["swarms"]]
    assert listed == ["demo"] or cli.processes() == []
    cli.ok("down", "--all", "-y")
    assert cli.processes() == []


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_interrupting_up_says_what_keeps_running(
    cli: CommandLine, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    usual = signal.signal(number, signal.SIG_DFL)  # tests under nohup ignore SIGHUP: `up` would too
    up = cli.start("up", "-c", write_sim_config(tmp_path).path, *SLOW_START)
    signal.signal(number, usual)
    until(lambda: [one for one in cli.processes() if one.pid != up.pid])
    up.send_signal(number)
    stdout, said = up.communicate(timeout=limit_s())
    assert up.returncode == code, said
    assert stdout == ""
    assert "domyn-swarm down demo" in said
    assert cli.processes() != []


def test_a_person_who_interrupts_up_may_have_it_stopped(cli: CommandLine, tmp_path: Path) -> None:
    sim = write_sim_config(tmp_path)
    primary, secondary = pty.openpty()
    with subprocess.Popen(
        [PROGRAM, "up", "-c", str(sim.path), *SLOW_START],
        stdin=secondary,
        stdout=subprocess.PIPE,
        stderr=secondary,
        env=cli.environment,
    ) as up:
        os.close(secondary)
        until(lambda: cli.json("swarm", "list", "--no-probe")["swarms"])
        said = b""
        while b"demo:" not in said:  # it waits for the swarm, and says so
            said += os.read(primary, 4096)
        up.send_signal(signal.SIGINT)
        while b"Stop demo" not in said:
            said += os.read(primary, 4096)
        os.write(primary, b"y\n")
        assert up.wait(limit_s()) == 130
        assert up.stdout is not None
        assert up.stdout.read() == b""
    os.close(primary)
    assert cli.processes() == []
