"""What Slurm does not bring back comes back all the same: one case of each kind, on the real
cluster. All that may follow from each is in virtual time: see the tests of its parts.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil

from domyn_swarm.backends.slurm.recovery import LostEndpoint
from domyn_swarm.backends.slurm.slurm_platform import SlurmPlatform
from domyn_swarm.model import JobStatus
from domyn_swarm.state import SwarmStore
from slurm.cluster import SlurmCluster
from slurm.swarms import (
    ENDPOINT,
    ENDPOINT_TASK,
    REPLICA_TASK,
    HeldJob,
    Up,
    all_answered,
    endpoint_job,
    jobs_of,
    lost,
    node_of,
    observed,
    program,
    program_now,
    ready,
    submit_held,
    swarm_paths,
    taking_nothing,
    task,
    until,
    warn,
)


def test_what_is_killed_comes_back_and_no_row_fails(
    up: Up, slurm: SlurmCluster, tmp_path: Path
) -> None:
    up(replicas=3, gpus_per_replica=2, min_ready=3, backend={"packing": "node"})
    paths, before = swarm_paths(), set(jobs_of(slurm))
    job = submit_held(tmp_path, 400)

    # A watchdog: it starts again, with its GPUs, beside its neighbour.
    neighbour, killed = watchdogs(task(slurm, 0))
    os.kill(killed, signal.SIGKILL)
    until(lambda: paths.engine_log(1).read_text().count("CUDA_VISIBLE_DEVICES=2,3") == 2)
    until(lambda: ready() == 3)
    assert neighbour in (left := watchdogs(task(slurm, 0)))
    assert killed not in left
    job.goes_on()

    # The endpoint: it starts again in its job.
    os.kill(program(ENDPOINT, endpoint_job(slurm)).pid, signal.SIGKILL)
    until(lambda: "the endpoint failed (code 137)" in paths.endpoint_log.read_text())
    job.goes_on()
    until(lambda: ready() == 3)
    assert set(jobs_of(slurm)) == before

    # A whole task: 20 s later the endpoint program submits its successor, here at once.
    first = task(slurm, 1)
    at_work = paths.at_work(1)
    until(lambda: at_work.exists() and at_work.read_text() == first)
    os.kill(program(REPLICA_TASK, first).pid, signal.SIGKILL)
    until(lambda: first not in jobs_of(slurm))
    SlurmPlatform(paths, SwarmStore.open().swarm("demo").tag, killed_s=0).replace_lost(range(3))
    assert task(slurm, 1) != first
    assert paths.killed(1).read_text() == first
    job.goes_on()
    until(lambda: ready() == 3)

    # The endpoint's job: a replica's task submits its successor, after 20 s, here at once.
    first = endpoint_job(slurm)
    os.kill(program(ENDPOINT_TASK, first).pid, signal.SIGKILL)
    until(lambda: first not in jobs_of(slurm) and not program_now(ENDPOINT, first))
    LostEndpoint(paths, gone_s=0).look()
    assert endpoint_job(slurm) not in ("", first)
    job.goes_on()
    until(lambda: observed() == "ready")
    finished(job)


def watchdogs(job: str) -> list[int]:
    """The task's, in the order in which they began."""
    found = program_now(REPLICA_TASK, job)
    children = found.children() if found else []
    return [one.pid for one in sorted(children, key=psutil.Process.create_time)]


def finished(job: HeldJob) -> None:
    done = job.release()
    assert (done.status, done.rows_failed) == (JobStatus.SUCCEEDED, 0), done.message
    assert all_answered(job.folder, job.rows)


def test_a_site_without_requeueing_gets_successors(
    up: Up, slurm: SlurmCluster, tmp_path: Path
) -> None:
    service = up(min_ready=2, gpus_per_replica=4, backend={"requeue": False})
    seen: dict[str, str] = {}

    def replaced(place: int, gone: str) -> bool:
        now = service.status("demo")
        seen[now.observed] = now.detail
        return any(
            one.endswith(f"_{place}") and one != gone and state == "RUNNING"
            for one, state in jobs_of(slurm).items()
        )

    # A replica near its time limit.
    job = submit_held(tmp_path / "replicas", 300)
    spared = node_of(slurm, endpoint_job(slurm))
    drained, gone = sorted(range(2), key=lambda index: node_of(slurm, task(slurm, index)) != spared)
    first = task(slurm, drained)
    warn(slurm, first)
    until(lambda: first not in jobs_of(slurm))
    until(lambda: replaced(drained, first) and ready() == 2)
    job.goes_on()

    # A replica whose node is lost; the endpoint is elsewhere.
    seen.clear()
    first = task(slurm, gone)
    with lost(slurm, node_of(slurm, first)):
        until(lambda: first not in jobs_of(slurm))
        until(lambda: replaced(gone, first) and ready() == 2)
    assert "failed" not in seen, seen
    job.goes_on()

    # The endpoint near its time limit.
    first = endpoint_job(slurm)
    warn(slurm, first)
    until(lambda: endpoint_job(slurm) not in ("", first))
    until(lambda: observed() == "ready")
    assert len(service.status("demo").replicas) == 2
    finished(job)

    # The endpoint whose node is lost: the replicas submit one successor, not one of each.
    first = endpoint_job(slurm)
    node = node_of(slurm, first)
    with taking_nothing(slurm, node):
        job = submit_held(tmp_path / "endpoint")  # elsewhere
    with lost(slurm, node):
        until(lambda: endpoint_job(slurm) not in ("", first))
        job.goes_on()
        finished(job)
        until(lambda: ready() == 2)
        assert sum("_" not in one for one in jobs_of(slurm)) == 1
        now = service.status("demo")
        assert (now.observed, now.replicas_ready) == ("ready", 2), now.detail

    # What an admin cancels does not come back.
    for one in (task(slurm, 1), endpoint_job(slurm)):
        slurm.run("scancel", one)
        until(lambda one=one: one not in jobs_of(slurm))
    left, paths = list(jobs_of(slurm)), swarm_paths()
    assert len(left) == 1
    LostEndpoint(paths, gone_s=0).look()
    SlurmPlatform(paths, SwarmStore.open().swarm("demo").tag).replace_lost(range(2))
    assert list(jobs_of(slurm)) == left
