"""What a caller asks for when submitting a job."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from domyn_swarm.jobs.spec import JobSettings
from domyn_swarm.model import Accept, Record, ReplyVerdict
from domyn_swarm.planning.resources import JobResources

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
    job_kwargs: dict[str, Any] = Field(default_factory=dict)
    resources: JobResources = Field(default_factory=JobResources)


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
