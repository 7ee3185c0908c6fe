"""The cluster that Slurm jobs run on, and what Slurm's states mean for a job. Our programs on the
nodes use the states only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from domyn_swarm.backends.protocols import Located
from domyn_swarm.backends.slurm.ending import Scheduler
from domyn_swarm.backends.slurm.slurm_states import SlurmJob
from domyn_swarm.errors import CommandMissing
from domyn_swarm.model import JobStatus, Location, Reach


class OnCluster(Located):
    """The cluster that Slurm's commands ask from here. Job ids are per cluster:
    another cluster does not know them, or has other jobs with the same ids.
    """

    _slurm: Scheduler

    @override
    def location(self, options: Mapping[str, Any]) -> Location:
        return Location(kind="cluster", name=self._slurm.cluster())

    @override
    def reach(self, location: Location | None) -> Reach:
        if location is None:
            return Reach.HERE
        try:
            here = self._slurm.cluster()
        except CommandMissing:
            return Reach.ELSEWHERE
        same = (location.kind, location.name) == ("cluster", here)
        return Reach.HERE if same else Reach.ELSEWHERE


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
