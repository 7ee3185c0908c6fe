"""Replicas over several nodes and several replicas on one, on the real cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from domyn_swarm.backends.platforms import scheduler
from domyn_swarm.errors import StateError
from domyn_swarm.model import JobStatus
from domyn_swarm.paths import SwarmPaths
from domyn_swarm.services.jobs import JobService
from domyn_swarm.state import SwarmStore
from slurm.cluster import SlurmCluster
from slurm.swarms import (
    Up,
    all_answered,
    came_back,
    ended,
    jobs_of,
    lost,
    ready,
    request,
    restarts,
    submit_held,
    swarm_paths,
    task,
    until,
    warn,
)


def replica_log(index: int, name: str) -> str:
    return (swarm_paths().replica_logs(index) / name).read_text()


def nodes_of(slurm: SlurmCluster, job: str) -> list[str]:
    hosts = slurm.run("squeue", "-h", "-j", job, "-o", "%N").stdout.strip()
    return slurm.run("scontrol", "show", "hostnames", hosts).stdout.split()


def test_a_replica_over_two_nodes_that_loses_one_comes_back_whole(
    up: Up, slurm: SlurmCluster, tmp_path: Path
) -> None:
    up(replicas=1, gpus_per_replica=8)
    victim = task(slurm, 0)
    assert len(nodes_of(slurm, victim)) == 2
    assert "joined" in replica_log(0, "node-1.log")
    job = submit_held(tmp_path, 300)

    # What its engine runs on the other node is killed.
    [step] = [one for one in scheduler().steps() if one.startswith(victim) and "batch" not in one]
    slurm.run("scancel", "--signal=KILL", step)
    until(lambda: restarts(slurm, victim) == 1)
    until(lambda: came_back(slurm, victim) and ready() == 1)
    assert len(nodes_of(slurm, victim)) == 2
    job.goes_on()

    # The other node itself is lost.
    with lost(slurm, nodes_of(slurm, victim)[1]):
        until(lambda: restarts(slurm, victim) == 2)
        until(lambda: came_back(slurm, victim) and ready() == 1)
        job.goes_on()
        done = job.release()
    assert done.status is JobStatus.SUCCEEDED
    assert all_answered(job.folder, job.rows)


def test_whole_nodes_hold_several_replicas(up: Up, slurm: SlurmCluster, tmp_path: Path) -> None:
    small = {"partition": "main", "mem": "1000M", "cpus_per_task": 1}
    backend = {"partition": "whole", "endpoint": small}
    service = up(replicas=3, gpus_per_replica=2, min_ready=3, backend=backend)
    arrays = [one for one in jobs_of(slurm) if "_" in one]
    assert len(arrays) == 2  # nodes, with 2 replicas and 1
    seen = service.status("demo")
    assert [replica.state for replica in seen.replicas] == ["ready"] * 3
    assert all(replica.expires_at for replica in seen.replicas)
    assert "CUDA_VISIBLE_DEVICES=0,1" in replica_log(0, "engine.log")
    assert "CUDA_VISIBLE_DEVICES=2,3" in replica_log(1, "engine.log")
    job, victim = submit_held(tmp_path), task(slurm, 0)
    warn(slurm, victim)
    until(lambda: restarts(slurm, victim) == 1)
    job.goes_on()
    done = job.release()
    assert done.account is not None
    assert (done.status, done.account.retries) == (JobStatus.SUCCEEDED, 0)
    until(lambda: came_back(slurm, victim) and ready() == 3)
    with pytest.raises(StateError, match="holds 2 replicas: 3 cannot become 2"):
        service.scale("demo", 2)


def test_packing_can_be_asked_for_and_scales_by_nodes_under_a_job(
    up: Up, slurm: SlurmCluster, tmp_path: Path
) -> None:
    service = up(replicas=2, gpus_per_replica=2, min_ready=2, backend={"packing": "node"})
    assert len(jobs_of(slurm)) == 2
    job = submit_held(tmp_path, 200)
    service.scale("demo", 4)
    until(lambda: ready() == 4)
    assert len(jobs_of(slurm)) == 3
    job.goes_on()
    service.scale("demo", 2)
    until(lambda: len(jobs_of(slurm)) == 2)  # the endpoint and a task
    until(lambda: ready() == 2)
    job.goes_on()
    done = job.release()
    assert done.account is not None
    assert (done.status, done.account.retries) == (JobStatus.SUCCEEDED, 0)

    # A successor of which the last look does not know is ended as well.
    service.scale("demo", 4)
    until(lambda: ready() == 4)
    replace_behind_our_back(slurm, task(slurm, 1))
    service.scale("demo", 2)
    until(lambda: len(jobs_of(slurm)) == 2)
    assert service.status("demo").observed == "ready"


def replace_behind_our_back(slurm: SlurmCluster, job: str) -> None:
    """As the endpoint program replaces a task while this process' look at the queue is old."""
    for _ in range(8):  # rarer each time that nothing has changed
        scheduler().queue(at_most_s=0)
    slurm.run("scancel", job)
    until(lambda: job not in jobs_of(slurm) and ready() == 2)
    script = SwarmPaths(Path(SwarmStore.open().swarm("demo").swarm_dir)).replica_script
    group = job.partition("_")[2]
    slurm.run("sbatch", f"--array={group}", str(script))
    until(lambda: ready() == 4)  # by the collector, which looks at no queue


def test_a_swarm_ends_after_its_job(up: Up, slurm: SlurmCluster, tmp_path: Path) -> None:
    up(replicas=1)
    handle = JobService().submit(request(tmp_path, 20, down_after=True))
    assert ended(handle).status is JobStatus.SUCCEEDED
    until(lambda: jobs_of(slurm) == {})
    assert all_answered(tmp_path, 20)
