"""Every state that the platform has means something here, whichever comes next."""

from __future__ import annotations

import pytest

from domyn_swarm.backends.lepton import lepton_states
from domyn_swarm.backends.lepton.lepton_states import Deployment, Replica
from domyn_swarm.model import JobStatus, ReplicaState
from domyn_swarm.probing import Phase


def seen(state: str, *replicas: Replica, ready: int | None = None) -> Deployment:
    return Deployment("d", state, None, "t", len(replicas) or 1, ready, replicas)


def replica(name: str, reason: str | None, message: str = "") -> Replica:
    return Replica(name, "node", reason, message)


def test_no_state_of_the_sdk_is_forgotten() -> None:
    from leptonai.api.v2.types.deployment import LeptonDeploymentState
    from leptonai.api.v2.types.job import LeptonJobState
    from leptonai.api.v2.types.readiness import ReplicaReadinessReason

    assert set(lepton_states.DEPLOYMENT_PHASES) == {one.value for one in LeptonDeploymentState}
    assert set(lepton_states.REPLICA_STATES) == {one.value for one in ReplicaReadinessReason}
    told = {*lepton_states.JOB_STATUSES, "Archived", "UNK"}
    assert told == {one.value for one in LeptonJobState}


@pytest.mark.parametrize(
    ("state", "phase"),
    [
        ("Ready", Phase.READY),
        ("Scaling", Phase.READY),
        ("Not Ready", Phase.STARTING),
        ("Restarting", Phase.STARTING),
        ("Error", Phase.FAILED),
        ("Stopped", Phase.STOPPED),
        ("Deleting", Phase.STOPPED),
        ("UNK", Phase.UNKNOWN),
        ("a state of tomorrow", Phase.UNKNOWN),
    ],
)
def test_a_deployments_phase(state: str, phase: Phase) -> None:
    assert lepton_states.observation(seen(state, replica("a", "InProgress"))).phase is phase


def test_waiting_for_capacity_keeps_its_place_in_the_queue() -> None:
    waits = seen("Starting", replica("a", "NoCapacity", "no node is free"))
    assert lepton_states.observation(waits).phase is Phase.QUEUED
    assert "no node is free" in lepton_states.observation(waits).detail
    assert lepton_states.observation(seen("Starting")).phase is Phase.QUEUED  # nothing placed yet
    one_runs = seen("Starting", replica("a", "InProgress"), replica("b", "Queueing"))
    assert lepton_states.observation(one_runs).phase is Phase.STARTING
    assert lepton_states.observation(None).phase is Phase.STOPPED


def test_reports_of_replicas_by_reason_and_by_count() -> None:
    told = lepton_states.reports(
        seen("Scaling", replica("a", "Ready"), replica("b", "ConfigError", "no such image"))
    )
    assert [one.state for one in told] == [ReplicaState.READY, ReplicaState.FAILED]
    assert told[1].reason == "no such image"
    one, other = replica("a", None), replica("b", None)
    counted = lepton_states.reports(seen("Scaling", one, other, ready=1))
    assert [one.state for one in counted] == [ReplicaState.READY, ReplicaState.STARTING]
    uncounted = lepton_states.reports(seen("Ready", replica("a", None)))
    assert [one.state for one in uncounted] == [ReplicaState.READY]


@pytest.mark.parametrize(
    ("state", "status"),
    [
        ("Queueing", JobStatus.PENDING),
        ("Starting", JobStatus.PENDING),
        ("Running", JobStatus.RUNNING),
        ("Stopping", JobStatus.RUNNING),
        ("Completed", JobStatus.SUCCEEDED),
        ("Failed", JobStatus.FAILED),
        ("Stopped", JobStatus.CANCELLED),
        ("Deleted", JobStatus.CANCELLED),
        ("UNK", None),
        ("a state of tomorrow", None),
    ],
)
def test_a_jobs_status(state: str, status: JobStatus | None) -> None:
    assert lepton_states.job_status(state, 0, 0) is status


def test_an_archived_job_is_what_its_counts_say() -> None:
    assert lepton_states.job_status("Archived", 1, 0) is JobStatus.SUCCEEDED
    assert lepton_states.job_status("Archived", 0, 1) is JobStatus.FAILED
    assert lepton_states.job_status("Archived", 0, 0) is JobStatus.CANCELLED
