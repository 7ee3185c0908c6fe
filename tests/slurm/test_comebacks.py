"""Who brings back what Slurm does not: replicas, endpoints, and those who look for them."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from domyn_swarm.backends.slurm.lost_endpoint import LostEndpoint
from domyn_swarm.backends.slurm.platform import SlurmPlatform
from domyn_swarm.identity import running
from domyn_swarm.model import JobStatus
from domyn_swarm.paths import SwarmPaths, write_private
from domyn_swarm.services.jobs import JobService
from domyn_swarm.services.swarms import SwarmService
from domyn_swarm.state import SwarmStore
from domyn_swarm.swarm.factory import scheduler
from slurm.cluster import SlurmCluster
from slurm.test_swarm import Up, all_answered, jobs_of, ready, request, task, until, up

__all__ = ["up"]  # a fixture

ENDPOINT = "domyn_swarm.backends.endpoint"
REPLICA = "domyn_swarm.backends.slurm.replica_task"


def endpoint_job(slurm: SlurmCluster) -> str:
    return next((one for one in jobs_of(slurm) if "_" not in one), "")


def node_of(slurm: SlurmCluster, job: str) -> str:
    return slurm.run("squeue", "-h", "-j", job, "-o", "%N").stdout.strip()


def swarm_paths() -> SwarmPaths:
    return SwarmPaths(Path(SwarmService().status("demo").swarm_dir))


def program(module: str, job: str) -> psutil.Process:
    """Our program in one of Slurm's jobs or tasks, once it runs."""
    found: psutil.Process = until(lambda: _program(module, job))
    return found


def _program(module: str, job: str) -> psutil.Process | None:
    number, _, index = job.partition("_")
    for process in running():
        try:
            if ["-m", module] != process.cmdline()[1:3]:
                continue
            told = process.environ()
        except psutil.Error:
            continue
        if told.get("SLURM_CONF") != os.environ["SLURM_CONF"]:
            continue  # another cluster's, which counts its jobs alike
        own = told.get("SLURM_ARRAY_JOB_ID", told.get("SLURM_JOB_ID"))
        if own == number and told.get("SLURM_ARRAY_TASK_ID", "") == index:
            return process
    return None


def test_an_endpoint_that_is_killed_starts_again_in_its_job(
    up: Up, slurm: SlurmCluster, tmp_path: Path
) -> None:
    up(min_ready=2)
    jobs = JobService()
    handle = jobs.submit(request(tmp_path, 800))
    until(lambda: jobs.status(handle).rows_done > 50)
    job = endpoint_job(slurm)
    os.kill(program(ENDPOINT, job).pid, signal.SIGKILL)
    ended = jobs.wait(handle, timeout_s=240)
    assert (ended.status, ended.rows_failed) == (JobStatus.SUCCEEDED, 0)
    assert all_answered(tmp_path, 800)
    assert endpoint_job(slurm) == job
    until(lambda: ready() == 2)
    assert "the endpoint died (code 137)" in swarm_paths().endpoint_log.read_text()


def test_an_endpoint_whose_job_fails_is_brought_back_a_few_times(
    up: Up, slurm: SlurmCluster
) -> None:
    up(min_ready=2)
    paths = swarm_paths()
    for earlier in (0, 2):
        for number in range(earlier):
            write_private(paths.endpoint_successor(f"earlier-{number}"), "FAILED")
        job = endpoint_job(slurm)
        os.kill(program("domyn_swarm.backends.slurm.endpoint_task", job).pid, signal.SIGKILL)
        until(lambda job=job: job not in jobs_of(slurm) and not _program(ENDPOINT, job))
        LostEndpoint(paths, gone_s=0).look()  # as the replicas' tasks do after 20 s
        if earlier:  # the third within an hour had a successor
            assert endpoint_job(slurm) == ""
            os.utime(paths.endpoint_successor("earlier-0"), (0, 0))
            LostEndpoint(paths, gone_s=0).look()
        assert endpoint_job(slurm) not in ("", job)
        until(paths.endpoint.exists)
    until(lambda: SwarmService().status("demo").observed == "ready")


