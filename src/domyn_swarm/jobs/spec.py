"""What a worker is told (`job.json`) and what it tells at the end (`result.json`)."""

from typing import Annotated, Any, Literal

from domyn_swarm.batch.input.reading import InputReading
from domyn_swarm.model import (
    Accept,
    Dedup,
    Dispatching,
    Fingerprint,
    JobAccount,
    Record,
    ReplyVerdict,
    utc_now,
)
from domyn_swarm.planning.plan import JobResources
from domyn_swarm.record import Meta


def new_job_id() -> str:
    """Sorts by time, which is UTC; unique on this machine and, as far as matters, on others."""
    import secrets  # here: to read what was written takes none

    return f"{utc_now():%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


class JobSettings(InputReading):
    """What a submitter says of a job beside whom and what it asks. None: as the job has it, or as
    usual.
    """

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
    limit: Annotated[int, Meta(ge=0)] | None = None
    external_id: str | None = None
    max_concurrency: int | Literal["auto"] | None = None
    workers: Annotated[int, Meta(ge=1, le=256)] | None = (
        None  # None: one, or one for each node of Ray's
    )
    retries: Annotated[int, Meta(ge=0)] | None = None
    timeout_s: Annotated[float, Meta(gt=0)] | None = None
    timeout_retries: Annotated[int, Meta(ge=0)] | None = None
    max_failures: str | None = None  # "20" rows or "5%"
    accept: Accept | None = None  # which answers count
    dedup: Dedup | None = None  # rows of one value share a request
    dispatch: Dispatching = "auto"  # which replica gets a request
    checkpoint_tag: str | None = None
    checkpoint_interval: Annotated[int, Meta(ge=1)] | None = None
    checkpoint_seconds: Annotated[float, Meta(gt=0)] | None = None
    resume: bool = True
    checkpointing: bool = True
    data_backend: Literal["arrow", "pandas", "polars", "ray"] | None = None
    backend_read_kwargs: dict[str, Any] = {}
    backend_write_kwargs: dict[str, Any] = {}
    ray_address: str | None = None


class JobSpec(JobSettings):
    """Everything a worker needs, without secrets. Written before the job is submitted."""

    schema_version: Literal[1] = 1
    job_id: str
    name: str
    job: str  # "module:Class", or "source:NAME"
    job_source: str | None = None  # the text that defines NAME: a script's job, or a notebook's
    import_path: str | None = None  # the submitter's sys.path entry that holds the module
    job_kwargs: dict[str, Any] = {}
    override: dict[str, Any] = {}  # of job_kwargs; leaves the identity
    model: str
    revision: str | None = None
    endpoint_file: str | None = None  # serving/endpoint.json: re-read when the endpoint moved
    serving: dict[str, Any] | None = None  # `ServingHandle` of the swarm, to ask what became of it
    endpoint_url: str | None = None  # instead of a swarm's endpoint
    api_key_file: str | None = None
    collector_key_file: str | None = None  # of the swarm, to ask how busy its engines are
    job_key: str | None = None  # of the input in the store of answers; None: that of its path
    checkpoint_root: str
    retry_failed: bool = False
    retry_classes: tuple[ReplyVerdict, ...] = ()  # of settled rows; none: whatever failed
    resources: JobResources = JobResources()
    min_version: str  # of domyn-swarm, that of the submitter; the worker checks


class JobResult(Record):
    """A run's own account, written when it ends, however it ends; `result.json`."""

    schema_version: Literal[1] = 1
    checkpoint: str | None = None  # None: it kept none
    output: str | None = None  # None: nothing was published
    rows_total: int | None = None
    rows_done: int = 0
    rows_failed: int = 0
    verdicts: dict[ReplyVerdict, int] = {}  # the settled rows by what their answers are
    rows_resumed: int = 0  # settled before this run, by this job or another one that asks the same
    requests: int = 0  # of this run
    retries: int = 0
    account: JobAccount | None = None  # of all runs; None: this one did not begin
    remarks: tuple[str, ...] = ()  # worth knowing of how its rows came out
    error: str | None = None  # why the run did not come to its end
