"""When a job that goes on by itself runs once more, and when it does not: in virtual time."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from domyn_swarm.backends.slurm.job_runs import (
    JobRuns,
    NextRun,
    begin_run,
    cancelled_word,
    comes_back,
    next_script,
)
from domyn_swarm.backends.slurm.slurm_compute import SlurmCompute
from domyn_swarm.backends.slurm.slurm_states import OwnEnd
from domyn_swarm.backends.slurm.submissions import TAKEN_WITHIN_S
from domyn_swarm.errors import PlatformUnavailable, SubmitRejected
from domyn_swarm.model import JobStatus
from domyn_swarm.paths import write_private
from slurm.scripted import ScriptedSlurm
from slurm.scripted_swarm import TAG, ScriptedSwarm
from slurm.test_job_rules import DUE, ScriptedJob

HOUR_S = 3600.0


class GoingOn(ScriptedJob):
    """A job of which each run does what tests say."""

    def __init__(self, swarm: ScriptedSwarm, *, step: bool = False) -> None:
        super().__init__(swarm, step=step)
        self.stopped = False
        self.stop_after_s: float | None = None

    def begin(self) -> JobRuns:
        """As `job_task` does."""
        runs = begin_run(self.paths, self.live, self.stop_after_s, self.clock.time())
        if runs.over is None:
            self.paths.exit.unlink(missing_ok=True)
        return runs

    def run(self, lasts_s: float, settled: int) -> JobRuns:
        """A run of which no more is left than what its worker wrote last."""
        runs = self.begin()
        self.clock.sleep(lasts_s)
        at = datetime.fromtimestamp(self.clock.time(), UTC).isoformat()
        progress = {"run_answered": settled, "run_failed": 0, "updated_at": at}
        write_private(self.paths.progress, json.dumps(progress))
        return runs

    @property
    def live(self) -> str:
        """Slurm's number of the run that is not over."""
        return self.all_live[0]

    @property
    def all_live(self) -> list[str]:
        """Slurm's numbers of all runs that are not over."""
        jobs = self.cluster.jobs.values()
        return [one.id for one in jobs if not one.seen.over and one.comment.endswith("/job/j")]

    def ask(self, *, by_requeue: bool = True) -> bool:
        """What a run that was warned of its time limit does once its program has ended."""
        runs = JobRuns.read(self.paths)
        assert runs is not None
        self.record(143, time_limit=True)
        slurm = self.cluster.process()
        following = NextRun(self.paths, runs, lambda: self.stopped, slurm=slurm, clock=self.clock)
        return following.ask(by_requeue=by_requeue)

    def begin_late(self) -> JobRuns:
        """As a run does of which nobody knew."""
        return begin_run(self.paths, "99", self.stop_after_s, self.clock.time())

    def runs_again(self) -> None:
        self.clock.until(lambda: self.cluster.live().get(self.live) == "RUNNING")


@pytest.fixture
def job(swarm: ScriptedSwarm) -> GoingOn:
    return GoingOn(swarm)


@pytest.mark.parametrize(
    ("runs", "over"),
    [
        ([(100, 0)] * 3, "fruitless"),
        ([(100, 0)] * 2, None),
        ([(100, 0)] * 2 + [(100, 1)] + [(100, 0)] * 2, None),  # not in a row
        ([(100, 5)] * 2 + [(100, 0)] * 3, "fruitless"),
        ([(599, 0)] * 3, "fruitless"),
        ([(601, 0)] * 30, None),  # it had something to wait for
        ([(100, 0)] * 2 + [(601, 0)] + [(100, 0)] * 2, None),
        ([(30, 1)] * 30, None),
    ],
)
def test_three_short_runs_in_a_row_that_settle_no_row_are_the_last_ones(
    job: GoingOn, runs: list[tuple[float, int]], over: str | None
) -> None:
    for lasts_s, settled in runs:
        assert job.run(lasts_s, settled).over is None
    last = job.begin()
    assert (last.number, last.over) == (len(runs) + 1, over)
    assert (last.reason is not None) == (over is not None)