def test_a_replica_that_is_killed_comes_back_and_no_row_fails(
    up: Up, slurm: SlurmCluster, tmp_path: Path
) -> None:
    up(min_ready=2)
    paths = swarm_paths()
    jobs = JobService()
    handle = jobs.submit(request(tmp_path, 800))
    until(lambda: jobs.status(handle).rows_done > 50)
    first = task(slurm, 1)
    kill_task(slurm)
    second = task(slurm, 1)
    assert second != first
    ended = jobs.wait(handle, timeout_s=240)
    assert (ended.status, ended.rows_failed) == (JobStatus.SUCCEEDED, 0)
    assert all_answered(tmp_path, 800)
    until(lambda: ready() == 2)
    for _ in range(4):  # within an hour: started again three times
        kill_watchdog(second)
    until(lambda: second not in jobs_of(slurm))
    SlurmPlatform(paths, SwarmStore.open().swarm("demo").tag, killed_s=0).replace_lost(2)
    assert paths.killed(1).read_text().split() == [first, second]
    third = task(slurm, 1)
    write_private(paths.killed(1), "a b c")
    kill_task(slurm, ran_long=True)
    assert paths.killed(1).read_text() == third
    write_private(paths.killed(1), "a b c")
    kill_task(slurm)
    assert len(jobs_of(slurm)) == 2  # it is given up


def test_a_watchdog_that_is_killed_starts_again_beside_its_neighbours(
    up: Up, slurm: SlurmCluster, tmp_path: Path
) -> None:
    up(replicas=2, gpus_per_replica=2, min_ready=2, backend={"packing": "node"})
    before = set(jobs_of(slurm))
    jobs = JobService()
    handle = jobs.submit(request(tmp_path, 800))
    until(lambda: jobs.status(handle).rows_done > 50)
    neighbour, killed = watchdogs(task(slurm, 0))
    os.kill(killed, signal.SIGKILL)
    until(lambda: killed not in watchdogs(task(slurm, 0)) and ready() == 2)
    ended = jobs.wait(handle, timeout_s=240)
    assert (ended.status, ended.rows_failed) == (JobStatus.SUCCEEDED, 0)
    assert all_answered(tmp_path, 800)
    assert neighbour in watchdogs(task(slurm, 0))
    assert set(jobs_of(slurm)) == before
    gpus = swarm_paths().engine_log(1).read_text()
    assert gpus.count("CUDA_VISIBLE_DEVICES=2,3") == 2


def watchdogs(job: str) -> list[int]:
    """The task's, in the order in which they began."""
    program = _program(REPLICA, job)
    children = program.children() if program else []
    return [one.pid for one in sorted(children, key=psutil.Process.create_time)]


def kill_watchdog(job: str) -> None:
    """SIGKILL for that of the second task, until another one or nothing is there."""
    (victim,) = until(lambda: watchdogs(job))
    os.kill(victim, signal.SIGKILL)
    until(lambda: victim not in watchdogs(job))


def kill_task(slurm: SlurmCluster, *, ran_long: bool = False) -> None:
    """SIGKILL for the second task, and what the endpoint does 20 s later."""
    paths, tag = swarm_paths(), SwarmStore.open().swarm("demo").tag
    job = task(slurm, 1)
    victim = program(REPLICA, job)
    at_work = paths.at_work(1)
    until(lambda: at_work.exists() and at_work.read_text() == job)
    if ran_long:
        os.utime(at_work, (0, 0))
    os.kill(victim.pid, signal.SIGKILL)
    until(lambda: job not in jobs_of(slurm))
    SlurmPlatform(paths, tag, killed_s=0).replace_lost(2)


