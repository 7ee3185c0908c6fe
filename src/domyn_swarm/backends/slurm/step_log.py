"""The messages that Slurm's programs write into the output of what they end. They outlast the
controller's memory, and are the only record of a step's end.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from domyn_swarm.backends.job_end import read_tail
from domyn_swarm.backends.slurm.job_runs import last_words
from domyn_swarm.backends.slurm.printed import cancelled
from domyn_swarm.model import JobStatus
from domyn_swarm.paths import JobPaths

_CAUSES = {
    "PREEMPTION": JobStatus.PREEMPTED,
    "TIME LIMIT": JobStatus.TIMED_OUT,
    "NODE FAILURE": JobStatus.LOST_NODE,
}
_ENDED = {
    "PREEMPTION": "was preempted",
    "TIME LIMIT": "reached its time limit",
    "NODE FAILURE": "lost its node",
    "JOB REQUEUE": "was requeued",
}
_BEGAN = re.compile(r"^.*replica \d+ on .*$", re.MULTILINE)  # see `replica_task`


def written_cause(paths: JobPaths, slurm_id: str, *, recorded: bool) -> JobStatus | None:
    """Why slurmstepd ended a job's batch script or step; None: it does not say.

    Args:
        paths: of the job.
        slurm_id: of the job, or of the allocation that the step is in.
        recorded: whether the job's exit record says how it ended: then a cancel adds nothing.
    """
    job = re.escape(slurm_id)
    texts = [last_words(paths), read_tail(paths.srun_log)]
    for text in texts:
        if found := _due(text, job, _CAUSES):
            return _CAUSES[found]
    if srun_was_ended(paths):
        return JobStatus.FAILED
    if not recorded and any(cancelled(text, slurm_id) for text in texts):
        return JobStatus.CANCELLED
    return None


def srun_was_ended(paths: JobPaths) -> bool:
    """Whether a step ended because its `srun` was ended where the job was submitted: by a logout,
    or by a site that ends long processes on login nodes. `job cancel` and `scancel` do not do this.
    """
    return "srun: forcing job termination" in read_tail(paths.srun_log)


def srun_was_killed(paths: JobPaths) -> bool:
    """The same for an `srun` that was killed, of a step that failed and left no record: an `srun`
    that lives reports how its step ended.
    """
    silent = paths.srun_log.exists() and not read_tail(paths.srun_log).strip()
    return silent and not paths.exit.exists()


def last_end(log: Path) -> str | None:
    """Why Slurm ended the last run of a replicas' task, by the task's batch log; None: it does not
    say.
    """
    found = _due(_BEGAN.split(read_tail(log))[-1], r"\d+", _ENDED)
    return None if found is None else _ENDED[found]


def _due(text: str, job: str, causes: Iterable[str]) -> str | None:
    said = rf"error: \*\*\* (?:JOB|STEP) {job}\b.* DUE TO ({'|'.join(causes)})"
    found: list[str] = re.findall(said, text)
    return found[-1] if found else None
