"""What callers ask the services for, and what they get back."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from domyn_swarm.model import Record


class UpRequest(Record):
    """Bring a swarm up."""

    config: Path
    name: str | None = None
    replicas: int | None = None
    overrides: tuple[str, ...] = ()  # `key=value`, as `--set` takes them
    wait: bool = True
    timeout_s: float | None = None  # everything, the queue included


class UpResult(Record):
    """A swarm that is up, or (with `wait=False`) on its way."""

    name: str
    endpoint: str | None
    ready: bool
    swarm_dir: Path


class DownResult(Record):
    """What `down` did to one swarm. `error` is set when something of it may still run."""

    name: str
    stopped: bool
    error: str | None = None
    hint: str | None = None


class EndpointInfo(Record):
    """How to talk to a swarm."""

    schema_version: Literal[1] = 1
    name: str
    url: str  # without /v1
    model: str
    key_file: Path


class JobRequest(Record):
    """Submit a job. Fields are `job submit`'s flags."""

    job: str = "domyn_swarm.jobs:ChatCompletionJob"
    swarm: str | None = None
    endpoint: str | None = None  # any OpenAI endpoint, instead of a swarm
    model: str | None = None  # needed with `endpoint`
    input: str
    output: str
    input_columns: tuple[str, ...] = ()
    output_columns: tuple[str, ...] = ()
    id_column: str | None = None
    output_mode: Literal["append", "replace", "io_only"] = "append"
    job_kwargs: dict[str, Any] = Field(default_factory=dict)
    limit: int | None = Field(None, ge=0)
    name: str | None = None
    external_id: str | None = None
    max_concurrency: int | Literal["auto"] = "auto"
    retries: int | None = Field(None, ge=0)
    timeout_s: float | None = Field(None, gt=0)
    max_failures: str | None = None  # "20" rows or "5%"
    checkpoint_dir: Path | None = None
    checkpoint_tag: str | None = None
    checkpoint_interval: int | None = Field(None, ge=1)
    checkpoint_seconds: float | None = Field(None, gt=0)
    resume: bool = True
    checkpointing: bool = True


class LogRequest(Record):
    """Read a swarm's logs."""

    name: str
    source: Literal["replica", "endpoint", "watchdog", "job"] = "replica"
    replica: int | None = None  # None: all
    job_id: str | None = None
    last_lines: int = Field(200, ge=0)
    follow: bool = False
