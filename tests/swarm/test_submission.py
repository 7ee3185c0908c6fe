"""Submissions that break off: the job stays pending until its platform surely has not got it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from domyn_swarm.backends.local.local_compute import LocalCompute
from domyn_swarm.backends.local.processes import JOB, carrying
from domyn_swarm.backends.protocols import ComputeSpec
from domyn_swarm.claims import claim
from domyn_swarm.errors import (
    PlatformError,
    PlatformUnavailable,
    SubmissionUnknown,
    SubmitRejected,
    SwarmError,
)
from domyn_swarm.model import JobHandle, JobStatus, utc_now
from domyn_swarm.paths import JobPaths
from domyn_swarm.services.jobs import JobService
from domyn_swarm.state import JobRecord, SwarmStore
from domyn_swarm.swarm import submitter
from domyn_swarm.swarm.submission import submit_recorded
from patience import limit_s, until

SLEEPS = (sys.executable, "-c", "import time; time.sleep(600)")


class Scheduler(LocalCompute):
    """This machine, which says something else of a submission than what became of it."""

    appears_within_s = 600.0

    def __init__(self) -> None:
        self.takes = True
        self.says: BaseException | None = None
        self.shows = True

    def submit(self, spec: ComputeSpec) -> JobHandle:
        handle = super().submit(spec) if self.takes else None
        if self.says is not None:
            raise self.says
        assert handle is not None
        return handle

    def find(self, job_id: str, job_dir: str) -> JobHandle | None:
        return super().find(job_id, job_dir) if self.shows else None


@pytest.fixture
def scheduler(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scheduler]:
    made = Scheduler()
    monkeypatch.setattr(submitter, "compute_backend", lambda _platform: made)
    yield made
    made.shows = True
    for job in SwarmStore.open().jobs():
        if not job.status.final and made.find(job.job_id, job.job_dir):
            JobService().cancel(job.job_id)


def record(folder: Path, age_s: float = 0.0, job_id: str = "job-1") -> JobRecord:
    return JobRecord(
        job_id=job_id,
        name="x",
        swarm=None,
        platform="local",
        status=JobStatus.PENDING,
        job_dir=str(folder / job_id),
        input="in",
        output="out",
        submitted_at=utc_now() - timedelta(seconds=age_s),
    )


def compute(known: JobRecord, folder: Path) -> ComputeSpec:
    return ComputeSpec(
        job_id=known.job_id,
        swarm=None,
        tag=None,
        argv=SLEEPS,
        cwd=str(folder),
        job_dir=known.job_dir,
    )


def submit(scheduler: Scheduler, folder: Path, says: BaseException | None) -> JobHandle:
    scheduler.says = says
    known = record(folder)
    return submit_recorded(SwarmStore.open(), scheduler, known, compute(known, folder))


TIMED_OUT = "sbatch: Socket timed out on send/recv operation."


def test_a_job_that_the_platform_took_without_saying_so_is_found_at_once(
    scheduler: Scheduler, tmp_path: Path
) -> None:
    handle = submit(scheduler, tmp_path, SubmissionUnknown(TIMED_OUT))
    assert SwarmStore.open().job("job-1").handle == handle
    assert JobService().status("job-1").status is JobStatus.RUNNING


@pytest.mark.parametrize(
    "broken_by", [SubmissionUnknown(TIMED_OUT), KeyboardInterrupt(), OSError(116, "ESTALE")]
)
def test_a_submission_that_broke_off_is_pending_until_the_job_is_seen(
    scheduler: Scheduler,
    tmp_path: Path,
    broken_by: BaseException,
    caplog: pytest.LogCaptureFixture,
) -> None:
    scheduler.shows = False
    told_as = SubmissionUnknown if isinstance(broken_by, OSError) else type(broken_by)
    with pytest.raises(told_as) as caught:
        submit(scheduler, tmp_path, broken_by)
    told = str(caught.value) + caplog.text
    assert "may have been submitted" in told
    assert "domyn-swarm job cancel job-1" in told
    service = JobService()
    assert service.status("job-1").status is JobStatus.PENDING
    with pytest.raises(PlatformUnavailable, match="does not show the job job-1 yet"):
        service.cancel("job-1")
    assert service.wait("job-1", timeout_s=0.1).status is JobStatus.PENDING
    scheduler.shows = True
    until(lambda: service.status("job-1").status is JobStatus.RUNNING)
    assert service.cancel("job-1").status is JobStatus.CANCELLED


@pytest.mark.parametrize(
    "refusal", [SubmitRejected("invalid account"), PlatformError("no such program")]
)
def test_a_job_that_was_surely_refused_has_failed(
    scheduler: Scheduler, tmp_path: Path, refusal: SwarmError
) -> None:
    scheduler.takes = False
    with pytest.raises(type(refusal)):
        submit(scheduler, tmp_path, refusal)
    assert SwarmStore.open().job("job-1").status is JobStatus.FAILED


@pytest.mark.parametrize(
    ("age_s", "submitting", "status"),
    [
        (500.0, False, JobStatus.PENDING),  # it may yet appear
        (900.0, True, JobStatus.PENDING),  # its submitter waits for an answer
        (900.0, False, JobStatus.FAILED),
    ],
)
def test_a_job_that_its_platform_does_not_have_is_lost_once_nobody_submits_it(
    scheduler: Scheduler, tmp_path: Path, age_s: float, *, submitting: bool, status: JobStatus
) -> None:
    scheduler.shows = False
    known = record(tmp_path, age_s)
    SwarmStore.open().create_job(known)
    if submitting:
        claim(JobPaths(Path(known.job_dir)).submitter)
    seen = JobService().status("job-1")
    assert seen.status is status
    assert ("interrupted" in (seen.message or "")) is (status is JobStatus.FAILED)


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from domyn_swarm.backends.local.local_compute import LocalCompute
from domyn_swarm.state import SwarmStore
from domyn_swarm.swarm.submission import submit_recorded
from swarm.test_submission import compute, record

class Killed(LocalCompute):
    def submit(self, spec):
        super().submit(spec)
        os.kill(os.getpid(), signal.{signal})

folder = Path({folder!r})
known = record(folder)
submit_recorded(SwarmStore.open(), Killed(), known, compute(known, folder))
"""


@pytest.mark.parametrize("signal", ["SIGKILL", "SIGTERM"])
def test_a_submitter_that_is_killed_before_it_has_the_answer_loses_no_job(
    tmp_path: Path, signal: str
) -> None:
    tests = str(Path(__file__).parents[1])
    program = KILLED.format(tests=tests, folder=str(tmp_path), signal=signal)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, timeout=limit_s(), check=False
    )
    assert done.returncode < 0, done.stderr
    assert SwarmStore.open().job("job-1").handle is None
    service = JobService()
    assert service.status("job-1").status is JobStatus.RUNNING
    assert service.cancel("job-1").status is JobStatus.CANCELLED
    assert carrying(JOB, "job-1") == {}
