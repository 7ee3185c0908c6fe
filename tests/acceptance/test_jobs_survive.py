"""A finished row is never asked again, whatever dies."""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from command_line import CommandLine, SimConfig, read_rows, wait_for, worker_of

IN_FLIGHT = 4


def submission(source: Path, target: Path, *more: str) -> list[str]:
    return [
        *("job", "submit", "--input", str(source), "--output", str(target)),
        *("--input-column", "prompt", "--max-concurrency", str(IN_FLIGHT), *more),
    ]


def some_rows_done(swarm: CommandLine, job_id: str, wanted: int) -> Callable[[], bool]:
    return lambda: bool(swarm.json("job", "status", job_id)["rows_done"] >= wanted)


def assert_complete(target: Path, count: int) -> None:
    answers = read_rows(target)
    assert [row["id"] for row in answers] == [f"row-{number}" for number in range(count)]
    assert all(row["result"] for row in answers)


def test_a_killed_worker_costs_only_the_rows_in_flight(
    swarm: CommandLine,
    sim_config: Callable[..., SimConfig],
    rows: Callable[[int], Path],
    tmp_path: Path,
) -> None:
    sim = sim_config(replicas=2, latency_s=0.1)
    assert swarm.ok("up", "-c", sim.path) == "demo\n"
    command = submission(rows(120), tmp_path / "out.parquet")
    first = json.loads(swarm.ok(*command, "-d"))
    wait_for(some_rows_done(swarm, first["job_id"], 20))
    worker_of(first).send_signal(signal.SIGKILL)
    assert swarm("job", "wait", first["job_id"], "--json").returncode == 6
    assert swarm.json("job", "status", first["job_id"])["status"] == "failed"
    assert not (tmp_path / "out.parquet").exists()
    done_before = len(sim.asked())
    assert done_before < 120

    again = swarm(*command)

    assert again.returncode == 0, again.stderr
    assert_complete(tmp_path / "out.parquet", 120)
    asked = Counter(sim.asked())
    assert len(asked) == 120
    assert sum(asked.values()) <= 120 + IN_FLIGHT
    swarm.ok("down", "demo")


def test_a_finished_job_sends_no_request(
    swarm: CommandLine,
    sim_config: Callable[..., SimConfig],
    rows: Callable[[int], Path],
    tmp_path: Path,
) -> None:
    sim = sim_config()
    swarm.ok("up", "-c", sim.path)
    command = submission(rows(10), tmp_path / "out.parquet")
    swarm.ok(*command)
    assert len(sim.asked()) == 10
    swarm.ok(*command)
    assert len(sim.asked()) == 10


def test_another_swarm_goes_on_where_the_first_ended(
    swarm: CommandLine,
    sim_config: Callable[..., SimConfig],
    rows: Callable[[int], Path],
    tmp_path: Path,
) -> None:
    first = sim_config("first", latency_s=0.1)
    swarm.ok("up", "-c", first.path)
    command = submission(rows(80), tmp_path / "out.parquet", "--id-column", "id")
    handle = json.loads(swarm.ok(*command, "-d"))
    wait_for(some_rows_done(swarm, handle["job_id"], 10))
    swarm.ok("down", "first")
    assert swarm.json("job", "status", handle["job_id"])["status"] not in ("pending", "running")
    assert 10 <= len(first.asked()) < 80

    second = sim_config("second")
    swarm.ok("up", "-c", second.path)
    swarm.ok(*command)

    assert_complete(tmp_path / "out.parquet", 80)
    asked = Counter(second.asked())
    assert len(asked) == 80
    assert sum(asked.values()) <= 80 + IN_FLIGHT


def test_ctrl_c_stops_the_job_and_the_same_command_goes_on(
    swarm: CommandLine,
    sim_config: Callable[..., SimConfig],
    rows: Callable[[int], Path],
    tmp_path: Path,
) -> None:
    sim = sim_config(latency_s=0.1)
    swarm.ok("up", "-c", sim.path)
    command = submission(rows(60), tmp_path / "out.parquet")
    attached = swarm.start(*command)
    assert attached.stdout is not None
    handle = json.loads(attached.stdout.readline())
    wait_for(some_rows_done(swarm, handle["job_id"], 8))
    attached.send_signal(signal.SIGINT)
    _, said = attached.communicate(timeout=60)
    assert attached.returncode == 130, said
    assert "The same command goes on from there" in said
    assert swarm.json("job", "status", handle["job_id"])["status"] == "cancelled"

    swarm.ok(*command)

    assert_complete(tmp_path / "out.parquet", 60)
    assert max(Counter(sim.asked()).values()) == 1  # those in flight had been finished


def test_a_job_is_found_by_each_of_its_names(
    swarm: CommandLine,
    sim_config: Callable[..., SimConfig],
    rows: Callable[[int], Path],
    tmp_path: Path,
) -> None:
    swarm.ok("up", "-c", sim_config(latency_s=0.2).path)
    command = submission(rows(400), tmp_path / "out.parquet", "--external-id", "nightly", "-d")
    printed = swarm.ok(*command)
    assert printed.count("\n") == 1
    handle: dict[str, Any] = json.loads(printed)
    assert handle["schema_version"] == 1

    def status(*which: str, stdin: str = "") -> str:
        return str(json.loads(swarm.ok("job", "status", *which, "--json", stdin=stdin))["job_id"])

    assert status(handle["job_id"]) == handle["job_id"]
    assert status("--external-id", "nightly") == handle["job_id"]
    assert status("--handle-json", "-", stdin=printed) == handle["job_id"]
    assert [job["job_id"] for job in swarm.json("job", "list")["jobs"]] == [handle["job_id"]]

    late = swarm("job", "wait", "nightly", "--timeout", "0.2")
    assert late.returncode == 6
    assert "has not ended yet" in late.stderr
    swarm.ok("job", "cancel", "nightly")
    assert swarm("job", "wait", "nightly").returncode == 6
    assert swarm.json("job", "status", "nightly")["status"] == "cancelled"
