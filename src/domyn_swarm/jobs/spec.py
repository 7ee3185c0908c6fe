"""What a worker is told (`job.json`) and what it tells at the end (`result.json`)."""

from typing import Any, Literal

from domyn_swarm.jobs.run_options import RunOptions
from domyn_swarm.model import JobAccount, Record, ReplyVerdict, utc_now
from domyn_swarm.planning.plan import JobResources


def new_job_id() -> str:
    """Sorts by time, which is UTC; unique on this machine and, as far as matters, on others."""
    import secrets  # here: to read what was written takes none

    return f"{utc_now():%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


class JobSpec(RunOptions):
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
