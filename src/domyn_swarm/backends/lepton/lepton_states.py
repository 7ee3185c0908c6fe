"""Maps the platform's states to our phases, reports and statuses. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from domyn_swarm.model import JobStatus, ReplicaReport, ReplicaState, utc_now
from domyn_swarm.probing import Observation, Phase

# READY: the deployment runs. Whether its replicas serve is in their own states.
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
    "SystemError": ReplicaState.UNHEALTHY,  # an error of the platform, which tries again
    "ConfigError": ReplicaState.FAILED,  # another attempt cannot help
    "Deleting": ReplicaState.DRAINING,
    "Deleted": ReplicaState.EXITED,
}
# We never resubmit a job of the workspace, so one that has run does not become PENDING again.
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
_WAITING_REASONS = ("Queueing", "NoCapacity")


class Replica(NamedTuple):
    """A replica of a deployment, as the workspace lists it."""

    id: str
    node: str | None
    reason: str | None  # of its readiness; None: the newer API does not report it
    message: str = ""


class Deployment(NamedTuple):
    """A deployment, as the workspace describes it."""

    name: str
    state: str
    url: str | None
    tag: str | None  # the swarm's tag in its environment
    replicas_wanted: int
    replicas_ready: int | None  # None: the API does not report it
    replicas: tuple[Replica, ...] = ()


def observation(deployment: Deployment | None) -> Observation:
    """The phase of a deployment, with the cause if a replica is not ready."""
    if deployment is None:
        return Observation(Phase.STOPPED, "there is no such deployment")
    replicas = deployment.replicas
    phase = DEPLOYMENT_PHASES.get(deployment.state, Phase.UNKNOWN)
    why = next((one for one in replicas if one.message and one.reason != "Ready"), None)
    detail = f"the deployment is {deployment.state}"
    if why is not None:
        detail = f"{detail} ({why.reason}: {why.message})"
    all_wait = all(replica.reason in _WAITING_REASONS for replica in replicas)  # or none exists yet
    if phase is Phase.STARTING and all_wait:
        phase = Phase.QUEUED
    return Observation(phase, detail)


def reports(deployment: Deployment) -> tuple[ReplicaReport, ...]:
    """A report for each replica that the swarm wants and the platform runs, in its order."""
    now = utc_now()
    return tuple(
        ReplicaReport(
            replica=index,
            state=_state(deployment, index),
            node=replica.node,
            reason=replica.message[:4096] or None,
            incarnation=replica.id[:64],
            sequence=0,
            reported_at=now,
        )
        for index, replica in enumerate(deployment.replicas[: deployment.replicas_wanted])
    )


def _state(deployment: Deployment, index: int) -> ReplicaState:
    reason = deployment.replicas[index].reason
    if reason is not None:
        return REPLICA_STATES.get(reason, ReplicaState.STARTING)
    ready = deployment.replicas_ready
    if ready is None:
        ready = deployment.replicas_wanted if deployment.state == "Ready" else 0
    return ReplicaState.READY if index < ready else ReplicaState.STARTING


def job_status(state: str, succeeded: int, failed: int) -> JobStatus | None:
    """The status of a job by its state, or by its counts if it is archived; None: unknown."""
    if state == "Archived":
        if failed:
            return JobStatus.FAILED
        return JobStatus.SUCCEEDED if succeeded else JobStatus.CANCELLED
    return JOB_STATUSES.get(state)


def in_order(replicas: Sequence[tuple[int, Replica]]) -> tuple[Replica, ...]:
    """Replicas by creation time, oldest first, so that a new one changes no other's number."""
    ordered = sorted(replicas, key=lambda item: (item[0], item[1].id))
    return tuple(replica for _, replica in ordered)
