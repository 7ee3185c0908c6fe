"""What a caller asks for when submitting a job."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from domyn_swarm.batch.reading import InputReading
from domyn_swarm.model import Accept, Dedup, Fingerprint, Record, ReplyVerdict
from domyn_swarm.planning.resources import JobResources


class JobRequest(InputReading):
    """Submit a job. Fields are `job submit`'s flags; None: as the job has it, or as usual."""

    job: str = "domyn_swarm.jobs:ChatCompletionJob"
    job_source: str | None = None  # `job` is a name that this text defines
    swarm: str | None = None
    endpoint: str | None = None  # any OpenAI endpoint, instead of a swarm
    model: str | None = None  # needed with `endpoint`
    input: str
    output: str
    input_columns: tuple[str, ...] = ()
    output_columns: tuple[str, ...] = ()
    id_column: str | None = None
    fingerprint: Fingerprint = "full"
    output_mode: Literal["append", "replace", "io_only"] | None = None
    shard_output: bool = False  # a folder of Parquet files instead of one file
    infer_types: bool = False  # CSV that becomes Parquet: types for its columns
    overwrite: bool = False  # an output of another job of ours, or of another input, is replaced
    job_kwargs: dict[str, Any] = Field(default_factory=dict)
    limit: int | None = Field(None, ge=0)
    name: str | None = None
    external_id: str | None = None
    max_concurrency: int | Literal["auto"] | None = None
    workers: int | None = Field(None, ge=1, le=256)  # None: one, or one for each node of Ray's
    data_backend: Literal["arrow", "pandas", "polars", "ray"] | None = None
    backend_read_kwargs: dict[str, Any] = Field(default_factory=dict)
    backend_write_kwargs: dict[str, Any] = Field(default_factory=dict)
    ray_address: str | None = None
    retries: int | None = Field(None, ge=0)
    timeout_s: float | None = Field(None, gt=0)
    timeout_retries: int | None = Field(None, ge=0)
    max_failures: str | None = None  # "20" rows or "5%"
    accept: Accept | None = None  # which answers count
    dedup: Dedup | None = None  # rows of one value share a request
    checkpoint_dir: Path | None = None
    checkpoint_tag: str | None = None
    checkpoint_interval: int | None = Field(None, ge=1)
    checkpoint_seconds: float | None = Field(None, gt=0)
    resume: bool = True
    checkpointing: bool = True
    resources: JobResources = Field(default_factory=JobResources)
    down_after: bool = False  # the swarm ends itself once the job has ended


class ScriptRequest(Record):
    """Run a program of the user's beside a swarm. Fields are `job submit-script`'s flags."""

    script: Path
    args: tuple[str, ...] = ()
    swarm: str | None = None
    name: str | None = None
    external_id: str | None = None
    resources: JobResources = Field(default_factory=JobResources)
    down_after: bool = False


class JobChanges(Record):
    """What is different when a job runs once more. None: as before."""

    override: dict[str, Any] = Field(default_factory=dict)  # of job_kwargs; retried rows only
    max_concurrency: int | Literal["auto"] | None = None
    workers: int | None = Field(None, ge=1, le=256)
    retries: int | None = Field(None, ge=0)
    timeout_s: float | None = Field(None, gt=0)
    timeout_retries: int | None = Field(None, ge=0)
    max_failures: str | None = None
    accept: Accept | None = None
    overwrite: bool | None = None
    retry_classes: tuple[ReplyVerdict, ...] = ()  # of settled rows; none: whatever failed
    resources: JobResources = Field(
        default_factory=JobResources
    )  # what is not said here is as it was
