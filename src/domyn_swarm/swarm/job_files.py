"""What a job's own files say: how far it is where nobody can be asked, and what it was told."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from domyn_swarm.backends.base import read_exit
from domyn_swarm.errors import JobError, StateError, words_of
from domyn_swarm.jobs.spec import JobSpec
from domyn_swarm.model import JobStatus, Reach
from domyn_swarm.paths import JobPaths
from domyn_swarm.state import JobRecord


def status_by_files(record: JobRecord, where: Reach) -> JobStatus:
    """The status of a job that is not here; that of its record where its files say no more.

    Its own record of a failure or a stop is not the whole truth where a scheduler may have ended
    it.
    """
    paths = JobPaths(Path(record.job_dir))
    ended = read_exit(paths.exit)
    if ended is not None and (record.platform == "local" or ended.conclusive):
        return ended.status
    if where is Reach.OVER:  # nobody will ever know more
        return JobStatus.FAILED if ended is None else ended.status
    begun = record.status is JobStatus.PENDING and paths.progress.exists()
    return JobStatus.RUNNING if begun else record.status


@contextlib.contextmanager
def before_submission(paths: JobPaths) -> Iterator[None]:
    """The body writes down a job that its platform does not know yet. Where that breaks off,
    nothing of the job's folder is left: the key of an endpoint may be in it.

    Raises:
        JobError: the disk does not take it.
    """
    try:
        yield
    except BaseException as error:
        shutil.rmtree(paths.root, ignore_errors=True)
        if not isinstance(error, OSError):
            raise
        raise JobError(
            f"The job cannot be submitted. {words_of(error, paths.root)}",
            hint="Nothing was started. Check that disk (space, quota, permissions) and submit the "
            "job again, or set DOMYN_SWARM_HOME to a folder with room.",
        ) from error


def spec_of(record: JobRecord) -> JobSpec:
    """What a job was told.

    Raises:
        StateError: its files are gone.
    """
    path = JobPaths(Path(record.job_dir)).spec
    if record.output is None:
        raise StateError(
            f"{record.job_id} ran the script {record.input}, which has no rows of ours.",
            hint="Submit the script again.",
        )
    try:
        return JobSpec.model_validate_json(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise StateError(
            f"What the job {record.job_id} was told is not readable at {path}.",
            hint="Submit it again with all its flags: rows that are done are not asked again.",
        ) from error
