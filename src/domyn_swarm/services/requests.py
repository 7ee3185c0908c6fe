"""Requests to the services, and their results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from domyn_swarm.model import FailureGroup, Record
from domyn_swarm.planning.plan import DeploymentPlan
from domyn_swarm.record import Meta
from domyn_swarm.swarm.job_request import JobChanges, JobRequest, ScriptRequest

__all__ = [
    "DownReport",
    "DownResult",
    "EndpointInfo",
    "JobChanges",
    "JobFailures",
    "JobRequest",
    "JobResults",
    "LogRequest",
    "PlanReport",
    "ScriptRequest",
    "UpRequest",
    "UpResult",
]


class UpRequest(Record):
    """The swarm of a configuration."""

    config: Path
    name: str | None = None
    replicas: int | None = None
    overrides: tuple[str, ...] = ()  # `key=value`, as `--set` takes them


class UpResult(Record):
    """A swarm that is up, or (with `wait=False`) coming up."""

    schema_version: Literal[1] = 1
    name: str
    endpoint: str | None
    ready: bool
    launched: bool = True  # by this command; False: it was up or coming up
    swarm_dir: Path


class PlanReport(Record):
    """What `up` would do."""

    schema_version: Literal[1] = 1
    plan: DeploymentPlan
    gpus: int
    gpu_hours: float | None  # until the time limit; None: there is none
    engine_command: tuple[str, ...]
    scripts: dict[str, str]  # of the scheduler
    test: tuple[str, ...] | None = None  # its answer; None: it was not asked


class DownResult(Record):
    """The result of `down` for one swarm. `error` is set if parts of it may still run."""

    name: str
    stopped: bool
    forgotten: bool = False  # it was not stopped: it can never be asked again
    error: str | None = None
    hint: str | None = None


class DownReport(Record):
    """The result of `down` for each swarm."""

    schema_version: Literal[1] = 1
    swarms: tuple[DownResult, ...]


class EndpointInfo(Record):
    """How to reach a swarm."""

    schema_version: Literal[1] = 1
    name: str
    url: str  # without /v1
    model: str
    key_file: Path
    metrics_url: str | None  # Prometheus text; None: the platform has its own
    metrics_key_file: Path | None  # they need a key of their own

    @property
    def host(self) -> str:
        """Of the URL."""
        return urlsplit(self.url).hostname or ""


class JobFailures(Record):
    """The rows of a job that carry an error, grouped by their errors; after them rows whose answers
    count although they are incomplete.
    """

    schema_version: Literal[1] = 1
    job_id: str
    rows_failed: int
    groups: tuple[FailureGroup, ...]  # of each kind, the most frequent first
    rows_unsettled: int = 0  # that `job resume` sends: not sent yet, or failed when a run gave up
    rows_failed_unsettled: int = 0  # of those, failed ones; `rows_failed` includes them
    exported: Path | None = None  # the failed rows with their errors


class JobResults(Record):
    """The results of a job, or those settled so far, with its first rows."""

    schema_version: Literal[1] = 1
    job_id: str
    partial: bool
    rows: int  # with a result
    rows_failed: int  # of those, with an error
    rows_total: int
    columns: dict[str, str]  # their types
    first_rows: tuple[dict[str, Any], ...]
    exported: Path | None = None  # all rows


class LogRequest(Record):
    """The request to read a swarm's logs."""

    name: str | None = None  # None: the only live one, or the job's
    source: Literal["replica", "endpoint", "watchdog", "job"] = "replica"
    replica: int | None = None  # None: all
    job_id: str | None = None
    last_lines: Annotated[int, Meta(ge=0)] = 200
    follow: bool = False
