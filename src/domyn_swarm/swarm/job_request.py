"""What a caller asks for when submitting a job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

from domyn_swarm.errors import ConfigError
from domyn_swarm.jobs.spec import JobSettings
from domyn_swarm.model import Accept, Dedup, Dispatching, Fingerprint, Record, ReplyVerdict
from domyn_swarm.planning.plan import JobResources
from domyn_swarm.record import Meta, field

CHAT_JOB = "domyn_swarm.jobs:ChatCompletionJob"
"""What a job is that names no class."""


class Submission(JobSettings):
    """What whoever submits a job says of it, in Python as on the command line."""

    job: str = CHAT_JOB
    swarm: str | None = None
    endpoint: str | None = None  # any OpenAI endpoint, instead of a swarm
    model: str | None = None  # needed with `endpoint`
    name: str | None = None
    checkpoint_dir: Path | None = None
    down_after: bool = False  # the swarm ends itself once the job has ended


class JobRequest(Submission):
    """Submit a job. Fields are `job submit`'s flags; None: as the job has it, or as usual."""

    job_source: str | None = None  # `job` is a name that this text defines
    import_folder: Path | None = None  # where its module is looked for before the current folder
    job_kwargs: dict[str, Any] = field(default_factory=dict)
    resources: JobResources = JobResources()


class ScriptRequest(Record):
    """Run a program of the user's beside a swarm. Fields are `job submit-script`'s flags."""

    script: Path
    args: tuple[str, ...] = ()
    swarm: str | None = None
    name: str | None = None
    external_id: str | None = None
    resources: JobResources = JobResources()
    down_after: bool = False


class JobChanges(Record):
    """What is different when a job runs once more. None: as before."""

    override: dict[str, Any] = field(default_factory=dict)  # of job_kwargs; retried rows only
    max_concurrency: int | Literal["auto"] | None = None
    workers: Annotated[int, Meta(ge=1, le=256)] | None = None
    retries: Annotated[int, Meta(ge=0)] | None = None
    timeout_s: Annotated[float, Meta(gt=0)] | None = None
    timeout_retries: Annotated[int, Meta(ge=0)] | None = None
    max_failures: str | None = None
    accept: Accept | None = None
    overwrite: bool | None = None
    retry_classes: tuple[ReplyVerdict, ...] = ()  # of settled rows; none: whatever failed
    resources: JobResources = JobResources()  # what is not said here is as it was


class SubmitKeywords(TypedDict, total=False):
    """Options of `submit_job`, as the flags of `job submit`. Left out: as the job has it, or as
    usual.
    """

    input_columns: Sequence[str] | str
    """What a row is made of, instead of the job's input columns."""
    output_columns: Sequence[str] | str
    """Names for the output columns, in their order."""
    id_column: str | None
    """The column that rows are known by, instead of their position: unique and never null."""
    fingerprint: Fingerprint
    """How many rows are compared with those that were answered: `full`, `sample`, `off`."""
    output_mode: Literal["append", "replace", "io_only"] | None
    """`append`: the input's columns and the answers; `replace`: without the columns that were
    asked; `io_only`: those, the ids and the answers."""
    shard_output: bool
    """Write a folder of Parquet files instead of one file."""
    infer_types: bool
    """Give the columns of CSV types where the output is Parquet."""
    overwrite: bool
    """Replace an output that another job of ours, or the same one from another input, has left."""
    job_kwargs: dict[str, Any]
    """What the job's constructor is given, where the job is named as text."""
    limit: int | None
    """Only the first so many rows."""
    name: str | None
    """What the job is called."""
    external_id: str | None
    """An id of yours by which the job can be named everywhere."""
    max_concurrency: int | Literal["auto"] | None
    """Requests in flight, all workers together."""
    workers: int | None
    """Processes that ask."""
    data_backend: Literal["arrow", "pandas", "polars", "ray"] | None
    """The library that reads and writes."""
    backend_read_kwargs: dict[str, Any]
    """What that library's reader is given besides."""
    backend_write_kwargs: dict[str, Any]
    """What that library's writer is given besides."""
    ray_address: str | None
    """The Ray cluster, with `data_backend="ray"`."""
    retries: int | None
    """How often a request is repeated after an error that may pass."""
    timeout_s: float | None
    """How long a request may take, in seconds."""
    timeout_retries: int | None
    """How often a request is repeated that took too long."""
    max_failures: int | str | None
    """End the job when more rows fail: `20` rows, or `"5%"`."""
    accept: Accept | None
    """Which answers count: `complete` or `any`."""
    dedup: Dedup | None
    """Rows of one value share a request: `greedy` where nothing is drawn by chance, or `always`."""
    dispatch: Dispatching
    """Which replica gets a request: one that has had what it begins with (`affinity`; `auto`: where
    requests begin alike), or the one with the fewest (`least_load`)."""
    checkpoint_dir: str | Path | None
    """Where answers are kept, instead of `$DOMYN_SWARM_HOME/checkpoints`."""
    checkpoint_tag: str | None
    """Keeps apart what is otherwise the same job."""
    checkpoint_interval: int | None
    """Write answers to the disk after so many rows."""
    checkpoint_seconds: float | None
    """Write answers to the disk after so many seconds."""
    resume: bool
    """False: ask every row of this job again."""
    checkpointing: bool
    """False: keep no answers beside the output."""
    resources: JobResources | dict[str, Any]
    """What the job asks the platform for: `placement`, `cpus`, `memory_gb`, `time_limit_s`,
    `stop_after_s`, `max_gpu_hours`, `continues`, `mail_user`."""
    down_after: bool
    """The swarm ends itself once the job has ended."""
    encoding: str
    """Of text files: `utf-8`, `cp1252`, …"""
    delimiter: str | None
    """Of CSV and TSV."""
    types: Mapping[str, str]
    """Types of columns of CSV: `text`, `int`, `float`, `bool`, `json`."""
    recursive: bool
    """Read a folder's sub-folders as well."""


def request_of(given: Mapping[str, Any]) -> JobRequest:
    """A request from what a caller of `submit_job` gave.

    Raises:
        ConfigError: there is no option of that name, or a value cannot be used.
    """
    fields = dict(given)
    known = SubmitKeywords.__annotations__.keys() | {"job", "job_source", "input", "output"}
    for name in fields.keys() - known:
        close = get_close_matches(name, sorted(known), 1)
        hint = f"Did you mean {close[0]!r}?" if close else f"There are {', '.join(sorted(known))}."
        raise ConfigError(
            f"submit_job has no option {name!r}.",
            hint=f"{hint} Parameters of requests are the job's: ChatCompletionJob({name}=...).",
        )
    for name in ("input_columns", "output_columns"):
        if isinstance(fields.get(name), str):
            fields[name] = (fields[name],)
    if isinstance(fields.get("max_failures"), int):
        fields["max_failures"] = str(fields["max_failures"])
    from pydantic import ValidationError

    try:
        return JobRequest.model_validate(fields)
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        where = ".".join(map(str, wrong["loc"]))
        reason = str(wrong["msg"]).removeprefix("Value error, ")
        raise ConfigError(f"submit_job: {where} is {wrong['input']!r}: {reason}.") from error
