"""A swarm on the real cluster, and what Slurm and its admins do to one."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from clients import ask
from domyn_swarm.backends.platforms import scheduler
from domyn_swarm.errors import StateError
from domyn_swarm.model import JobStatus, SwarmPhase, utc_now
from domyn_swarm.planning.plan import JobResources
from domyn_swarm.services.jobs import JobService
from domyn_swarm.services.swarms import SwarmService
from domyn_swarm.state import SwarmStore
from domyn_swarm.swarm.joining import SwarmJoining, Waiting
from patience import limit_s, scaled
from slurm.cluster import SlurmCluster, slurm_version
from slurm.swarms import (
    REPLICA_TASK,
    HeldJob,
    Up,
    all_answered,
    came_back,
    down,
    ended,
    endpoint_job,
    jobs_of,
    launch_of,
    lost,
    node_of,
    observed,
    program,
    ready,
    request,
    restarts,
    resumed,
    submit_held,
    swarm_paths,
    task,
    until,
    warn,
)


def scraped(target: Path, key: Path) -> str:
    """The metrics of a swarm, asked for as Prometheus is told to."""
    [group] = json.loads(target.read_text())
    headers = {"Authorization": f"Bearer {key.read_text().strip()}"}
    asked = urllib.request.Request(f"http://{group['targets'][0]}/metrics", headers=headers)
    with urllib.request.urlopen(asked, timeout=limit_s()) as reply:
        return str(reply.read().decode())


def test_a_job_runs_through_a_swarm_and_down_leaves_nothing(
    up: Up, slurm: SlurmCluster, swarm_home: Path, tmp_path: Path
) -> None:
    (textfiles := tmp_path / "textfiles").mkdir()
    metrics = {"textfile_dir": textfiles}
    service = up(replicas=3, gpus_per_replica=2, min_ready=3, metrics=metrics)
    assert len(jobs_of(slurm)) == 4
    seen = service.status("demo")
    assert seen.expires_at is not None
    assert 3000 < (seen.expires_at - utc_now()).total_seconds() < 3660  # time_limit: an hour
    assert all(replica.expires_at for replica in seen.replicas)
    assert len({gpus_of(slurm, task(slurm, index)) for index in range(3)}) == 3
    handle = JobService().submit(request(tmp_path, 150))
    assert ended(handle).status is JobStatus.SUCCEEDED
    assert all_answered(tmp_path, 150)
    ask()
    [target] = (swarm_home / "prometheus").glob("domyn-swarm-*.json")
    told = scraped(target, swarm_home / "secrets/metrics_key").splitlines()
    of = f'job_id="{handle.job_id}"'
    for pattern in (
        *(rf'domyn_swarm_replica_state{{replica="{n}",state="ready",.*}} 1.0' for n in range(3)),
        r"domyn_swarm_replicas_serving{.*} 3.0",  # as the router has it
        r"domyn_swarm_router_up{.*} 1.0",
        r'domyn_swarm_router_responses_total{.*status_code="200".*} \d+.0',
        rf'domyn_swarm_job_rows_done_total{{{of},.*outcome="answered".*}} 150.0',
    ):
        assert any(re.fullmatch(pattern, line) for line in told), (pattern, told)
    [textfile] = textfiles.iterdir()
    assert 'domyn_swarm_replicas_wanted{swarm="demo"} 3.0' in textfile.read_text()
    down()
    assert jobs_of(slurm) == {}
    assert service.status("demo").phase is SwarmPhase.STOPPED
    assert [*textfiles.iterdir(), *target.parent.iterdir()] == []


def gpus_of(slurm: SlurmCluster, job: str) -> tuple[str, str]:
    """The node of a task, and which of its GPUs it has."""
    shown = slurm.run("scontrol", "-d", "-o", "show", "job", job).stdout
    return shown.split(" Nodes=")[1].split()[0], shown.split("(IDX:")[1].split(")")[0]


def mailed(slurm: SlurmCluster, who: str, what: str) -> bool:
    """Whether a mail about it was sent; 20.11 sends none about what goes back into the queue."""
    if slurm_version() < (21, 0):
        return True
    box = slurm.folder / "log/mail"
    lines = box.read_text().splitlines() if box.exists() else []
    return any(line.startswith(f"{who}: ") and what in line for line in lines)


def test_replicas_that_slurm_takes_away_come_back_and_no_row_fails(
    up: Up, slurm: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOMYN_SWARM_MAIL_USER", "of-replicas@here")
    up(min_ready=2, gpus_per_replica=4)  # a node each

    # Near its time limit: it drains, and no request is asked twice.
    first, second = task(slurm, 0), task(slurm, 1)
    job = submit_held(tmp_path / "drained")
    warn(slurm, first)
    until(lambda: restarts(slurm, first) == 1)
    job.goes_on()
    done = job.release()
    assert done.status is JobStatus.SUCCEEDED
    assert done.account is not None
    assert (done.account.requests, done.account.retries) == (job.rows, 0)
    assert all_answered(job.folder, job.rows)
    until(lambda: came_back(slurm, first) and ready() == 2)

    # An admin requeues it.
    job = submit_held(tmp_path / "taken", 400)
    slurm.run("scontrol", "requeue", second)
    until(lambda: restarts(slurm, second) == 1)
    job.goes_on()
    until(lambda: came_back(slurm, second) and ready() == 2)
    until(lambda: mailed(slurm, "of-replicas@here", "demo-replicas"))

    # Somebody who matters more takes its node.
    wanted = ["--partition=urgent", f"--nodelist={node_of(slurm, first)}", "--gres=gpu:4"]
    slurm.run("sbatch", "--job-name=other", "--time=1", *wanted, "--wrap=exec sleep 1")
    until(lambda: restarts(slurm, first) == 2)
    job.goes_on()
    until(lambda: came_back(slurm, first) and ready() == 2)

    # Its node is lost.
    with lost(slurm, node_of(slurm, second)):
        until(lambda: restarts(slurm, second) == 2)
        job.goes_on()
        until(lambda: came_back(slurm, second) and ready() == 2)
    done = job.release()
    assert (done.status, done.rows_failed) == (JobStatus.SUCCEEDED, 0)
    assert all_answered(job.folder, job.rows)


def test_slurms_own_daemons_go_away_under_a_job(
    up: Up, slurm: SlurmCluster, tmp_path: Path
) -> None:
    service = up(min_ready=2, gpus_per_replica=4)
    job = submit_held(tmp_path, 300)
    first, second = task(slurm, 0), task(slurm, 1)

    # The slurmd of a replica's node dies and takes nothing with it.
    node = node_of(slurm, second)
    slurm.stop_slurmd(node)
    try:
        job.goes_on()
        assert ready() == 2
    finally:
        slurm.start_node(node)

    # The controller is away while a replica's time is up: it asks again for its way back.
    victim = program(REPLICA_TASK, first)
    log = swarm_paths().slurm_logs / "replica-0.log"
    time.sleep(scaled(1.5))  # else the controller may forget what was submitted last
    slurm.stop_controller()
    try:
        scheduler().expect_change()  # its last look may be good for seconds yet
        seen = service.status("demo")
        assert (seen.observed, seen.replicas_ready) == ("unknown", 2)  # the collector still knows
        waited = JobService().wait(job.handle, timeout_s=1.0)  # it ends with its time all the same
        assert waited.status is JobStatus.RUNNING
        os.kill(victim.pid, signal.SIGUSR1)  # slurmd warns without the controller
        until(lambda: "repeats the request for its requeue" in log.read_text())
        job.goes_on()
    finally:
        slurm.start_controller()
    until(lambda: came_back(slurm, first) and ready() == 2)
    until(lambda: observed() == "ready")
    done = job.release()
    assert (done.status, done.rows_failed) == (JobStatus.SUCCEEDED, 0)
    assert all_answered(job.folder, job.rows)

    # `down` holds against what goes back into the queue meanwhile.
    for one in (first, endpoint_job(slurm)):
        warn(slurm, one)
    down()
    time.sleep(scaled(2))
    assert jobs_of(slurm) == {}


def _outlives_its_endpoint(slurm: SlurmCluster, folder: Path) -> HeldJob:
    """An admin cancels the endpoint: the swarm has failed and says why, and takes no job. Its jobs
    go on with the replicas that they know; returns one that ended with those.
    """
    job = submit_held(folder / "cancelled")
    other = submit_held(folder / "without")
    slurm.run("scancel", endpoint_job(slurm))
    until(lambda: observed() == "failed")
    seen = SwarmService().status("demo")
    assert "the endpoint's job was cancelled" in seen.detail
    with pytest.raises(StateError, match=r"demo has failed.*the endpoint's job was cancelled"):
        JobService().submit(request(folder / "refused", 1))
    done = other.release()
    assert (done.status, done.rows_failed) == (JobStatus.SUCCEEDED, 0)
    assert all_answered(other.folder, other.rows)
    slurm.run("scancel", *(one for one in jobs_of(slurm) if "_" in one))
    until(lambda: not [one for one in jobs_of(slurm) if "_" in one])
    done = job.release()
    assert done.status is JobStatus.FAILED
    assert "The swarm has failed: the endpoint's job was cancelled" in str(done.message)
    return job


def test_an_endpoint_moves_is_cancelled_and_ends_under_jobs_and_no_row_is_lost(
    up: Up, slurm: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOMYN_SWARM_MAIL_USER", "of-endpoint@here")
    jobs = JobService()
    service = up(min_ready=2)
    before, home = service.status("demo").endpoint, endpoint_job(slurm)

    # It moves: its step goes on in an allocation of its own, and so does what has one.
    step = submit_held(tmp_path / "moved", resources=JobResources())
    job = submit_held(tmp_path / "goes on")
    warn(slurm, home)
    until(lambda: jobs.status(step.handle).runs == 2)
    until(lambda: came_back(slurm, home))
    until(lambda: service.status("demo").endpoint != before)
    job.goes_on()
    done = job.release()
    assert (done.status, done.rows_failed) == (JobStatus.SUCCEEDED, 0)
    assert all_answered(job.folder, job.rows)
    step.goes_on()
    done = step.release()
    assert (done.status, done.message) == (JobStatus.SUCCEEDED, None)
    assert done.account is not None
    assert done.account.rows_answered == step.rows
    assert done.account.requests <= step.rows + 8  # those in flight, at most
    assert all_answered(step.folder, step.rows)
    until(lambda: mailed(slurm, "of-endpoint@here", "demo-endpoint"))

    job = _outlives_its_endpoint(slurm, tmp_path)
    down()

    # In the next swarm it goes on; with the swarm a step ends.
    up(min_ready=2)
    done = ended(resumed(job.handle))
    assert done.status is JobStatus.SUCCEEDED
    assert done.account is not None
    assert done.account.rows_answered == job.rows
    assert done.account.requests - done.account.retries <= job.rows + 8 * 3
    assert all_answered(job.folder, job.rows)
    step = submit_held(tmp_path / "ends", resources=JobResources())
    down()
    assert jobs.status(step.handle).status is JobStatus.CANCELLED
    assert jobs_of(slurm) == {}


def test_a_swarm_keeps_its_place_in_the_queue_and_its_replicas_join_one_by_one(
    up: Up, slurm: SlurmCluster
) -> None:
    """The time of one is up while the others wait: the swarm does not fail for it."""
    others = [occupied(slurm, 3), occupied(slurm, 1)]
    keys = {"replicas": 3, "gpus_per_replica": 4, "min_ready": 3}
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(up, **keys)
        try:
            until(lambda: SwarmStore.open().swarms() and len(jobs_of(slurm)) == 4)
            until(lambda: observed() == "queued")
            slurm.run("scancel", others[1])
            until(lambda: ready() == 1)
            assert sorted(jobs_of(slurm).values()) == ["PENDING", "PENDING", "RUNNING", "RUNNING"]
            [first] = [
                one for one, state in jobs_of(slurm).items() if state == "RUNNING" and "_" in one
            ]
            # By hand: of an array of which some wait, scancel tries for a minute and more.
            os.kill(program(REPLICA_TASK, first).pid, signal.SIGUSR1)
            until(lambda: restarts(slurm, first) == 1)
            assert not coming.done()
        finally:
            slurm.run("scancel", *others)
        until(lambda: came_back(slurm, first))
        coming.result()
    assert ready() == 3


# `up` that stands still once the endpoint's job is recorded.
HELD_UP = """
import sys, time
sys.path.insert(0, {tests!r})
from domyn_swarm.state import SwarmStore
from domyn_swarm.swarm.joining import SwarmJoining, Waiting
from slurm.swarms import launch_of
attach_parts = SwarmStore.attach_parts

