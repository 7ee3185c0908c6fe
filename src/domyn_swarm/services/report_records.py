"""What the report of a job holds: the page's figures, for programs."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from domyn_swarm.model import FailureGroup, Histogram, JobAccount, Record
from domyn_swarm.swarm.snapshot import JobSnapshot


class RunReport(Record):
    """One run of the job: a submission, a resumption, or the rest after a kill."""

    job_id: str
    began_at: datetime | None
    wall_s: float
    ended: bool  # False: it was killed, or is at work
    rows_answered: int
    rows_failed: int
    requests: int
    lost_in_flight: int  # sent again by the next run
    retry_failed: bool  # it asked again what earlier runs had given up
    override: dict[str, Any]  # parameters that it changed
    replicas: int | None  # of its swarm; None: not known any more, or not ours
    gpu_hours: float | None  # that its swarm's replicas held while it was at work


class RedoneReport(Record):
    """Requests that were sent again, by why."""

    cause: str
    requests: int
    example: str | None = None


class ShareReport(Record):
    """What one replica answered."""

    url: str
    replica: int | None  # its index; None: not known any more
    answers: int
    share: float  # of all answers whose replica is known
    prompt_tokens: int
    completion_tokens: int
    latency_mean_s: float


class SlowRowReport(Record):
    """A row that took long, retries and waiting included."""

    row: int  # its position in the input
    row_id: str | None = None  # where a column names the rows, and the input can be read
    latency_s: float
    attempts: int
    completion_tokens: int
    failed: bool


class EventReport(Record):
    """What happened to a replica while the job was at work."""

    at: datetime
    replica: int
    state: str
    reason: str | None


class JobReport(Record):
    """A job over all its runs."""

    def __str__(self) -> str:
        return f"<report of {self.job.job_id} at {self.path}>"

    schema_version: Literal[1] = 1
    path: Path  # of the page
    written_at: datetime
    job: JobSnapshot
    model: str
    job_class: str
    account: JobAccount | None  # None: it has not begun
    replica_hours: float | None  # that its swarms' replicas were there while it was at work
    gpu_hours: float | None
    runs: tuple[RunReport, ...] = ()
    failures: tuple[FailureGroup, ...] = ()  # the commonest first
    failures_note: str | None = None  # why they have no examples
    redone: tuple[RedoneReport, ...] = ()
    shares: tuple[ShareReport, ...] = ()
    slowest: tuple[SlowRowReport, ...] = ()
    latency_s: Histogram | None = None
    completion_sizes: Histogram | None = None
    events: tuple[EventReport, ...] = ()
