"""What callers ask the services for, and what they get back."""

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
    """A swarm that is up, or (with `wait=False`) on its way."""

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
    gpu_hours: float | None  # until the time limit; None: without one
    engine_command: tuple[str, ...]
    scripts: dict[str, str]  # of the scheduler
    test: tuple[str, ...] | None = None  # what it said; None: it was not asked


class DownResult(Record):
    """What `down` did to one swarm. `error` is set when something of it may still run."""

    name: str
    stopped: bool
    forgotten: bool = False  # it was not stopped: nobody can ask for it any more
    error: str | None = None
    hint: str | None = None


class DownReport(Record):
    """What `down` did to each swarm."""

    schema_version: Literal[1] = 1
    swarms: tuple[DownResult, ...]


class EndpointInfo(Record):
    """How to talk to a swarm."""

    schema_version: Literal[1] = 1
    name: str
    url: str  # without /v1
    model: str
    key_file: Path
    metrics_url: str | None  # Prometheus text; None: it has none of ours
    metrics_key_file: Path | None  # it asks for a key of its own

    @property
    def host(self) -> str:
        """Of the URL."""
        return urlsplit(self.url).hostname or ""


class JobFailures(Record):
    """The rows of a job that carry an error, by what their errors have in common; behind them those
    whose answers count though they are not complete.
    """

    schema_version: Literal[1] = 1
    job_id: str
    rows_failed: int
    groups: tuple[FailureGroup, ...]  # of each kind the commonest first
    rows_unsettled: int = 0  # that `job resume` asks: not asked yet, or failed as a run gave up
    rows_failed_unsettled: int = 0  # of those: failed; `rows_failed` has them too
    exported: Path | None = None  # the failed rows with their errors


class JobResults(Record):
    """What a job came to, or what is settled so far, with its first rows."""

    schema_version: Literal[1] = 1
    job_id: str
    partial: bool
    rows: int  # that have a result
    rows_failed: int  # of those: with an error
    rows_total: int
    columns: dict[str, str]  # their types
    first_rows: tuple[dict[str, Any], ...]
    exported: Path | None = None  # all of the rows


class LogRequest(Record):
    """Read a swarm's logs."""

    name: str | None = None  # None: the only live one, or that of the job
    source: Literal["replica", "endpoint", "watchdog", "job"] = "replica"
    replica: int | None = None  # None: all
    job_id: str | None = None
    last_lines: Annotated[int, Meta(ge=0)] = 200
    follow: bool = False
