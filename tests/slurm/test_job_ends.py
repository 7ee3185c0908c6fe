"""How jobs of a swarm end on the real cluster, and what is then said of each."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from domyn_swarm.backends.slurm.job_runs import JobRuns
from domyn_swarm.model import JobHandle, JobStatus
from domyn_swarm.paths import JobPaths, write_private
from domyn_swarm.planning.plan import JobResources
from domyn_swarm.services.jobs import JobService
from domyn_swarm.swarm.snapshot import JobSnapshot
from process_list import running
from slurm.cluster import SlurmCluster
from slurm.swarms import (
    HeldJob,
    Standing,
    all_answered,
    ended,
    endpoint_job,
    jobs_of,
    node_of,
    ready,
    standing_swarm,
    submit_held,
    swarm_paths,
    taking_nothing,
    until,
    warn,
)
from webhook import Webhook

JOB, STEP = JobResources(detached=True), JobResources()
ONCE = JobResources(detached=True, continues=False)


@pytest.fixture(scope="module")
def standing_one(
    slurm_cluster: SlurmCluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Standing]:
    with standing_swarm(slurm_cluster, tmp_path_factory.mktemp("home"), min_ready=2) as standing:
        yield standing


@pytest.fixture
def standing(
    standing_one: Standing, slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Standing]:
    monkeypatch.setenv("DOMYN_SWARM_HOME", str(standing_one.home))
    until(lambda: ready() == 2)
    yield standing_one
    for job in JobService().list(refresh=False):
        if not job.status.final:
            JobService().cancel(job.job_id)


def submit_apart(slurm: SlurmCluster, folder: Path, resources: JobResources) -> HeldJob:
    """A job of its own on a node where nothing of the swarm is."""
    taken = {node_of(slurm, one) for one in jobs_of(slurm)}
    with taking_nothing(slurm, ",".join(sorted(taken))):
        return submit_held(folder, resources=resources)


def preempt(slurm: SlurmCluster, node: str) -> None:
    wanted = ["--partition=urgent", f"--nodelist={node}", "--exclusive", "--time=1"]
    slurm.run("sbatch", *wanted, "--wrap=exec sleep 1")


def srun_of(job: HeldJob) -> list[psutil.Process]:
    """The processes on the submitting machine that a step lives by: `srun`, and one that ends the
    step should that be killed.
    """

    def found() -> list[psutil.Process]:
        ours = []
        for process in running():
            with contextlib.suppress(psutil.Error):
                words = process.cmdline()
                if process.name() == "srun" and f"--job-name=job-{job.handle.job_id}" in words:
                    ours.append(process)
        return sorted(ours, key=lambda one: one.ppid() in {other.pid for other in ours})

    processes: list[psutil.Process] = until(found)
    return processes


def said(handle: JobHandle) -> tuple[JobStatus, str]:
    """What its user reads of a job that has ended, with a fresh process of ours."""
    done = ended(handle)
    assert JobService().status(handle, refresh=False).status is done.status
    return done.status, str(done.message)


@contextlib.contextmanager
def told(slurm: SlurmCluster) -> Iterator[Webhook]:
    """Who is told of the jobs of the standing swarm that end."""
    with Webhook(host=slurm.network.controller) as hook:
        write_private(swarm_paths().notify_url, hook.url)
        try:
            yield hook
        finally:
            swarm_paths().notify_url.unlink()


@contextlib.contextmanager
def preempting(slurm: SlurmCluster, mode: str) -> Iterator[None]:
    """What becomes of what is preempted."""
    slurm.run("scontrol", "update", "PartitionName=main", f"PreemptMode={mode}")
    try:
        yield
    finally:
        slurm.run("scontrol", "update", "PartitionName=main", "PreemptMode=REQUEUE")


@pytest.mark.parametrize("how", ["warned", "preempted", "taken", "refused"])
def test_a_detached_job_goes_on_by_itself(
    standing: Standing, slurm: SlurmCluster, tmp_path: Path, how: str
) -> None:
    with told(slurm) as hook:
        goes_on(slurm, tmp_path, how)
        until(lambda: hook.of("job_ended"))
        assert [one["status"] for one in hook.of("job_ended")] == ["succeeded"]  # and not before


def goes_on(slurm: SlurmCluster, tmp_path: Path, how: str) -> None:
    job = submit_apart(slurm, tmp_path, JOB)
    slurm_id = job.handle.platform_id
    if how == "taken":  # as where a site cancels what it preempts
        with preempting(slurm, "CANCEL"):
            preempt(slurm, node_of(slurm, slurm_id))
            until(lambda: now(job).status is JobStatus.PENDING or now(job).runs == 2)
    elif how == "preempted":
        preempt(slurm, node_of(slurm, slurm_id))
    else:
        if how == "refused":  # as where a site forbids requeueing
            slurm.run("scontrol", "update", f"JobId={slurm_id}", "Requeue=0")
        warn(slurm, slurm_id)
    jobs = JobService()
    until(lambda: "run 2 waits" in (jobs.status(job.handle).message or "") or now(job).runs == 2)
    until(lambda: now(job).runs == 2)
    until(lambda: now(job).status is JobStatus.RUNNING)
    job.goes_on()
    done = job.release()
    assert (done.status, done.runs) == (JobStatus.SUCCEEDED, 2)
    assert all_answered(tmp_path, job.rows)
    assert done.account is not None
    assert done.account.requests <= job.rows + 8  # no more than were in flight
    assert (how in ("refused", "taken")) == any(
        f"job-{job.handle.job_id}." in line and not line.startswith(f"{slurm_id} ")
        for line in slurm.run("squeue", "--states=all", "--format=%i %j").stdout.splitlines()
    )


def now(job: HeldJob) -> JobSnapshot:
    return JobService().status(job.handle)


def test_a_job_that_waits_for_its_next_run_is_cancelled_in_the_queue(
    standing: Standing, slurm: SlurmCluster, tmp_path: Path
) -> None:
    waiting = submit_held(tmp_path, resources=JOB)
    warn(slurm, waiting.handle.platform_id)
    until(lambda: now(waiting).status is JobStatus.PENDING)
    assert JobService().cancel(waiting.handle).status is JobStatus.CANCELLED
    assert waiting.handle.platform_id not in jobs_of(slurm)
    assert now(waiting).status is JobStatus.CANCELLED


# Submits, and kills its caller before that has the answer.
KILLING_SBATCH = """#!/bin/sh
[ -e '{armed}' ] || exec '{real}' "$@"
'{real}' "$@" > '{answer}'
rm '{armed}'
kill -KILL $PPID
"""


@contextlib.contextmanager
def killed_as_they_submit(folder: Path) -> Iterator[Path]:
    """Jobs that are submitted now: once a file is there, the one that this gives, whoever in them
    submits is killed. The answer of Slurm is in the file `answer`.
    """
    stand_in, armed = folder / "bin" / "sbatch", folder / "armed"
    stand_in.parent.mkdir()
    files = {"armed": armed, "answer": folder / "answer", "real": shutil.which("sbatch")}
    stand_in.write_text(KILLING_SBATCH.format(**files))
    stand_in.chmod(0o755)
    with pytest.MonkeyPatch.context() as here:
        here.setenv("PATH", f"{stand_in.parent}:{os.environ['PATH']}")
        yield armed


@pytest.mark.parametrize("how", ["goes on", "cancelled"])
def test_a_successor_whose_submitter_was_killed_is_known(
    standing: Standing, slurm: SlurmCluster, tmp_path: Path, how: str
) -> None:
    with killed_as_they_submit(tmp_path) as armed:
        job = submit_held(tmp_path, resources=JOB)
    slurm_id, paths = job.handle.platform_id, JobPaths(Path(job.handle.job_dir))
    slurm.run("scontrol", "update", f"JobId={slurm_id}", "Requeue=0")
    with taking_nothing(slurm, ",".join(slurm.node_names)):
        armed.touch()
        warn(slurm, slurm_id)
        until(lambda: slurm_id not in live(slurm))
        assert not armed.exists()
        successor = (tmp_path / "answer").read_text().strip()
        assert live(slurm).get(successor) == "PENDING"
        runs = JobRuns.read(paths)
        assert runs is not None
        assert runs.slurm_ids == (slurm_id,)  # nobody wrote its number down
        assert now(job).status is JobStatus.PENDING
        if how == "cancelled":
            assert JobService().cancel(job.handle).status is JobStatus.CANCELLED
            assert successor not in live(slurm)
            return
    until(lambda: now(job).status is JobStatus.RUNNING)
    job.goes_on()
    done = job.release()
    assert (done.status, done.runs) == (JobStatus.SUCCEEDED, 2)
    assert all_answered(tmp_path, job.rows)
    assert done.account is not None
    assert done.account.requests <= job.rows + 8  # no more than were in flight


def live(slurm: SlurmCluster) -> dict[str, str]:
    """All jobs that are not over, with their states."""
    lines = slurm.run("squeue", "--noheader", "--format=%i %T").stdout.splitlines()
    return dict(line.split() for line in lines)


@pytest.mark.parametrize(
    ("how", "status", "word"),
    [
        ("preempted", JobStatus.PREEMPTED, "took its place"),
        ("node", JobStatus.LOST_NODE, "node was lost"),
        ("scancel", JobStatus.CANCELLED, "told to stop"),
        ("cancel", JobStatus.CANCELLED, "told to stop"),
    ],
)
def test_a_detached_job_says_what_ended_it_and_goes_on(
    standing: Standing,
    slurm: SlurmCluster,
    tmp_path: Path,
    *,
    how: str,
    status: JobStatus,
    word: str,
) -> None:
    with told(slurm) as hook:
        job = submit_apart(slurm, tmp_path, ONCE if how in ("preempted", "node") else JOB)
        node = node_of(slurm, job.handle.platform_id)
        end_by(how, slurm, job.handle, node)
        seen, message = said(job.handle)
        if how != "node":  # with which the wrapper may end that would say so
            until(lambda: hook.of("job_ended"))
        heard = [one["status"] for one in hook.of("job_ended")]
        assert heard == [status] or (how, heard) == ("node", [])
    assert seen is status
    assert word in message
    assert f"`domyn-swarm job resume {job.handle.job_id}`" in message
    slurm.run("scontrol", "update", f"nodename={node}", "state=resume")
    (job.folder / "released").touch()
    again = JobService().resume(job.handle)
    assert ended(again).status is JobStatus.SUCCEEDED
    assert all_answered(tmp_path, job.rows)


def end_by(how: str, slurm: SlurmCluster, job: JobHandle, node: str) -> None:
    if how == "preempted":
        preempt(slurm, node)
    elif how == "node":
        slurm.run("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    elif how == "scancel":
        slurm.run("scancel", job.platform_id)
    else:
        JobService().cancel(job)


@pytest.mark.parametrize(
    ("how", "status", "word"),
    [
        (signal.SIGKILL, JobStatus.FAILED, "srun was ended"),  # what it leaves ends the step
        (signal.SIGTERM, JobStatus.FAILED, "srun was ended"),
        (signal.SIGHUP, JobStatus.FAILED, "srun was ended"),
        ("scancel", JobStatus.CANCELLED, "told to stop"),
        ("cancel", JobStatus.CANCELLED, "told to stop"),
    ],
)
def test_a_followed_job_says_what_ended_it(
    standing: Standing,
    slurm: SlurmCluster,
    tmp_path: Path,
    *,
    how: str | int,
    status: JobStatus,
    word: str,
) -> None:
    job = submit_held(tmp_path, resources=STEP)
    if isinstance(how, int):
        srun_of(job)[0].send_signal(how)
    elif how == "scancel":
        slurm.run("scancel", f"{job.handle.platform_id}.{job.handle.step}")
    else:
        JobService().cancel(job.handle)
    seen, message = said(job.handle)
    assert seen is status
    assert word in message
    more = " -d" if status is JobStatus.FAILED else ""
    assert f"`domyn-swarm job resume {job.handle.job_id}{more}`" in message


def test_a_followed_job_whose_endpoint_is_preempted_goes_on_in_an_allocation_of_its_own(
    standing: Standing, slurm: SlurmCluster, tmp_path: Path
) -> None:
    with told(slurm) as hook:
        job = submit_held(tmp_path, resources=STEP)
        preempt(slurm, node_of(slurm, endpoint_job(slurm)))
        until(lambda: now(job).runs == 2)
        until(lambda: now(job).status is JobStatus.RUNNING)
        job.goes_on()
        done = job.release()
        until(lambda: hook.of("job_ended"))
        assert [one["status"] for one in hook.of("job_ended")] == ["succeeded"]
    assert (done.status, done.runs) == (JobStatus.SUCCEEDED, 2)
    assert all_answered(tmp_path, job.rows)
    assert done.account is not None
    assert done.account.requests <= job.rows + 8


def test_a_followed_job_goes_on_when_all_of_its_session_is_killed(
    standing: Standing, tmp_path: Path
) -> None:
    job = submit_held(tmp_path, resources=STEP)
    for process in srun_of(job)[::-1]:
        process.kill()
    job.goes_on()
    assert job.release().status is JobStatus.SUCCEEDED
    assert all_answered(tmp_path, job.rows)
