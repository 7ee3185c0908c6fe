"""Replicas over several nodes, several replicas on one, and successors, on the real cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from domyn_swarm.errors import StateError
from domyn_swarm.model import JobStatus
from domyn_swarm.paths import SwarmPaths
from domyn_swarm.services.jobs import JobService
from domyn_swarm.services.swarms import SwarmService
from domyn_swarm.state import SwarmStore
from domyn_swarm.swarm.factory import scheduler
from slurm.cluster import SlurmCluster
from slurm.test_swarm import Up, all_answered, jobs_of, ready, request, task, until, up

__all__ = ["up"]  # a fixture


def nodes_of(slurm: SlurmCluster, job: str) -> int:
    return int(slurm.run("squeue", "-h", "-j", job, "-o", "%D").stdout)


def replica_log(index: int, name: str) -> str:
    paths = SwarmPaths(Path(SwarmService().status("demo").swarm_dir))
    return (paths.replica_logs(index) / name).read_text()


def test_a_replica_spans_two_nodes(up: Up, slurm: SlurmCluster, tmp_path: Path) -> None:
    up(replicas=2, gpus_per_replica=8, min_ready=2)
    assert [nodes_of(slurm, task(slurm, index)) for index in range(2)] == [2, 2]
    assert "joined" in replica_log(0, "node-1.log")
    jobs = JobService()
    ended = jobs.wait(jobs.submit(request(tmp_path, 200)), timeout_s=240)
    assert ended.status is JobStatus.SUCCEEDED
    assert all_answered(tmp_path, 200)


@pytest.mark.parametrize("event", ["node", "program"])
def test_a_lost_node_of_a_replica_brings_it_back_whole(
    up: Up, slurm: SlurmCluster, tmp_path: Path, event: str
) -> None:
    up(replicas=1, gpus_per_replica=8, min_ready=1)
    jobs = JobService()
    handle = jobs.submit(request(tmp_path, 1500))
    until(lambda: jobs.status(handle).rows_done > 100)
    victim = task(slurm, 0)
    hosts = slurm.run("squeue", "-h", "-j", victim, "-o", "%N").stdout.strip()
    names = slurm.run("scontrol", "show", "hostnames", hosts).stdout.split()
    if event == "node":
        slurm.crash_node(names[1])
        slurm.run("scontrol", "update", f"nodename={names[1]}", "state=down", "reason=test")
        until(lambda: jobs_of(slurm).get(victim) != "RUNNING", 30)
    else:
        [step] = [
            one for one in scheduler().steps() if one.startswith(victim) and "batch" not in one
        ]
        slurm.run("scancel", "--signal=KILL", step)
        until(lambda: jobs_of(slurm).get(victim) == "PENDING", 30)
    try:
        assert jobs.wait(handle, timeout_s=240).status is JobStatus.SUCCEEDED
        assert all_answered(tmp_path, 1500)
        until(lambda: ready() == 1, 60)
    finally:
        if event == "node":
            slurm.start_node(names[1])
            slurm.run("scontrol", "update", f"nodename={names[1]}", "state=resume")


def test_whole_nodes_hold_several_replicas(up: Up, slurm: SlurmCluster, tmp_path: Path) -> None:
    small = {"partition": "main", "mem": "1000M", "cpus_per_task": 1}
    backend = {"partition": "whole", "endpoint": small}
    service = up(replicas=5, gpus_per_replica=2, min_ready=5, backend=backend)
    arrays = [one for one in jobs_of(slurm) if "_" in one]
    assert len(arrays) == 3  # nodes, with 2, 2 and 1 replicas
    seen = service.status("demo")
    assert [replica.state for replica in seen.replicas] == ["ready"] * 5
    assert all(replica.expires_at for replica in seen.replicas)
    gpus = [replica_log(index, "engine.log") for index in range(2)]
    assert "CUDA_VISIBLE_DEVICES=0,1" in gpus[0]
    assert "CUDA_VISIBLE_DEVICES=2,3" in gpus[1]
    jobs = JobService()
    handle = jobs.submit(request(tmp_path, 1500))
    until(lambda: jobs.status(handle).rows_done > 100)
    slurm.run("scancel", "--batch", "--signal=USR1", task(slurm, 0))
    until(lambda: jobs_of(slurm)[task(slurm, 0)] == "PENDING")
    ended = jobs.wait(handle, timeout_s=240)
    assert ended.account is not None
    assert (ended.status, ended.account.retries) == (JobStatus.SUCCEEDED, 0)
    until(lambda: ready() == 5)
    with pytest.raises(StateError, match="holds 2 replicas: 5 cannot become 4"):
        service.scale("demo", 4)


def test_packing_can_be_asked_for_and_scales_by_nodes(up: Up, slurm: SlurmCluster) -> None:
    service = up(replicas=2, gpus_per_replica=2, min_ready=2, backend={"packing": "node"})
    assert len(jobs_of(slurm)) == 2
    service.scale("demo", 4)
    until(lambda: ready() == 4)
    assert len(jobs_of(slurm)) == 3
    replace_behind_our_back(slurm, task(slurm, 1))
    service.scale("demo", 2)  # ends the successor, of which the last look does not know
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


def test_a_site_without_requeueing_gets_successors(
    up: Up, slurm: SlurmCluster, tmp_path: Path
) -> None:
    service = up(min_ready=2, gpus_per_replica=4, backend={"requeue": False})
    jobs = JobService()
    handle = jobs.submit(request(tmp_path, 1500))
    until(lambda: jobs.status(handle).rows_done > 100)
    first = task(slurm, 0)
    slurm.run("scancel", "--batch", "--signal=USR1", first)
    until(lambda: [one for one in jobs_of(slurm) if one.endswith("_0") and one != first])
    until(lambda: ready() == 2)
    lost = task(slurm, 1)  # cannot come back of itself
    node = slurm.run("squeue", "-h", "-j", lost, "-o", "%N").stdout.strip()
    slurm.crash_node(node)
    slurm.run("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    try:
        until(lambda: [one for one in jobs_of(slurm) if one.endswith("_1") and one != lost], 60)
        until(lambda: ready() == 2, 60)
        ended = jobs.wait(handle, timeout_s=240)
        assert ended.status is JobStatus.SUCCEEDED
        assert all_answered(tmp_path, 1500)
    finally:
        slurm.start_node(node)
        slurm.run("scontrol", "update", f"nodename={node}", "state=resume")
    before = next(one for one in jobs_of(slurm) if "_" not in one)
    slurm.run("scancel", "--batch", "--signal=USR1", before)
    until(lambda: [one for one in jobs_of(slurm) if "_" not in one and one != before])
    until(lambda: service.status("demo").observed == "ready", 60)
    assert len(service.status("demo").replicas) == 2


def test_scaling_under_a_job_fails_no_request(up: Up, slurm: SlurmCluster, tmp_path: Path) -> None:
    service = up(replicas=3, min_ready=3)
    jobs = JobService()
    handle = jobs.submit(request(tmp_path, 1200))
    until(lambda: jobs.status(handle).rows_done > 50)
    service.scale("demo", 1)
    until(lambda: len(jobs_of(slurm)) == 2)  # the endpoint and a replica
    service.scale("demo", 4)
    until(lambda: ready() == 4)
    ended = jobs.wait(handle, timeout_s=240)
    assert ended.account is not None
    assert (ended.status, ended.account.retries) == (JobStatus.SUCCEEDED, 0)


def test_an_unused_swarm_gives_its_nodes_back(up: Up, slurm: SlurmCluster) -> None:
    service = up(idle_timeout_s=5)
    until(lambda: jobs_of(slurm) == {}, 60)
    scheduler().expect_change()
    seen = service.status("demo")
    assert seen.phase.value == "stopped"
    assert "nobody has used it" in seen.detail


def test_a_swarm_ends_after_its_job(up: Up, slurm: SlurmCluster, tmp_path: Path) -> None:
    up(min_ready=1)
    handle = JobService().submit(request(tmp_path, 100, down_after=True))
    assert JobService().wait(handle, timeout_s=240).status is JobStatus.SUCCEEDED
    until(lambda: jobs_of(slurm) == {}, 60)
    assert all_answered(tmp_path, 100)