def held(store, tag, parts):
    attach_parts(store, tag, parts)
    time.sleep(10_000)

SwarmStore.attach_parts = held
SwarmJoining(SwarmStore.open()).up(launch_of(), Waiting())
"""


def test_an_up_that_is_killed_half_way_is_completed_and_nothing_is_submitted_twice(
    slurm: SlurmCluster,
) -> None:
    program = HELD_UP.format(tests=str(Path(__file__).parents[1]))
    first = subprocess.Popen([sys.executable, "-c", program])
    until(lambda: [one for one in SwarmStore.open().swarms() if one.parts])
    told: list[str] = []
    waiting = Waiting(on_change=lambda seen: told.append(seen.detail))
    with ThreadPoolExecutor(1) as thread:
        try:
            second = thread.submit(SwarmJoining(SwarmStore.open()).up, launch_of(), waiting)
            until(lambda: told == ["another command is starting it"])
            first.kill()
            first.wait()
            assert second.result().launched
            assert sorted(jobs_of(slurm).values()) == ["RUNNING"] * 3
            assert not SwarmJoining(SwarmStore.open()).up(launch_of(), Waiting()).launched
            assert len(jobs_of(slurm)) == 3
        finally:
            first.kill()
            down()


def occupied(slurm: SlurmCluster, nodes: int) -> str:
    """The job that takes all GPUs of so many nodes."""
    wanted = ["--gres=gpu:4", f"--nodes={nodes}", "--ntasks-per-node=1", "--time=5"]
    other = slurm.run("sbatch", "--parsable", *wanted, "--wrap=exec sleep 600").stdout.strip()
    until(lambda: slurm.run("squeue", "-h", "-j", other, "-o", "%T").stdout.strip() == "RUNNING")
    return other


def test_a_machine_without_slurm_still_lists_its_swarms(
    up: Up, monkeypatch: pytest.MonkeyPatch, slurm: SlurmCluster
) -> None:
    service = up(wait=False)
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("PATH", "/nowhere")
        scheduler().expect_change()
        [seen] = service.list()
        assert (seen.observed, seen.phase) == ("unknown", SwarmPhase.LAUNCHING)
        assert "not on PATH" in seen.detail
    scheduler().expect_change()
    assert len(jobs_of(slurm)) == 3
