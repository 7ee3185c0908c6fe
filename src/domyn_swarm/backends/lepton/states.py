"""What the platform's states mean. Pure: from its words to phases, reports and statuses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from domyn_swarm.model import JobStatus, ReplicaReport, ReplicaState, utc_now
from domyn_swarm.probing import Observation, Phase

# READY: it runs; whether its replicas serve is theirs to say.
DEPLOYMENT_PHASES: Mapping[str, Phase] = {
    "Ready": Phase.READY,
    "Updating": Phase.READY,
    "Scaling": Phase.READY,
    "Migrating": Phase.READY,
    "Not Ready": Phase.STARTING,
    "Starting": Phase.STARTING,
    "Restarting": Phase.STARTING,
    "Stopping": Phase.STOPPED,
    "Stopped": Phase.STOPPED,
    "Deleting": Phase.STOPPED,
    "Error": Phase.FAILED,
    "UNK": Phase.UNKNOWN,
}
REPLICA_STATES: Mapping[str, ReplicaState] = {
    "Ready": ReplicaState.READY,
    "InProgress": ReplicaState.STARTING,
    "RequireReadinessApproval": ReplicaState.STARTING,
    "Unknown": ReplicaState.STARTING,
    "Queueing": ReplicaState.PENDING,
    "NoCapacity": ReplicaState.PENDING,
    "SystemError": ReplicaState.UNHEALTHY,  # the platform's own; it tries again
    "ConfigError": ReplicaState.FAILED,  # trying again cannot help
    "Deleting": ReplicaState.DRAINING,
    "Deleted": ReplicaState.EXITED,
}
# A job that ran once never waits again in our records: it is not asked for twice.
JOB_STATUSES: Mapping[str, JobStatus] = {
    "Queueing": JobStatus.PENDING,
    "Awaiting": JobStatus.PENDING,
    "Starting": JobStatus.PENDING,
    "Running": JobStatus.RUNNING,
    "Restarting": JobStatus.RUNNING,
    "PendingRetry": JobStatus.RUNNING,
    "Stopping": JobStatus.RUNNING,
    "Terminating": JobStatus.RUNNING,
    "Deleting": JobStatus.RUNNING,
    "Completed": JobStatus.SUCCEEDED,
    "Failed": JobStatus.FAILED,
    "Stopped": JobStatus.CANCELLED,
    "Deleted": JobStatus.CANCELLED,
}
_WAITS = ("Queueing", "NoCapacity")


class ReplicaSeen(NamedTuple):
    """A replica as the workspace lists it."""

    id: str
    node: str | None
    reason: str | None  # of its readiness; None: this API does not tell
    message: str = ""


class DeploymentSeen(NamedTuple):
    """A deployment as the workspace tells of it."""

    name: str
    state: str
    url: str | None
    tag: str | None  # of the swarm that it says it belongs to
    replicas_wanted: int
    replicas_ready: int | None  # None: this API counts none
    replicas: tuple[ReplicaSeen, ...] = ()


def observation(seen: DeploymentSeen | None) -> Observation:
    """How far the deployment is."""
    if seen is None:
        return Observation(Phase.STOPPED, "there is no such deployment")
    phase = DEPLOYMENT_PHASES.get(seen.state, Phase.UNKNOWN)
    why = next((one for one in seen.replicas if one.message and one.reason != "Ready"), None)
    detail = f"the deployment is {seen.state}"
    if why is not None:
        detail = f"{detail} ({why.reason}: {why.message})"
    waits = all(one.reason in _WAITS for one in seen.replicas)  # or there is none yet
    if phase is Phase.STARTING and waits:
        phase = Phase.QUEUED
    return Observation(phase, detail)


def reports(seen: DeploymentSeen) -> tuple[ReplicaReport, ...]:
    """A report for each replica that the swarm wants and the platform has, in its order."""
    now = utc_now()
    return tuple(
        ReplicaReport(
            replica=index,
            state=_state(seen, index),
            node=one.node,
            reason=one.message[:4096] or None,
            incarnation=one.id[:64],
            sequence=0,
            reported_at=now,
        )
        for index, one in enumerate(seen.replicas[: seen.replicas_wanted])
    )


def _state(seen: DeploymentSeen, index: int) -> ReplicaState:
    reason = seen.replicas[index].reason
    if reason is not None:
        return REPLICA_STATES.get(reason, ReplicaState.STARTING)
    ready = seen.replicas_ready
    if ready is None:
        ready = seen.replicas_wanted if seen.state == "Ready" else 0
    return ReplicaState.READY if index < ready else ReplicaState.STARTING


def job_status(state: str, succeeded: int, failed: int) -> JobStatus | None:
    """What a job is by its state, or by its counts once it is archived; None: not known."""
    if state == "Archived":
        if failed:
            return JobStatus.FAILED
        return JobStatus.SUCCEEDED if succeeded else JobStatus.CANCELLED
    return JOB_STATUSES.get(state)


def in_order(replicas: Sequence[tuple[int, ReplicaSeen]]) -> tuple[ReplicaSeen, ...]:
    """Oldest first, by when they were created: the others keep their places when one is added."""
    return tuple(one for _, one in sorted(replicas, key=lambda item: (item[0], item[1].id)))
