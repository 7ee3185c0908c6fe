"""Writes off what nobody can ask any more: its host, container or cluster is gone for good.

Only a person knows that. Nothing is stopped, and what can be asked is never forgotten.
"""

from __future__ import annotations

from domyn_swarm.errors import PlatformError, StateError
from domyn_swarm.model import JobStatus, Reach
from domyn_swarm.state import JobRecord, SwarmRecord, SwarmStore
from domyn_swarm.swarm.whereabouts import place_of, reach


def forget_swarm(store: SwarmStore, name: str) -> None:
    """Record that a swarm has stopped, and that those of its jobs have failed which cannot be asked
    either. From then on it is no place's any more: `prune` may remove what is left of it.

    Raises:
        SwarmNotFound: there is none of that name.
        StateError: it can be asked from here, and so stopped.
    """
    record = store.swarm(name)
    if not _is_unreachable(record):
        raise StateError(
            f"The swarm {name} can be asked from here, and is not forgotten.",
            hint=f"Stop it: domyn-swarm down {name}",
        )
    store.set_stopped(record.tag, f"forgotten: it was on {place_of(record)}")
    store.forget_location(record.tag)
    for job in store.jobs(name):
        if not job.status.final and _is_unreachable(job):
            store.set_job_status(job.job_id, JobStatus.FAILED)


def forget_job(store: SwarmStore, record: JobRecord) -> JobRecord:
    """Record that a job has failed. Another driver still finds the lease of one that runs.

    Raises:
        StateError: it can be asked from here, and so cancelled.
    """
    if record.status.final:
        return record
    if not _is_unreachable(record):
        raise StateError(
            f"The job {record.job_id} can be asked from here, and is not forgotten.",
            hint=f"End it: domyn-swarm job cancel {record.job_id}",
        )
    store.set_job_status(record.job_id, JobStatus.FAILED)
    return store.job(record.job_id)


def _is_unreachable(record: SwarmRecord | JobRecord) -> bool:
    """Whether it cannot be asked. A platform that does not answer never will, its user says."""
    try:
        return reach(record) is Reach.ELSEWHERE
    except PlatformError:
        return True
