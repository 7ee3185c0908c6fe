"""The runs of a job with its own allocation: it continues under the same job id until its rows are
settled, through time limits, preemptions, requeues and lost nodes.

Slurm runs the job's script again, with the same Slurm id (a requeue) or a new one (a successor, if
the site forbids requeueing). Each run (`job_task`) updates `runs.json` in the job's folder, from
which readers learn the job's Slurm ids. A successor is announced in it before it
is submitted: until its number is there too, it is known by its name or comment.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from typing_extensions import override

from domyn_swarm.backends.job_end import read_tail, unreadable
from domyn_swarm.backends.slurm.task import Returning
from domyn_swarm.errors import (
    EXIT_FAILED_ROWS,
    EXIT_OK,
    CommandMissing,
    PlatformError,
    SubmitRejected,
)
from domyn_swarm.logs import get_logger
from domyn_swarm.paths import JobPaths, write_private
from domyn_swarm.probing import Clock, comes_true
from domyn_swarm.replaced_files import read_replaced
from domyn_swarm.restart_budget import RestartPolicy

if TYPE_CHECKING:
    from domyn_swarm.backends.slurm.ending import Scheduler
    from domyn_swarm.backends.slurm.slurm_states import OwnEnd, SlurmJob

_log = get_logger(__name__)

_LOOK_S = 0.2
_AGAIN_S = 1.0  # a run that Slurm is ending has only moments left
# Consecutive short runs without a settled row; a longer run had something to wait for.
_FRUITLESS = RestartPolicy(most=3, progress_s=600.0)
ComesBack = Literal["itself", "asks", "successor"]
"""How a job continues: Slurm has requeued it; it can requeue itself while it has time; or it is
ended permanently (`PreemptMode=CANCEL`) and a successor has to continue.
"""
Over = Literal["settled", "cancelled", "stop_after", "fruitless"]


@dataclass(frozen=True)
class JobRuns:
    """The contents of `runs.json`. Times are in seconds since the epoch."""

    number: int  # of the run that began last
    # of all runs, the requested next one included; the last one is current
    slurm_ids: tuple[str, ...]
    first_began_at: float
    began_at: float
    log_from: int = 0  # byte offset in the job's log at which the last run's part begins
    fruitless: int = 0  # consecutive short runs without a settled row, before the last run
    over: Over | None = None  # why the last run was refused
    reason: str | None = None  # the same as a sentence
    successor_asked_at: float | None = None  # when one was submitted, until its id is kept

    @classmethod
    def read(cls, paths: JobPaths) -> JobRuns | None:
        """The recorded runs; None: the job has not started, or does not continue by itself.

        Raises:
            PlatformUnavailable: they cannot be read: the job may have a run that is not known.
        """
        try:
            text = read_replaced(paths.runs)
            if text is None:
                return None
            found = dict(json.loads(text))
            return cls(**{**found, "slurm_ids": tuple(found["slurm_ids"])})
        except OSError as error:
            raise unreadable(error, paths.runs) from error
        except (ValueError, TypeError, KeyError):  # of another version
            return None

    def write(self, paths: JobPaths) -> None:
        """Write the file.

        Raises:
            OSError: it cannot be written.
        """
        write_private(paths.runs, json.dumps(asdict(self)))

    def unrecorded(self, queue: Mapping[str, SlurmJob], job_id: str) -> list[SlurmJob]:
        """The job's runs in the queue whose Slurm ids are not recorded, older ones first: their
        submitter was killed, or got no answer.
        """
        from domyn_swarm.backends.slurm.queue import is_job  # most readers do not ask Slurm

        found = [job for job in queue.values() if is_job(job, job_id)]
        return sorted((job for job in found if job.id not in self.slurm_ids), key=_number)

    @property
    def first_began(self) -> datetime:
        """When the first run began."""
        return datetime.fromtimestamp(self.first_began_at, UTC)

    def left_s(self, stop_after_s: float | None, now: float) -> float:
        """Seconds for which the job may continue."""
        return math.inf if stop_after_s is None else self.first_began_at + stop_after_s - now


def cancelled_word(paths: JobPaths) -> Path:
    """Path of the file that `cancel` writes. It prevents a further run."""
    return paths.runs.with_name("cancelled")


def next_script(paths: JobPaths) -> Path:
    """Path of the batch script for the next run of a job that is a step. Other jobs resubmit their
    own script.
    """
    return paths.runs.with_name("next_run.sh")


def begin_run(paths: JobPaths, slurm_id: str, stop_after_s: float | None, now: float) -> JobRuns:
    """Record that a run begins, and whether it may; `over` says why not. How the previous run went
    is read from the files it left.

    Args:
        paths: of the job.
        slurm_id: Slurm's id of this run.
        stop_after_s: no run begins later than this after the first one.
        now: in seconds since the epoch.

    Raises:
        OSError: it cannot be written.
        PlatformUnavailable: the earlier runs cannot be read.
    """
    before = JobRuns.read(paths)
    fruitless = before is not None and _settled_nothing(before, paths)
    runs = following(before, slurm_id, now, fruitless=fruitless)
    log_from = paths.log.stat().st_size if paths.log.exists() else 0
    settled = _read(paths.exit).get("code") in (EXIT_OK, EXIT_FAILED_ROWS)
    cancelled = cancelled_word(paths).exists()
    over, reason = why_over(runs, stop_after_s, now, settled=settled, cancelled=cancelled)
    runs = replace(runs, log_from=log_from, over=over, reason=reason)
    runs.write(paths)
    return runs


def following(before: JobRuns | None, slurm_id: str, now: float, *, fruitless: bool) -> JobRuns:
    """A run that begins now, after the earlier ones. `fruitless`: the last run was short and
    settled no row.
    """
    if before is None:
        return JobRuns(1, (slurm_id,), now, now)
    known = before.slurm_ids
    return replace(
        before,
        number=before.number + 1,
        slurm_ids=known if slurm_id in known else (*known, slurm_id),
        began_at=now,
        fruitless=before.fruitless + 1 if fruitless else 0,
        # A run of a known number is not the successor that was announced.
        successor_asked_at=before.successor_asked_at if slurm_id in known else None,
    )


def was_fruitless(settled: int, lived_s: float) -> bool:
    """Whether a run settled no row and was short."""
    return settled == 0 and not _FRUITLESS.is_progress(lived_s)


def why_over(
    runs: JobRuns, stop_after_s: float | None, now: float, *, settled: bool, cancelled: bool
) -> tuple[Over | None, str | None]:
    """Why a run that would begin now is refused, with a sentence if there is more to say."""
    if settled:
        return "settled", None
    if cancelled:
        return "cancelled", None
    if runs.left_s(stop_after_s, now) <= 0:
        return "stop_after", None
    if not _FRUITLESS.allows(runs.fruitless):
        return "fruitless", (
            f"its last {runs.fruitless} runs settled no row, and each ended within "
            f"{_FRUITLESS.progress_s / 60:g} minutes"
        )
    return None, None


def comes_back(end: OwnEnd | None, restarts: int, *, step: bool) -> ComesBack | None:
    """How a run that Slurm is ending, and that nobody has cancelled, is followed by another run.
    None: it is not, or that is not known.

    Args:
        end: what Slurm does with the run's job, or with the allocation of its step.
        restarts: how often that job or allocation had been restarted when this run began.
        step: the run is a step; Slurm never restarts one.
    """
    if end is None or not (end.preempted or end.restarts > restarts):
        return None
    if step:
        return "successor"
    if end.restarts > restarts:
        return "itself"
    return "asks" if end.has_grace else "successor"


def _settled_nothing(run: JobRuns, paths: JobPaths) -> bool:
    """Whether a run was short and settled no row, by its last progress file."""
    progress, ended = _read(paths.progress), _read(paths.exit)
    updated = _epoch(progress.get("updated_at"))
    lived_s = max(updated, _epoch(ended.get("ended_at"))) - run.began_at
    settled = 0
    if updated > run.began_at:  # else written by an earlier run
        settled = progress.get("run_answered", 0) + progress.get("run_failed", 0)
    return was_fruitless(settled, lived_s)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError):
        return {}


def _number(job: SlurmJob) -> int:
    return int(job.id.partition("_")[0])


def _epoch(text: str | None) -> float:
    return 0.0 if text is None else datetime.fromisoformat(text).timestamp()


class NextRun(Returning):
    """Requests a further run for a job whose run has ended, unless the job is ended permanently
    meanwhile.
    """

    def __init__(
        self,
        paths: JobPaths,
        runs: JobRuns,
        stopped: Callable[[], bool],
        *,
        slurm: Scheduler | None = None,
        clock: Clock = time,
    ) -> None:
        """`stopped` returns whether this process received a signal to end."""
        # here: readers of `runs.json` do not ask the scheduler
        from domyn_swarm.backends.slurm.commands import Slurm

        self._paths = paths
        self._runs = runs
        self._stopped = stopped
        self._slurm = slurm or Slurm()
        self._clock = clock

    @property
    @override
    def goes_back(self) -> bool:
        return not self._stopped() and not cancelled_word(self._paths).exists()

    @override
    def heed(self) -> None:
        """Do nothing: a job needs no preparation for its end."""

    @override
    def rest(self, seconds: float) -> None:
        """Wait for so long, or until the job is ended."""
        comes_true(lambda: not self.goes_back, within_s=seconds, every_s=_LOOK_S, clock=self._clock)

    def ask(self, *, by_requeue: bool) -> bool:
        """Requeue the job or submit its successor; return whether there is a next run. While the
        controller does not answer, the request is repeated until this job is ended.
        """
        from domyn_swarm.backends.slurm.task import come_back

        now = self._runs.slurm_ids[-1]
        return come_back(
            self, now, by_requeue=by_requeue, successor=self._succeed, slurm=self._slurm
        )

    def succeed(self, *, once_over: str | None = None) -> bool:
        """Submit the job's successor while Slurm is already ending this run; return whether there
        is one. With `once_over` it starts after that job has ended. The submission is repeated
        until it succeeds or this process is killed.
        """
        while not cancelled_word(self._paths).exists():
            try:
                self._succeed(once_over)
                return True
            except CommandMissing as error:
                _log.error("the job cannot submit its successor: %s", error.message)
                return False
            except (OSError, PlatformError) as error:
                _log.warning("the job submits its successor again: %s", error)
                self._clock.sleep(_AGAIN_S)
        return False

    def _succeed(self, once_over: str | None = None) -> None:
        """Submit the script again, unless Slurm already has the successor from a task that was
        killed or got no answer. `runs.json` announces it from before the submission until its id is
        recorded.
        """
        successor = self._taken()
        if successor is None:
            script = next_script(self._paths)  # of a job that is a step
            script = script if script.exists() else self._paths.script
            before = self._runs
            self._keep(replace(before, successor_asked_at=self._clock.time()))
            try:
                successor = self._slurm.submit(script, once_over=once_over)
            except (SubmitRejected, CommandMissing):  # surely not submitted
                self._keep(before)
                raise
        _log.info("it continues as Slurm's job %s", successor)
        known = self._runs.slurm_ids
        ids = known if successor in known else (*known, successor)
        self._keep(replace(self._runs, slurm_ids=ids, successor_asked_at=None))
        stopped = once_over is None and self._stopped()
        if stopped or cancelled_word(self._paths).exists():  # a `cancel` meanwhile missed this id
            self._slurm.cancel([successor])

    def _keep(self, runs: JobRuns) -> None:
        runs.write(self._paths)
        self._runs = runs

    def _taken(self) -> str | None:
        """The Slurm id of a further run that is already waiting or running; None: there is none."""
        queue, job_id = self._slurm.queue(at_most_s=0.0), self._paths.root.name
        known = [queue[one] for one in self._runs.slurm_ids if one in queue]
        back = [job.id for job in known if job.waiting]  # requeued already
        new = [job.id for job in self._runs.unrecorded(queue, job_id) if not job.over]
        return next(reversed([*back, *new]), None)


def last_words(paths: JobPaths) -> str:
    """The end of a job's log, without the parts of earlier runs."""
    runs = JobRuns.read(paths)
    return read_tail(paths.log, 0 if runs is None else runs.log_from)