def test_rows_of_an_earlier_run_are_not_those_of_one_that_wrote_nothing(job: GoingOn) -> None:
    job.run(100, 50)
    for _ in range(3):
        assert job.begin().over is None
        job.clock.sleep(1.0)
    assert job.begin().over == "fruitless"


def test_no_run_begins_after_the_time_that_its_user_set(job: GoingOn) -> None:
    job.stop_after_s = 3 * HOUR_S
    first = job.run(HOUR_S, 5)
    assert first.left_s(job.stop_after_s, job.clock.time()) == 2 * HOUR_S
    job.clock.sleep(HOUR_S)  # in the queue, which counts
    assert job.run(HOUR_S - 1, 5).over is None
    assert job.begin().over is None
    job.clock.sleep(1.0)
    assert job.begin().over == "stop_after"


def test_a_job_that_has_come_to_its_end_is_not_run_once_more(job: GoingOn) -> None:
    job.run(10, 5)
    job.record(7)  # as when somebody requeues what is over
    assert job.begin().over == "settled"
    assert job.compute.probe(job.handle) is JobStatus.PARTIAL


def test_a_warned_job_goes_back_under_its_number_and_is_pending_meanwhile(job: GoingOn) -> None:
    job.begin()
    job.clock.after(1.5, lambda: setattr(job, "stopped", True))  # Slurm ends what it requeues
    assert job.ask()
    job.clock.until(lambda: job.cluster.live()[job.id] == "PENDING")
    for _ in range(20):
        assert job.compute.probe(job.handle) in (JobStatus.PENDING, JobStatus.RUNNING)
        job.clock.sleep(30.0)
    assert job.compute.probe(job.handle) is JobStatus.RUNNING  # though its modules load for minutes
    runs = job.begin()
    assert (runs.number, runs.slurm_ids) == (2, (job.id,))
    job.end("COMPLETED", 0)
    assert job.compute.probe(job.handle) is JobStatus.SUCCEEDED


@pytest.mark.parametrize("by_requeue", [True, False])
def test_where_requeueing_is_refused_a_successor_is_followed(
    job: GoingOn, *, by_requeue: bool
) -> None:
    job.cluster.jobs[job.id].requeues = False
    job.begin()
    assert job.ask(by_requeue=by_requeue)
    job.cluster.end(job.id, "FAILED")  # it ends with its program's code
    assert job.compute.probe(job.handle) is JobStatus.PENDING
    assert job.live != job.id
    job.runs_again()
    assert job.compute.probe(job.handle) is JobStatus.RUNNING
    runs = job.begin()
    assert (runs.number, runs.slurm_ids) == (2, (job.id, job.live))
    found = job.compute.find("j", job.handle.job_dir)
    assert found is not None
    assert found.platform_id == job.live
    job.cluster.end(job.live, "TIMEOUT")
    job.clock.sleep(20.0)  # no look is older
    assert job.compute.probe(job.handle) is JobStatus.TIMED_OUT


ENDS: dict[str, tuple[OwnEnd | None, int, bool, str | None]] = {
    "somebody ended it": (OwnEnd("COMPLETING", preempted=False, restarts=0), 0, False, None),
    "Slurm does not know it": (None, 0, False, None),
    "put back": (OwnEnd("COMPLETING", preempted=False, restarts=2), 1, False, "itself"),
    "an earlier time": (OwnEnd("COMPLETING", preempted=False, restarts=1), 1, False, None),
    "cancelled for another": (
        OwnEnd("COMPLETING", preempted=True, restarts=0),
        0,
        False,
        "successor",
    ),
    "is over already": (OwnEnd("PREEMPTED", preempted=True, restarts=0), 0, False, "successor"),
    "has time": (OwnEnd("RUNNING", preempted=True, restarts=0), 0, False, "asks"),
    "a step, put back": (OwnEnd("COMPLETING", preempted=False, restarts=1), 0, True, "successor"),
    "a step, cancelled": (OwnEnd("COMPLETING", preempted=True, restarts=0), 0, True, "successor"),
    "a step, by somebody": (OwnEnd("RUNNING", preempted=False, restarts=0), 0, True, None),
}


@pytest.mark.parametrize("case", ENDS)
def test_how_a_run_that_is_told_to_end_is_followed_by_another(case: str) -> None:
    end, restarts, step, how = ENDS[case]
    assert comes_back(end, restarts, step=step) == how