def test_where_slurm_refuses_to_requeue_there_is_a_successor(up: Up, slurm: SlurmCluster) -> None:
    up(min_ready=2)
    for first in (task(slurm, 0), endpoint_job(slurm)):
        slurm.run("scontrol", "update", f"jobid={first}", "requeue=0")  # as some sites do
        _, _, index = first.partition("_")
        slurm.run("scancel", "--batch", "--signal=USR1", first)

        def succeeded(first: str = first, index: str = index) -> bool:
            return any(
                one != first and one.partition("_")[2] == index and state == "RUNNING"
                for one, state in jobs_of(slurm).items()
            )

        until(succeeded, 60)
        until(lambda first=first: first not in jobs_of(slurm))
        until(lambda: ready() == 2, 60)
    assert len(jobs_of(slurm)) == 3


@pytest.mark.parametrize("requeue", [True, False])
def test_a_replica_whose_time_is_up_while_others_wait_does_not_end_the_swarm(
    up: Up, slurm: SlurmCluster, requeue: bool
) -> None:
    wanted = ["--gres=gpu:4", "--nodes=3", "--ntasks-per-node=1", "--time=5"]
    other = slurm.run("sbatch", "--parsable", *wanted, "--wrap=srun sleep 200").stdout.strip()
    until(lambda: slurm.run("squeue", "-h", "-j", other, "-o", "%T").stdout.strip() == "RUNNING")
    keys = {"gpus_per_replica": 4, "min_ready": 2, "backend": {"requeue": requeue}}
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(up, **keys)
        try:
            until(lambda: SwarmStore.open().swarms() and ready() == 1)
            first = task(slurm, 0)
            slurm.run("scancel", "--batch", "--signal=USR1", first)
            until(lambda: jobs_of(slurm).get(first) != "RUNNING")
            until(lambda: any(one.endswith("_0") for one in jobs_of(slurm)))
        finally:
            slurm.run("scancel", other)
        coming.result()
    assert ready() == 2


