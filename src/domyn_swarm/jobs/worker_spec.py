"""A worker's specification (`job.json`) and its result (`result.json`)."""

from typing import Any, Literal

from domyn_swarm.jobs.run_options import RunOptions
from domyn_swarm.model import JobAccount, Record, ReplyVerdict, utc_now
from domyn_swarm.planning.plan import JobResources


def new_job_id() -> str:
    """Sorts by time, in UTC; unique on this machine and, for practical purposes, among machines."""
    import secrets  # here: reading records needs none

    return f"{utc_now():%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


class JobSpec(RunOptions):
    """Everything a worker needs, without secrets. Written before the job is submitted."""

    schema_version: Literal[1] = 1
    job_id: str
    name: str
    job: str  # "module:Class", or "source:NAME"
    job_source: str | None = None  # the text that defines NAME: of a script or a notebook
    import_path: str | None = None  # the submitter's sys.path entry that holds the module
    job_kwargs: dict[str, Any] = {}
    override: dict[str, Any] = {}  # of job_kwargs; leaves the identity
    model: str
    revision: str | None = None
    endpoint_file: str | None = None  # serving/endpoint.json: re-read when the endpoint moved
    serving: dict[str, Any] | None = None  # `ServingHandle` of the swarm, to query its state
    endpoint_url: str | None = None  # instead of a swarm's endpoint
    api_key_file: str | None = None
    collector_key_file: str | None = None  # of the swarm, to query the load of its engines
    job_key: str | None = None  # of the input in the store of answers; None: that of its path
    checkpoint_root: str
    retry_failed: bool = False
    retry_classes: tuple[ReplyVerdict, ...] = ()  # of settled rows; empty: all failed
    resources: JobResources = JobResources()
    min_version: str  # of domyn-swarm, that of the submitter; the worker checks


class JobResult(Record):
    """A run's own account, written whenever it ends; `result.json`."""

    schema_version: Literal[1] = 1
    checkpoint: str | None = None  # None: it kept none
    output: str | None = None  # None: nothing was published
    rows_total: int | None = None
    rows_done: int = 0
    rows_failed: int = 0
    verdicts: dict[ReplyVerdict, int] = {}  # the settled rows by verdict
    rows_resumed: int = 0  # settled before this run, by this job or an identical one
    requests: int = 0  # of this run
    retries: int = 0
    account: JobAccount | None = None  # of all runs; None: this run did not begin
    remarks: tuple[str, ...] = ()  # about the verdicts of its rows
    error: str | None = None  # why the run did not finish
