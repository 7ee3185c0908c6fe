"""Why a job ended and what to do next, from its status and its files."""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

from domyn_swarm.backends.job_end import read_exit, read_tail
from domyn_swarm.backends.slurm.job_runs import JobRuns
from domyn_swarm.backends.slurm.step_log import srun_was_ended, srun_was_killed
from domyn_swarm.errors import EXIT_BUDGET_SPENT, JobError, StateError, words_of
from domyn_swarm.jobs.worker_spec import JobResult, JobSpec
from domyn_swarm.model import JobStatus, Reach
from domyn_swarm.paths import JobPaths
from domyn_swarm.planning.plan import JobResources
from domyn_swarm.state import JobRecord


def status_by_files(record: JobRecord, where: Reach) -> JobStatus:
    """The status of a job that cannot be asked from here, by its files; that of its record if they
    say no more.

    Its own record of a failure or a stop is not the whole truth where a scheduler may have ended
    it.
    """
    paths = JobPaths(Path(record.job_dir))
    ended = read_exit(paths.exit)
    if ended is not None and (record.platform == "local" or ended.conclusive):
        return ended.status
    if where is Reach.OVER:  # it will never be known
        return JobStatus.FAILED if ended is None else ended.status
    begun = record.status is JobStatus.PENDING and paths.progress.exists()
    return JobStatus.RUNNING if begun else record.status


@contextlib.contextmanager
def before_submission(paths: JobPaths) -> Iterator[None]:
    """A context for recording a job that its platform does not know yet. If its body fails, the
    job's folder is removed: the key of an endpoint may be in it.

    Raises:
        JobError: the disk does not take it.
    """
    try:
        yield
    except BaseException as error:
        shutil.rmtree(paths.root, ignore_errors=True)
        if not isinstance(error, OSError):
            raise
        raise JobError(
            f"The job cannot be submitted. {words_of(error, paths.root)}",
            hint="Nothing was started. Check that disk (space, quota, permissions) and submit the "
            "job again, or set DOMYN_SWARM_HOME to a folder with room.",
        ) from error