def test_what_slurm_cancels_for_another_job_has_a_successor_that_waits_for_its_end(
    job: GoingOn,
) -> None:
    runs = job.begin()
    slurm, first = job.cluster.process(), job.id
    job.cluster.jobs[first].requeues = False
    job.cluster.ends_s = 30.0
    job.cluster.preempt(first)
    assert comes_back(slurm.own_end(first), 0, step=False) == "successor"
    following = NextRun(job.paths, runs, lambda: True, slurm=slurm, clock=job.clock)
    assert following.succeed(once_over=first)
    job.clock.sleep(29.0)
    successor = JobRuns.read(job.paths).slurm_ids[-1]  # type: ignore[union-attr]
    assert job.cluster.live() == {**job.cluster.live(), first: "COMPLETING", successor: "PENDING"}
    job.record(143)
    job.clock.until(lambda: job.cluster.live().get(successor) == "RUNNING")
    assert job.compute.probe(job.handle) is JobStatus.RUNNING
    assert job.begin().number == 2


def test_one_that_is_cancelled_as_slurm_takes_its_place_has_no_successor(job: GoingOn) -> None:
    runs = job.begin()
    cancelled_word(job.paths).touch()
    following = NextRun(job.paths, runs, lambda: True, slurm=job.cluster.process(), clock=job.clock)
    assert not following.succeed(once_over=job.id)
    assert set(job.cluster.live().values()) == {"RUNNING"}


def test_a_successor_is_asked_for_while_the_controller_is_away(job: GoingOn) -> None:
    runs = job.begin()
    job.cluster.away(20.0)
    following = NextRun(job.paths, runs, lambda: True, slurm=job.cluster.process(), clock=job.clock)
    assert following.succeed(once_over=job.id)
    assert "PENDING" in job.cluster.live().values()


def test_a_step_whose_endpoint_moves_goes_on_in_an_allocation_of_its_own(
    swarm: ScriptedSwarm,
) -> None:
    job = GoingOn(swarm, step=True)
    step = f"{job.id}.{job.handle.step}"
    for _ in range(20):  # so that looks have become rare
        assert job.compute.probe(job.handle) is JobStatus.RUNNING
        job.clock.sleep(5.0)
    begin_run(job.paths, step, None, job.clock.time())
    next_script(job.paths).write_text(f"#SBATCH --comment=domyn-swarm/{TAG}/job/j\n")
    assert job.ask(by_requeue=False)
    job.cluster.end_step(step)
    assert job.compute.probe(job.handle) is JobStatus.PENDING
    assert job.compute.probe_all([job.handle]) == {"j": JobStatus.PENDING}
    job.runs_again()
    assert job.begin().slurm_ids == (step, job.live)
    assert job.compute.probe(job.handle) is JobStatus.RUNNING
    job.record(0)
    assert job.compute.probe(job.handle) is JobStatus.SUCCEEDED


def test_a_submission_without_an_answer_is_not_repeated(job: GoingOn) -> None:
    job.begin()
    taken = job.cluster.process().submit(job.paths.script)
    job.cluster.room = False
    assert job.ask(by_requeue=False)
    runs = JobRuns.read(job.paths)
    assert runs is not None
    assert runs.slurm_ids == (job.id, taken)


def test_runs_that_cannot_be_read_are_unknown_and_not_begun_anew(job: GoingOn) -> None:
    """Slurm forgets the first run; only the file says that there is another one."""
    job.stop_after_s = 3 * HOUR_S
    job.begin()
    first = job.live
    assert job.ask(by_requeue=False)
    job.cluster.end(first, "TIMEOUT")
    job.runs_again()
    before = job.begin()
    assert job.compute.probe(job.handle) is JobStatus.RUNNING
    written = job.paths.runs.rename(job.paths.root / "aside")
    job.paths.runs.mkdir()
    with pytest.raises(PlatformUnavailable, match=r"runs\.json: Is a directory"):
        job.compute.probe(job.handle)
    assert job.compute.probe_all([job.handle]) == {}
    with pytest.raises(PlatformUnavailable):
        job.begin()
    job.paths.runs.rmdir()
    written.rename(job.paths.runs)
    assert JobRuns.read(job.paths) == before
    assert job.compute.probe(job.handle) is JobStatus.RUNNING


