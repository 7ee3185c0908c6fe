"""Why a replica waits or is gone, as `status` shows it, on the real cluster: also while others
serve.
"""

from __future__ import annotations

import getpass
import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from domyn_swarm.backends.slurm.printed import start_time
from domyn_swarm.backends.slurm.reasons import counted
from domyn_swarm.config import dump_yaml
from domyn_swarm.services.doctor import examine
from domyn_swarm.services.swarms import SwarmService
from domyn_swarm.swarm.snapshot import ReplicaSnapshot
from slurm.cluster import SlurmCluster
from slurm.swarms import Up, config, endpoint_job, jobs_of, node_of, taking_nothing, task, until


def row(index: int) -> ReplicaSnapshot:
    return SwarmService().status("demo").replicas[index]


def explained(detail: str) -> bool:
    """Whether what is said of the swarm names a reason for what waits, if it says anything."""
    return detail == "" or "2 replicas run, 1 job waits (" in detail


def test_each_replica_says_why_it_waits_or_is_gone(up: Up, slurm: SlurmCluster) -> None:
    with taking_nothing(slurm, "n[2-4]"):
        service = up(replicas=3, gpus_per_replica=2, min_ready=2)  # two fit on a node of four GPUs
        until(lambda: "waits in the queue (" in str(row(2).reason))
        assert (row(2).state, row(2).serving) == ("pending", False)
        seen = service.status("demo")
        assert (seen.observed, seen.replicas_ready) == ("ready", 2)
        until(lambda: explained(service.status("demo").detail))  # Slurm says so a moment later
    until(lambda: row(2).serving)

    slurm.run("scancel", task(slurm, 2))
    until(lambda: "its job was cancelled" in str(row(2).reason))
    assert "`domyn-swarm scale demo 3`" in str(row(2).reason)
    assert (row(2).state, row(2).stale) == ("exited", False)
    service.scale("demo", 3)
    until(lambda: row(2).serving)

    held = task(slurm, 1)
    slurm.run("scontrol", "requeuehold", held)
    until(lambda: f"`scontrol release {held}`" in str(row(1).reason))
    assert row(1).state == "pending"
    slurm.run("scontrol", "release", held)
    until(lambda: row(1).serving)


def test_a_replica_that_was_preempted_says_so_while_it_waits(up: Up, slurm: SlurmCluster) -> None:
    up(replicas=2, gpus_per_replica=4, min_ready=1)  # a node each
    taken = {node_of(slurm, task(slurm, index)): index for index in range(2)}
    node, index = next(
        one for one in taken.items() if one[0] != node_of(slurm, endpoint_job(slurm))
    )
    wanted = ["--partition=urgent", f"--nodelist={node}", "--exclusive", "--time=5"]
    with taking_nothing(slurm, ",".join(one for one in slurm.node_names if one not in taken)):
        slurm.run("sbatch", *wanted, "--wrap=exec sleep 600")
        until(lambda: str(row(index).reason).startswith("was preempted, waits in the queue ("))
        assert row(index).state == "pending"
        assert row(1 - index).serving
    until(lambda: row(index).serving)


@pytest.fixture
def reserved_soon(slurm: SlurmCluster) -> Iterator[None]:
    """All nodes are others' from in a quarter of an hour on."""
    wanted = ["StartTime=now+15minutes", "Duration=600", "Nodes=ALL", "Users=daemon"]
    slurm.run("scontrol", "create", "reservation", "ReservationName=others", *wanted)
    yield
    slurm.run("scontrol", "delete", "ReservationName=others")


@pytest.mark.usefixtures("reserved_soon")
def test_what_may_have_less_time_starts_before_others_need_its_nodes(
    up: Up, slurm: SlurmCluster
) -> None:
    shorter = {"time_limit": {"min": "00:06:00", "max": "01:00:00"}, "partition": ["main", "whole"]}
    service = up(replicas=1, backend={**shorter, "drain_before_end_s": 60})
    assert service.status("demo").replicas_ready == 1
    for job in (endpoint_job(slurm), task(slurm, 0)):
        shown = slurm.run("scontrol", "--oneliner", "show", "job", job).stdout
        limit = re.search(r"\bTimeLimit=00:(\d+):", shown)
        assert "TimeMin=00:06:00" in shown
        assert limit is not None
        assert 6 <= int(limit[1]) <= 15


def test_gpus_are_not_held_for_an_endpoint_that_waits(up: Up, slurm: SlurmCluster) -> None:
    with taking_nothing(slurm, ",".join(slurm.node_names)):
        service = up(wait=False)
        waiting = endpoint_job(slurm)
        slurm.run("scontrol", "hold", waiting)
    until(lambda: "replicas start after the endpoint" in service.status("demo").detail)
    assert set(jobs_of(slurm).values()) == {"PENDING"}
    assert f"`scontrol release {waiting}`" in service.status("demo").detail
    slurm.run("scontrol", "release", waiting)
    until(lambda: service.status("demo").replicas_ready == 2)


def test_what_would_run_into_a_maintenance_waits_until_it_is_over_and_says_so(
    up: Up, slurm: SlurmCluster, tmp_path: Path
) -> None:
    over = datetime.now() + timedelta(minutes=70)
    made = [
        "starttime=now+10minutes",
        "duration=60",
        "flags=maint",
        "nodes=ALL",
        f"users={getpass.getuser()}",
    ]
    done = slurm.run("scontrol", "create", "reservation", "reservationname=works", *made)
    assert done.returncode == 0, done.stderr
    try:
        (path := tmp_path / "swarm.yaml").write_text(dump_yaml(config()))
        told = [one.detail for one in examine(path).checks if one.name == "rehearsal"]
        starts = [datetime.fromisoformat(str(start_time(one))) for one in told]
        assert len(starts) == 2
        assert min(starts) >= over - timedelta(minutes=1)
        service = up(wait=False)  # for an hour
        until(lambda: "Reserved for maintenance" in service.status("demo").detail)
        assert service.status("demo").observed == "queued"
    finally:
        done = slurm.run("scontrol", "delete", "reservation=works")
        assert done.returncode == 0, done.stderr
    until(lambda: service.status("demo").replicas_ready == 2)


def test_all_that_are_held_are_named() -> None:
    """Who releases one of them only would wait on."""
    held = [("74_16", "JobHeldUser"), ("74_17", "JobHeldUser"), ("71", "Resources")]
    assert counted(held) == (
        "3 jobs wait (JobHeldUser: it is held, `scontrol release 74_16,74_17` lets it run; "
        "Resources)"
    )
