"""The records of a job's report: the figures of the page, for programs."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from typing_extensions import override

from domyn_swarm.model import FailureGroup, Histogram, JobAccount, Record
from domyn_swarm.swarm.snapshot import JobSnapshot


class RunReport(Record):
    """One run of the job: the first one, or one that continued it."""

    job_id: str
    began_at: datetime | None
    wall_s: float
    ended: bool  # False: it was killed, or still runs
    rows_answered: int
    rows_failed: int
    requests: int
    lost_in_flight: int  # sent again by the next run
    retry_failed: bool  # it retried rows that had failed in earlier runs
    override: dict[str, Any]  # parameters that it changed
    replicas: int | None  # of its swarm; None: unknown, or the endpoint is not a swarm's
    gpu_hours: float | None  # that the replicas of its swarm held while it ran


class RedoneReport(Record):
    """Requests that were sent again, by cause."""

    cause: str
    requests: int
    example: str | None = None


class ShareReport(Record):
    """One replica's share of the answers."""

    url: str
    replica: int | None  # its index; None: unknown
    answers: int
    share: float  # of all answers with a known replica
    prompt_tokens: int
    completion_tokens: int
    latency_mean_s: float


class SlowRowReport(Record):
    """One of the slowest rows; its latency includes retries and waiting."""

    row: int  # its position in the input
    row_id: str | None = None  # if the job has an id column and the input is readable
    latency_s: float
    attempts: int
    completion_tokens: int
    failed: bool


class EventReport(Record):
    """A change of a replica's state while the job ran."""

    at: datetime
    replica: int
    state: str
    reason: str | None


class JobReport(Record):
    """A job over all its runs."""

    @override
    def __str__(self) -> str:
        return f"<report of {self.job.job_id} at {self.path}>"

    schema_version: Literal[1] = 1
    path: Path  # of the page
    written_at: datetime
    job: JobSnapshot
    model: str
    job_class: str
    account: JobAccount | None  # None: it has not started
    replica_hours: float | None  # of the replicas of its swarms while it ran
    gpu_hours: float | None
    runs: tuple[RunReport, ...] = ()
    failures: tuple[FailureGroup, ...] = ()  # most frequent first
    failures_note: str | None = None  # why failures have no examples
    redone: tuple[RedoneReport, ...] = ()
    shares: tuple[ShareReport, ...] = ()
    slowest: tuple[SlowRowReport, ...] = ()
    latency_s: Histogram | None = None
    completion_sizes: Histogram | None = None
    events: tuple[EventReport, ...] = ()
