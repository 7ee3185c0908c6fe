"""What Slurm prints, and what it means."""

from __future__ import annotations

import pytest

from domyn_swarm.backends.slurm.slurm_compute import job_status
from domyn_swarm.backends.slurm.slurm_states import SlurmJob, latest, parse_allocation, parse_queue
from domyn_swarm.model import JobStatus
from domyn_swarm.probing import Phase

STATES = {
    "PENDING": (Phase.QUEUED, JobStatus.PENDING),
    "CONFIGURING": (Phase.QUEUED, JobStatus.PENDING),
    "REQUEUE_HOLD": (Phase.QUEUED, JobStatus.PENDING),
    "SUSPENDED": (Phase.QUEUED, JobStatus.PENDING),
    "RUNNING": (Phase.READY, JobStatus.RUNNING),
    "SIGNALING": (Phase.READY, JobStatus.RUNNING),
    "COMPLETING": (Phase.READY, JobStatus.RUNNING),
    "COMPLETED": (Phase.STOPPED, JobStatus.SUCCEEDED),
    "CANCELLED": (Phase.STOPPED, JobStatus.CANCELLED),
    "FAILED": (Phase.FAILED, JobStatus.FAILED),
    "TIMEOUT": (Phase.FAILED, JobStatus.TIMED_OUT),
    "DEADLINE": (Phase.FAILED, JobStatus.TIMED_OUT),
    "OUT_OF_MEMORY": (Phase.FAILED, JobStatus.OUT_OF_MEMORY),
    "NODE_FAIL": (Phase.FAILED, JobStatus.LOST_NODE),
    "BOOT_FAIL": (Phase.FAILED, JobStatus.LOST_NODE),
    "PREEMPTED": (Phase.FAILED, JobStatus.PREEMPTED),
    "REVOKED": (Phase.FAILED, JobStatus.FAILED),
    "A_STATE_OF_THE_FUTURE": (Phase.UNKNOWN, JobStatus.RUNNING),
}


@pytest.mark.parametrize("state", STATES)
def test_every_state_has_a_meaning(state: str) -> None:
    job = SlurmJob("7_0", state, "Resources", "n1", "N/A", "c")
    assert (job.observation.phase, job_status(job)) == STATES[state]


def test_one_that_is_signalled_runs_on_and_one_that_is_ended_does_not() -> None:
    runs_on = {one for one in STATES if SlurmJob("7", one, "", "n1", "N/A", "c").runs_on}
    assert runs_on == {"RUNNING", "SIGNALING"}


def test_lines_of_squeue_and_sacct() -> None:
    text = """\
7_0|RUNNING|None|n1|2026-11-23T10:00:00|domyn-swarm/a.b/replica|a-replicas-1.b
7_1|PENDING|Resources||N/A|domyn-swarm/a.b/replica|a-replicas-1.b
8|CANCELLED by 1000|None|None assigned|2026-11-23T10:00:00|with | a bar|mine
8.batch|CANCELLED|||x|x
9|OUT_OF_MEMORY||n2|x|(null)

nonsense
"""
    jobs = latest(parse_queue(text))
    assert list(jobs) == ["7_0", "7_1", "8", "8.batch", "9"]
    assert (jobs["7_0"].node, jobs["7_0"].reason) == ("n1", "")
    assert (jobs["7_1"].reason, jobs["7_1"].waiting) == ("Resources", True)
    assert (jobs["7_1"].comment, jobs["7_1"].name) == ("domyn-swarm/a.b/replica", "a-replicas-1.b")
    assert jobs["8.batch"].comment == "x"
    assert (jobs["8"].state, jobs["8"].comment, jobs["8"].node) == ("CANCELLED", "with | a bar", "")


def test_what_a_job_has() -> None:
    line = "JobId=5 EndTime=2026-11-24T00:07:53 NumCPUs=2 TRES=cpu=2,mem=7.50G,node=1 X=y"
    seen = parse_allocation(line)
    assert (seen.cpus, seen.memory_mb) == (2, 7680)
    assert seen.ends_at is not None
    unlimited = parse_allocation("JobId=5 EndTime=Unknown NumCPUs=1 TRES=cpu=1,node=1")
    assert (unlimited.memory_mb, unlimited.ends_at) == (None, None)


def test_of_a_requeued_job_the_last_line_counts() -> None:
    text = "5|NODE_FAIL|None|n1|x|c\n5|RUNNING|None|n2|x|c\n"
    assert latest(parse_queue(text))["5"].state == "RUNNING"