def test_a_swarm_does_not_fail_while_a_lost_replica_is_replaced(
    up: Up, slurm: SlurmCluster
) -> None:
    service = up(min_ready=2, gpus_per_replica=4, backend={"requeue": False})
    spared = node_of(slurm, endpoint_job(slurm))
    lost = next(one for one in (task(slurm, 0), task(slurm, 1)) if node_of(slurm, one) != spared)
    node, place = node_of(slurm, lost), lost.partition("_")[2]
    seen: set[str] = set()

    def replaced() -> bool:
        seen.add(service.status("demo").observed)
        return task(slurm, int(place)) != lost and ready() == 2

    slurm.run("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    try:
        until(lambda: lost not in jobs_of(slurm))
        until(lambda: len(jobs_of(slurm)) == 3)
        until(replaced, 60)
    finally:
        slurm.run("scontrol", "update", f"nodename={node}", "state=resume")
    assert "failed" not in seen


def test_a_lost_endpoint_that_may_not_be_requeued_is_replaced_by_its_replicas(
    up: Up, slurm: SlurmCluster, tmp_path: Path
) -> None:
    up(min_ready=2, gpus_per_replica=4, backend={"requeue": False})
    lost = endpoint_job(slurm)
    node = node_of(slurm, lost)
    jobs = JobService()
    slurm.run("scontrol", "update", f"nodename={node}", "state=drain", "reason=test")
    handle = jobs.submit(request(tmp_path, 1500))  # elsewhere
    until(lambda: jobs.status(handle).rows_done > 100)
    slurm.crash_node(node)
    slurm.run("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    until(lambda: endpoint_job(slurm) not in ("", lost), 60)
    ended = jobs.wait(handle, timeout_s=240)
    assert (ended.status, ended.rows_failed) == (JobStatus.SUCCEEDED, 0)
    assert all_answered(tmp_path, 1500)
    until(lambda: ready() == 2, 60)
    on = [one for one, state in jobs_of(slurm).items() if state == "RUNNING"]
    assert sum("_" not in one for one in on) == 1  # one successor, not one of each
    seen = SwarmService().status("demo")
    assert (seen.observed, seen.replicas_ready) == ("ready", 2), seen.detail


def test_a_controller_that_is_away_at_the_time_limit_loses_no_replica(
    up: Up, slurm: SlurmCluster
) -> None:
    up(min_ready=2)
    victim = task(slurm, 0)
    process = program(REPLICA, victim)
    log = swarm_paths().slurm_logs / "replica-0.log"
    slurm.stop_controller()
    try:
        os.kill(process.pid, signal.SIGUSR1)  # slurmd warns without the controller
        until(lambda: "asks again for its way back" in log.read_text(), 60)
    finally:
        slurm.start_controller()
    until(lambda: "Restarts=1 " in slurm.run("scontrol", "-o", "show", "job", victim).stdout, 60)
    until(lambda: ready() == 2, 60)


def test_a_task_that_slurm_forgot_and_that_left_word_or_was_killed_has_a_successor(
    up: Up, slurm: SlurmCluster
) -> None:
    up(wait=False, replicas=1)
    SwarmService().down(["demo"])
    paths, tag = swarm_paths(), SwarmStore.open().swarm("demo").tag
    platform = SlurmPlatform(paths, f"{tag}.later")  # of which Slurm knows nothing
    platform.replace_lost(1)
    assert jobs_of(slurm) == {}  # it may have failed
    write_private(paths.expired(0), "99999_0")
    platform.replace_lost(1)
    assert len(jobs_of(slurm)) == 1
    assert not paths.expired(0).exists()
    slurm.run("scancel", "--name", "demo-replicas")
    until(lambda: jobs_of(slurm) == {})
    SlurmPlatform(paths, f"{tag}.later").replace_lost(1)
    assert jobs_of(slurm) == {}
    write_private(paths.at_work(0), "99999_0")  # as of one that was killed
    SlurmPlatform(paths, f"{tag}.later").replace_lost(1)
    assert jobs_of(slurm) == {}  # or that has just begun
    os.utime(paths.at_work(0), (0, 0))
    SlurmPlatform(paths, f"{tag}.later").replace_lost(1)
    assert len(jobs_of(slurm)) == 1
    assert paths.killed(0).read_text() == "99999_0"


def test_down_ends_what_began_since_it_was_last_looked(up: Up, slurm: SlurmCluster) -> None:
    """As a job that another process submits while this one's look at the queue is old."""
    up(wait=False)
    look = scheduler()
    until(lambda: len(jobs_of(slurm)) == 3)
    for _ in range(3):  # rarer by now
        look.queue(at_most_s=0)
    tag = SwarmStore.open().swarm("demo").tag
    size = ["--mem=100M", "--time=5", "--output=/dev/null", "--job-name=demo-late"]
    comment = f"--comment=domyn-swarm/{tag}/job/late"
    slurm.run("sbatch", *size, comment, "--wrap=sleep 600")
    SwarmService().down(["demo"])
    assert jobs_of(slurm) == {}


def test_down_holds_against_a_replica_that_goes_back_into_the_queue(
    up: Up, slurm: SlurmCluster
) -> None:
    up(min_ready=2)
    for one in [task(slurm, 0), endpoint_job(slurm)]:
        slurm.run("scancel", "--batch", "--signal=USR1", one)
    SwarmService().down(["demo"])
    time.sleep(2)
    assert jobs_of(slurm) == {}


def test_what_an_admin_cancels_does_not_come_back(up: Up, slurm: SlurmCluster) -> None:
    up(min_ready=2, backend={"requeue": False})
    for one in (task(slurm, 1), endpoint_job(slurm)):
        slurm.run("scancel", one)
        until(lambda one=one: one not in jobs_of(slurm))
    left = list(jobs_of(slurm))
    record = SwarmStore.open().swarm("demo")
    paths = SwarmPaths(Path(record.swarm_dir))
    LostEndpoint(paths, gone_s=0).look()
    SlurmPlatform(paths, record.tag).replace_lost(2)
    assert list(jobs_of(slurm)) == left
    assert len(left) == 1
