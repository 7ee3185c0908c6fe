"""What Slurm's states mean for a job. Our programs on the nodes know the states alone."""

from __future__ import annotations

from domyn_swarm.backends.slurm.states import SlurmJob
from domyn_swarm.model import JobStatus

_JOB_ENDS = {
    "COMPLETED": JobStatus.SUCCEEDED,
    "CANCELLED": JobStatus.CANCELLED,
    "PREEMPTED": JobStatus.PREEMPTED,
    "NODE_FAIL": JobStatus.LOST_NODE,
    "BOOT_FAIL": JobStatus.LOST_NODE,
    "TIMEOUT": JobStatus.TIMED_OUT,
    "DEADLINE": JobStatus.TIMED_OUT,
    "OUT_OF_MEMORY": JobStatus.OUT_OF_MEMORY,
}


def job_status(job: SlurmJob) -> JobStatus:
    """The state of a job that left no exit record."""
    if job.waiting:
        return JobStatus.PENDING
    if job.over:
        return _JOB_ENDS.get(job.state, JobStatus.FAILED)
    return JobStatus.RUNNING