class Killed(BaseException):
    """SIGKILL: nothing of the process runs any more."""


class KilledSubmitter:
    """The scheduler of a process that is killed as it submits, once Slurm has the job or before."""

    def __init__(self, slurm: ScriptedSlurm, *, taken: bool) -> None:
        self._slurm = slurm
        self._taken = taken
        self.submitted: str | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._slurm, name)

    def submit(self, script: Path, *, once_over: str | None = None) -> str:
        if self._taken:
            self.submitted = self._slurm.submit(script, once_over=once_over)
        raise Killed


def killed_as_it_submits(job: GoingOn, *, taken: bool) -> str | None:
    """A run ends at its time limit, and its task is killed as it submits the next one; what Slurm
    took of that.
    """
    job.begin()
    job.record(143, time_limit=True)
    runs = JobRuns.read(job.paths)
    assert runs is not None
    slurm = KilledSubmitter(job.cluster.process(), taken=taken)
    following = NextRun(job.paths, runs, lambda: False, slurm=slurm, clock=job.clock)
    with pytest.raises(Killed):
        following.ask(by_requeue=False)
    job.cluster.end(job.id, "FAILED")
    return slurm.submitted


def test_a_successor_that_nobody_could_record_is_found(job: GoingOn) -> None:
    job.cluster.room = False
    successor = killed_as_it_submits(job, taken=True)
    fresh = SlurmCompute(job.cluster.process(), job.clock)
    for compute in (job.compute, fresh):
        assert compute.probe(job.handle) is JobStatus.PENDING
        assert compute.probe_all([job.handle]) == {"j": JobStatus.PENDING}
        assert compute.why_waiting([job.handle]).keys() <= {"j"}
    job.clock.sleep(10 * TAKEN_WITHIN_S)  # it waits for long
    assert job.compute.probe(job.handle) is JobStatus.PENDING
    job.cluster.room = True
    job.runs_again()
    job.clock.sleep(20.0)  # no look is older
    assert job.compute.probe(job.handle) is JobStatus.RUNNING
    runs = job.begin()  # which records itself
    assert (runs.number, runs.slurm_ids) == (2, (job.id, successor))
    assert runs.successor_asked_at is None
    job.cluster.end(job.live, "COMPLETED")
    job.record(0)
    assert job.compute.probe(job.handle) is JobStatus.SUCCEEDED


def test_a_successor_that_nobody_could_record_is_cancelled(job: GoingOn) -> None:
    job.cluster.room = False
    killed_as_it_submits(job, taken=True)
    job.compute.cancel(job.handle)
    assert job.all_live == []
    assert job.compute.probe(job.handle) is JobStatus.CANCELLED
    assert job.begin_late().over == "cancelled"


def test_a_successor_that_slurm_may_yet_take_is_waited_for_and_not_for_ever(job: GoingOn) -> None:
    killed_as_it_submits(job, taken=False)
    assert job.compute.probe(job.handle) is JobStatus.PENDING
    job.clock.sleep(TAKEN_WITHIN_S - 1.0)
    assert job.compute.probe(job.handle) is JobStatus.PENDING
    job.clock.sleep(2.0)
    assert job.compute.probe(job.handle) is JobStatus.TIMED_OUT


def test_a_successor_that_slurm_may_yet_take_is_cancelled_beforehand(job: GoingOn) -> None:
    killed_as_it_submits(job, taken=False)
    job.compute.cancel(job.handle)
    assert job.compute.probe(job.handle) is JobStatus.CANCELLED
    assert job.begin_late().over == "cancelled"


