"""Why a job ended and what to do next, by its status and by its own files."""

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
from domyn_swarm.jobs.spec import JobResult, JobSpec
from domyn_swarm.model import JobStatus, Reach
from domyn_swarm.paths import JobPaths
from domyn_swarm.planning.plan import JobResources
from domyn_swarm.state import JobRecord


def status_by_files(record: JobRecord, where: Reach) -> JobStatus:
    """The status of a job that is not here; that of its record where its files say no more.

    Its own record of a failure or a stop is not the whole truth where a scheduler may have ended
    it.
    """
    paths = JobPaths(Path(record.job_dir))
    ended = read_exit(paths.exit)
    if ended is not None and (record.platform == "local" or ended.conclusive):
        return ended.status
    if where is Reach.OVER:  # nobody will ever know more
        return JobStatus.FAILED if ended is None else ended.status
    begun = record.status is JobStatus.PENDING and paths.progress.exists()
    return JobStatus.RUNNING if begun else record.status


@contextlib.contextmanager
def before_submission(paths: JobPaths) -> Iterator[None]:
    """The body writes down a job that its platform does not know yet. Where that breaks off,
    nothing of the job's folder is left: the key of an endpoint may be in it.

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
    """What a job was told.

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
            f"What the job {record.job_id} was told is not readable at {path}.",
            hint="Submit it again with all its flags: rows that are done are not asked again.",
        ) from error


_ENDS = {  # the cause, and what `job resume` takes against it
    JobStatus.PREEMPTED: ("the scheduler took its place for another job", ""),
    JobStatus.LOST_NODE: ("its node was lost", ""),
    JobStatus.TIMED_OUT: ("{limit} was reached", " --time LIMIT"),
    JobStatus.OUT_OF_MEMORY: ("it was killed for its memory", " --mem SIZE"),
    JobStatus.CANCELLED: ("it was told to stop", ""),
}
_LINE_CHARACTERS = 500
_EXCEPTION = re.compile(r"^(?:[a-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Exit|Interrupt)\b(?::|$)")


def why_it_ended(record: JobRecord, result: JobResult | None) -> str | None:
    """Of a job that is over; None where it came to its end, with failed rows or without.

    Args:
        record: of the job.
        result: what its worker has left, if anything.
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
    told = None if result is None else result.error
    return told or _failed(record)


def _budget_spent(record: JobRecord) -> bool:
    ended = read_exit(JobPaths(Path(record.job_dir)).exit)
    return ended is not None and ended.code == EXIT_BUDGET_SPENT


def _not_continued(record: JobRecord) -> str | None:
    """Why a job that goes on by itself did not; None: it is none, or that is not the cause."""
    runs = JobRuns.read(JobPaths(Path(record.job_dir)))
    if runs is None or record.status is JobStatus.CANCELLED:
        return None
    if runs.over == "stop_after":
        return f"the time that --stop-after gives it was over; {_next(record, '')}"
    if runs.over == "fruitless":
        return f"{runs.reason}: see its log; {_next(record, '')}"
    return None


def why_it_waits(record: JobRecord, waits: str | None = None) -> str | None:
    """Of a job that is pending: why it has not begun, or waits for its next run.

    Args:
        record: of the job.
        waits: what its platform says of it, if it was asked.
    """
    paths = JobPaths(Path(record.job_dir))
    runs = JobRuns.read(paths)
    if runs is None:
        return waits
    ended = read_exit(paths.exit)
    cause = "its node was lost or taken from it"
    if record.handle is not None and record.handle.step is not None and runs.number == 1:
        cause = "its endpoint's allocation has ended, it goes on in one of its own"
    elif ended is not None:
        cause = "its time limit was up" if ended.time_limit else "Slurm took its node from it"
    return f"{cause}: run {runs.number + 1} {waits or 'waits in the queue'}"


def _limit(record: JobRecord) -> str:
    """The time limit that a job ran into."""
    own_s = None
    if record.output is not None:
        with contextlib.suppress(StateError):  # its files are gone
            own_s = spec_of(record).resources.time_limit_s
    if own_s is None:
        return "the time limit of the allocation it ran in (the endpoint's, without --time)"
    return f"its time limit of {own_s / 60:g} min (--time), or that of the allocation it ran in,"


def limits_kept(status: JobStatus, had: JobResources, asked: JobResources) -> Iterator[str]:
    """What a job that is run once more meets again, because nothing else was asked for."""
    if status is JobStatus.TIMED_OUT and had.max_gpu_hours is not None:
        hours = asked.max_gpu_hours or had.max_gpu_hours
        yield f"may cost {hours:.4g} GPU-hours once more: --max-gpu-hours H changes it."
    if status is JobStatus.TIMED_OUT and had.stop_after_s is not None:
        stop_after_s = asked.stop_after_s or had.stop_after_s
        yield f"may go on for {stop_after_s / 3600:.4g} h once more: --stop-after TIME changes it."
    elif had.max_gpu_hours is not None:
        pass  # what ended it may have been that
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
    return f"finished rows are kept: `domyn-swarm job resume {record.job_id}{more}` goes on"


def _failed(record: JobRecord) -> str:
    """Of a program that left no account of its own."""
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
    """The exception that a Python program ended with."""
    lines = read_tail(log).strip().splitlines()
    last = lines[-1] if lines else ""
    return f": {last[:_LINE_CHARACTERS]}" if _EXCEPTION.match(last) else ""


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
