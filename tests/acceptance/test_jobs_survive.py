"""A finished row is never asked again, whatever dies."""

from __future__ import annotations

import json
import signal
from collections import Counter
from typing import TYPE_CHECKING, Any

from command_line import rows_done, worker_of, write_sim_config
from patience import limit_s, until

if TYPE_CHECKING:
    from acceptance.conftest import Standing

IN_FLIGHT = 4
ROWS = 40
SLOWLY = ("--name", "demo", "--max-concurrency", str(IN_FLIGHT))


def test_a_killed_worker_costs_only_the_rows_in_flight(standing: Standing) -> None:
    cli, job = standing.cli, standing.job("held kill", ROWS)
    with standing.sim.held():
        first = json.loads(cli.ok(*job.submission(*SLOWLY, "-d")))
        until(lambda: rows_done(first) == 10)
        worker_of(first).send_signal(signal.SIGKILL)
        assert cli("job", "wait", first["job_id"]).returncode == 6
    seen = cli.json("job", "status", first["job_id"])
    assert seen["status"] == "failed"
    assert seen["message"].startswith("it was killed by SIGKILL")
    assert not job.target.exists()
    until(lambda: len(standing.sim.asked("held kill")) == 10 + IN_FLIGHT)

    again = cli(*job.submission(*SLOWLY))

    assert again.returncode == 0, again.stderr
    job.assert_complete()
    asked = Counter(standing.sim.asked("held kill"))
    assert len(asked) == ROWS
    assert sum(asked.values()) <= ROWS + IN_FLIGHT

    before = standing.sim.asked("held kill")
    cli.ok(*job.submission(*SLOWLY))
    assert standing.sim.asked("held kill") == before  # a finished job asks nothing


def test_another_swarm_goes_on_where_the_first_ended(standing: Standing) -> None:
    cli, job = standing.cli, standing.job("held succession", ROWS)
    first = write_sim_config(standing.folder, "first", latency_s=0.05)
    cli.ok("up", "-c", first.path)
    slowly_first = ("--name", "first", *SLOWLY[2:])
    with standing.sim.held():
        handle = json.loads(cli.ok(*job.submission(*slowly_first, "--id-column", "id", "-d")))
        until(lambda: rows_done(handle) == 10)
        cli.ok("down", "first")
    assert cli.json("job", "status", handle["job_id"])["status"] not in ("pending", "running")

    cli.ok(*job.submission(*SLOWLY, "--id-column", "id"))

    job.assert_complete()
    asked = Counter(standing.sim.asked("held succession"))
    assert len(asked) == ROWS
    assert sum(asked.values()) <= ROWS + IN_FLIGHT


def test_ctrl_c_stops_the_job_and_the_same_command_goes_on(standing: Standing) -> None:
    cli, job = standing.cli, standing.job("interrupted", 160)
    attached = cli.start(*job.submission(*SLOWLY))
    assert attached.stdout is not None
    handle = json.loads(attached.stdout.readline())
    until(lambda: rows_done(handle) >= 8)
    attached.send_signal(signal.SIGINT)
    _, said = attached.communicate(timeout=limit_s())
    assert attached.returncode == 130, said
    assert "The same command continues from there" in said
    assert cli.json("job", "status", handle["job_id"])["status"] == "cancelled"
    assert len(standing.sim.asked("interrupted")) < 160

    cli.ok(*job.submission(*SLOWLY))

    job.assert_complete()
    asked = Counter(standing.sim.asked("interrupted"))
    assert set(asked.values()) == {1}  # those in flight had been finished


def test_a_job_is_found_by_each_of_its_names(standing: Standing) -> None:
    cli, job = standing.cli, standing.job("named", 2000)
    printed = cli.ok(*job.submission(*SLOWLY, "--external-id", "nightly", "-d"))
    assert printed.count("\n") == 1
    handle: dict[str, Any] = json.loads(printed)
    assert handle["schema_version"] == 1

    def status(*which: str, stdin: str = "") -> str:
        return str(json.loads(cli.ok("job", "status", *which, "--json", stdin=stdin))["job_id"])

    assert status(handle["job_id"]) == handle["job_id"]
    assert status("--external-id", "nightly") == handle["job_id"]
    assert status("--handle-json", "-", stdin=printed) == handle["job_id"]
    listed = cli.json("job", "list", "--name", "demo")["jobs"]
    assert handle["job_id"] in [one["job_id"] for one in listed]

    late = cli("job", "wait", "nightly", "--timeout", "0.1")
    assert late.returncode == 6
    assert "has not ended yet" in late.stderr
    cli.ok("job", "cancel", "nightly")
    assert cli("job", "wait", "nightly").returncode == 6
    assert cli.json("job", "status", "nightly")["status"] == "cancelled"