@pytest.mark.parametrize("state", ["PENDING", "RUNNING"])
def test_what_was_taken_from_a_killed_run_is_not_submitted_once_more(
    job: GoingOn, state: str
) -> None:
    """Also where the successor has begun, and has not written a word yet."""
    job.cluster.room = state == "RUNNING"
    successor = killed_as_it_submits(job, taken=True)
    assert successor is not None
    job.clock.until(lambda: job.cluster.live()[successor] == state)
    again = JobRuns.read(job.paths)
    assert again is not None
    following = NextRun(
        job.paths, again, lambda: False, slurm=job.cluster.process(), clock=job.clock
    )
    following._succeed()
    kept = JobRuns.read(job.paths)
    assert kept is not None
    assert (kept.slurm_ids, kept.successor_asked_at) == ((job.id, successor), None)
    assert job.all_live == [successor]


def test_a_refused_submission_announces_nothing(job: GoingOn) -> None:
    job.begin()
    refused = job.cluster.process()
    refused.submit = _refuses  # type: ignore[method-assign]
    runs = JobRuns.read(job.paths)
    assert runs is not None
    following = NextRun(job.paths, runs, lambda: False, slurm=refused, clock=job.clock)
    with pytest.raises(SubmitRejected):
        following._succeed()
    assert JobRuns.read(job.paths) == runs


def _refuses(script: Path, **_: object) -> str:
    raise SubmitRejected(f"Slurm refused {script.name}: no", hint="")


def test_the_way_back_is_asked_for_while_the_controller_is_away(job: GoingOn) -> None:
    job.begin()
    job.cluster.away(60.0)
    job.clock.after(70.0, lambda: setattr(job, "stopped", True))
    assert job.ask()
    job.clock.until(lambda: job.cluster.live()[job.id] == "PENDING")


@pytest.mark.parametrize("by_requeue", [True, False])
@pytest.mark.parametrize("how", ["told", "cancelled"])
def test_who_is_ended_meanwhile_does_not_come_back(
    job: GoingOn, how: str, *, by_requeue: bool
) -> None:
    job.begin()
    if how == "told":
        job.stopped = True
    else:
        cancelled_word(job.paths).touch()
    assert not job.ask(by_requeue=by_requeue)
    assert set(job.cluster.live().values()) == {"RUNNING"}
    assert job.begin().over == (None if how == "told" else "cancelled")


@pytest.mark.parametrize("by_requeue", [True, False])
def test_a_job_is_cancelled_in_the_queue_between_its_runs(
    job: GoingOn, *, by_requeue: bool
) -> None:
    job.begin()
    job.clock.after(1.5, lambda: setattr(job, "stopped", True))
    assert job.ask(by_requeue=by_requeue)
    if not by_requeue:
        job.cluster.end(job.id, "FAILED")
    job.cluster.room = False
    job.clock.until(lambda: job.compute.probe(job.handle) is JobStatus.PENDING)
    job.compute.cancel(job.handle)
    assert job.all_live == []
    assert job.compute.probe(job.handle) is JobStatus.CANCELLED
    job.clock.sleep(job.cluster.min_job_age_s + 1)
    assert job.compute.probe(job.handle) is JobStatus.CANCELLED
    late = begin_run(job.paths, "99", None, job.clock.time())  # of which nobody knew
    assert late.over == "cancelled"


def test_what_slurm_wrote_of_an_earlier_run_says_nothing_of_the_last_one(job: GoingOn) -> None:
    job.begin()
    job.paths.log.write_text(DUE.format(f"JOB {job.id}", "PREEMPTION"))
    job.record(143)
    assert job.compute.probe(job.handle) is JobStatus.RUNNING  # it was put back meanwhile
    job.begin()
    job.end("FAILED", 1)
    assert job.compute.probe(job.handle) is JobStatus.FAILED


def test_a_swarm_that_ends_after_a_job_waits_for_its_next_run(
    job: GoingOn, swarm: ScriptedSwarm
) -> None:
    from domyn_swarm.backends.slurm.slurm_platform import SlurmPlatform

    platform = SlurmPlatform(swarm.paths, TAG, slurm=swarm.cluster.process(), clock=job.clock)
    job.begin()
    job.clock.after(1.5, lambda: setattr(job, "stopped", True))
    assert job.ask()
    assert not platform.job_over(job.handle)
    job.clock.sleep(10.0)
    assert not platform.job_over(job.handle)
    job.cluster.room = True
    job.runs_again()
    job.begin()
    job.end("COMPLETED", 0)
    assert platform.job_over(job.handle)