def spec_of(record: JobRecord) -> JobSpec:
    """The specification of a job.

    Raises:
        StateError: its files are gone.
    """
    path = JobPaths(Path(record.job_dir)).spec
    if record.output is None:
        raise StateError(
            f"{record.job_id} ran the script {record.input}, which has no rows of ours.",
            hint="Submit the script again.",
        )
    try:
        return JobSpec.model_validate_json(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise StateError(
            f"Cannot read the specification of the job {record.job_id} at {path}.",
            hint="Submit it again with all its flags: settled rows are not sent again.",
        ) from error


_ENDS = {  # the cause, and the flag of `job resume` against it
    JobStatus.PREEMPTED: ("the scheduler took its place for another job", ""),
    JobStatus.LOST_NODE: ("its node was lost", ""),
    JobStatus.TIMED_OUT: ("{limit} was reached", " --time LIMIT"),
    JobStatus.OUT_OF_MEMORY: ("it was killed for its memory", " --mem SIZE"),
    JobStatus.CANCELLED: ("it was told to stop", ""),
}
_LINE_CHARACTERS = 500
_EXCEPTION = re.compile(r"^(?:[a-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Exit|Interrupt)\b(?::|$)")


def why_it_ended(record: JobRecord, result: JobResult | None) -> str | None:
    """Why a job ended; None if it came to its end, with failed rows or without.

    Args:
        record: of the job.
        result: of its worker, if it left one.
    """
    if record.status in (JobStatus.SUCCEEDED, JobStatus.PARTIAL):
        return None
    if (over := _not_continued(record)) is not None:
        return over
    if record.status is JobStatus.TIMED_OUT and _budget_spent(record) and result is not None:
        return result.error
    if record.status in _ENDS:
        cause, more = _ENDS[record.status]
        return f"{cause.format(limit=_limit(record))}; {_next(record, more)}"
    error = None if result is None else result.error
    return error or _failed(record)


def _budget_spent(record: JobRecord) -> bool:
    ended = read_exit(JobPaths(Path(record.job_dir)).exit)
    return ended is not None and ended.code == EXIT_BUDGET_SPENT


def _not_continued(record: JobRecord) -> str | None:
    """Why a job that continues by itself was not continued; None: it does not, or there was another
    cause.
    """
    runs = JobRuns.read(JobPaths(Path(record.job_dir)))
    if runs is None or record.status is JobStatus.CANCELLED:
        return None
    if runs.over == "stop_after":
        return f"the time that --stop-after gives it was over; {_next(record, '')}"
    if runs.over == "fruitless":
        return f"{runs.reason}: see its log; {_next(record, '')}"
    return None


def why_it_waits(record: JobRecord, waits: str | None = None) -> str | None:
    """Why a pending job has not started, or waits for its next run.

    Args:
        record: of the job.
        waits: the platform's reason, if it was asked.
    """
    paths = JobPaths(Path(record.job_dir))
    runs = JobRuns.read(paths)
    if runs is None:
        return waits
    ended = read_exit(paths.exit)
    cause = "its node was lost or taken from it"
    if record.handle is not None and record.handle.step is not None and runs.number == 1:
        cause = "its endpoint's allocation has ended, it continues in its own"
    elif ended is not None:
        cause = "its time limit was up" if ended.time_limit else "Slurm took its node from it"
    return f"{cause}: run {runs.number + 1} {waits or 'waits in the queue'}"


def _limit(record: JobRecord) -> str:
    """The time limit that a job reached."""
    own_s = None
    if record.output is not None:
        with contextlib.suppress(StateError):  # its files were removed
            own_s = spec_of(record).resources.time_limit_s
    if own_s is None:
        return "the time limit of the allocation it ran in (the endpoint's, without --time)"
    return f"its time limit of {own_s / 60:g} min (--time), or that of the allocation it ran in,"


def limits_kept(status: JobStatus, had: JobResources, asked: JobResources) -> Iterator[str]:
    """Limits that a resubmitted job will meet again, because no other was requested."""
    if status is JobStatus.TIMED_OUT and had.max_gpu_hours is not None:
        hours = asked.max_gpu_hours or had.max_gpu_hours
        yield f"may cost {hours:.4g} GPU-hours once more: --max-gpu-hours H changes it."
    if status is JobStatus.TIMED_OUT and had.stop_after_s is not None:
        stop_after_s = asked.stop_after_s or had.stop_after_s
        yield f"may go on for {stop_after_s / 3600:.4g} h once more: --stop-after TIME changes it."
    elif had.max_gpu_hours is not None:
        pass  # it may have ended for this limit
    elif status is JobStatus.TIMED_OUT and not _more(had.time_limit_s, asked.time_limit_s):
        limit = "the same limit" if had.time_limit_s is None else f"{had.time_limit_s / 60:g} min"
        yield f"reached its time limit and gets {limit} again: --time LIMIT gives it more."
    if status is JobStatus.OUT_OF_MEMORY and not _more(had.memory_gb, asked.memory_gb):
        memory = "as much" if had.memory_gb is None else f"{had.memory_gb:g} GB"
        yield f"was killed for its memory and gets {memory} again: --mem SIZE gives it more."


def _more(had: float | None, asked: float | None) -> bool:
    return asked is not None and (had is None or asked > had)


def _next(record: JobRecord, more: str) -> str:
    if record.output is None:
        return "it is a program of yours: submit it again"
    return f"finished rows are kept: `domyn-swarm job resume {record.job_id}{more}` continues"


def _failed(record: JobRecord) -> str:
    """How a program ended that left no result."""
    paths = JobPaths(Path(record.job_dir))
    if srun_was_ended(paths) or srun_was_killed(paths):
        cause = "its srun was ended on the machine that submitted it, and the job's step with it"
        return f"{cause}; -d gives it an allocation of its own: {_next(record, ' -d')}"
    ended = read_exit(paths.exit)
    if ended is None:
        how = "it left no record of its end: it was killed, or its node was lost"
    elif ended.signal is not None:
        how = f"it was killed by {_signal_name(ended.signal)}"
    else:
        how = f"it ended with code {ended.code}{_raised(paths.log)}"
        return f"{how}; `domyn-swarm job logs {record.job_id}` shows what it printed"
    return f"{how}; {_next(record, '')}"


def _raised(log: Path) -> str:
    """The exception that ended a Python program."""
    lines = read_tail(log).strip().splitlines()
    last = lines[-1] if lines else ""
    return f": {last[:_LINE_CHARACTERS]}" if _EXCEPTION.match(last) else ""


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
