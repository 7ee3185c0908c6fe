"""The request of a caller who submits a job."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

from domyn_swarm.errors import ConfigError
from domyn_swarm.jobs.run_options import (
    ChangeableOptions,
    RunOptions,
    SubmissionKeywords,
    given_options,
)
from domyn_swarm.model import Record, ReplyVerdict
from domyn_swarm.planning.plan import JobResources
from domyn_swarm.record import about, field

CHAT_JOB = "domyn_swarm.jobs:ChatCompletionJob"
"""-"""


class Submission(RunOptions):
    """The fields that every submitted job has, in Python as on the command line."""

    job: str = CHAT_JOB
    swarm: str | None = None
    endpoint: Annotated[
        str | None, about("Any OpenAI endpoint instead of a swarm.", metavar="URL")
    ] = None
    model: Annotated[str | None, about("The model's name; needed with --endpoint.")] = None
    name: Annotated[str | None, about("A name to list it by.", flag="--job-name")] = None
    checkpoint_dir: Annotated[Path | None, about("Where checkpoints lie.", metavar="DIR")] = None
    down_after: Annotated[bool, about("Shut the swarm down when the job has ended.")] = False


class JobRequest(Submission):
    """Submit a job. Fields are the flags of `job submit`; None: the job's own value, or the
    default.
    """

    job_source: str | None = None  # `job` is a name that this text defines
    import_folder: Path | None = None  # searched for its module before the current folder
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


class JobChanges(ChangeableOptions):
    """Changes for a job that runs again. None, or False: as before."""

    override: dict[str, Any] = field(default_factory=dict)  # of job_kwargs; for retried rows only
    retry_classes: tuple[ReplyVerdict, ...] = ()  # of settled rows; none: all failed rows
    resources: JobResources = JobResources()  # unset fields stay unchanged

    def of(self, resources: JobResources) -> dict[str, Any]:
        """The fields of a job's spec that change; `resources` are the earlier ones."""
        changed = self.model_dump(exclude_none=True)
        if not self.overwrite:
            del changed["overwrite"]
        return {**changed, "resources": {**resources.model_dump(), **changed["resources"]}}


class SubmitKeywords(SubmissionKeywords, total=False):
    """Options of `submit_job`, as the flags of `job submit`. Omitted: the job's own value, or the
    default.
    """

    job_kwargs: dict[str, Any]
    """Arguments of the job's constructor, if the job is given as text."""
    checkpoint_dir: str | Path | None
    resources: JobResources | dict[str, Any]
    """The resources that the job requests: `placement`, `cpus`, `memory_gb`, `time_limit_s`,
    `stop_after_s`, `max_gpu_hours`, `continues`, `mail_user`.
    """
    down_after: bool


def request_of(given: Mapping[str, Any]) -> JobRequest:
    """The request of a call of `submit_job`.

    Raises:
        ConfigError: there is no option of that name, or a value cannot be used.
    """
    known = SubmitKeywords.__annotations__.keys() | {"job", "job_source", "input", "output"}
    for name in given.keys() - known:
        close = get_close_matches(name, sorted(known), 1)
        hint = f"Did you mean {close[0]!r}?" if close else f"There are {', '.join(sorted(known))}."
        raise ConfigError(
            f"submit_job has no option {name!r}.",
            hint=f"{hint} Parameters of requests are the job's: ChatCompletionJob({name}=...).",
        )
    return given_options(JobRequest, given, "submit_job:")
