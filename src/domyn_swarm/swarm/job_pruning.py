"""Forgets jobs of no swarm that ended long ago: their records and folders. Never what may live."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from domyn_swarm.logs import get_logger
from domyn_swarm.model import Record
from domyn_swarm.state import JobRecord, SwarmStore
from domyn_swarm.swarm.submitter import JobSubmitter

_log = get_logger(__name__)


class PrunableJob(Record):
    """A job of no swarm that ended long ago."""

    job_id: str
    name: str
    ended_at: datetime
    job_dir: str


class KeptJob(Record):
    """A job of no swarm that was submitted long ago, and stays."""

    job_id: str
    why: str


def survey_jobs(store: SwarmStore, before: datetime) -> Sequence[PrunableJob | KeptJob]:
    """The jobs of no swarm that were submitted before a moment, the oldest first: those that ended
    before it may be forgotten. Each job's platform is asked.
    """
    found = JobSubmitter(store).refresh_all(store.jobs_of_none(before))
    return [_judged(job) for job in found if not _ended_since(job, before)]


def _ended_since(job: JobRecord, before: datetime) -> bool:
    return job.status.final and _ended_at(job) >= before


def _ended_at(job: JobRecord) -> datetime:
    return job.ended_at or job.submitted_at


def _judged(job: JobRecord) -> PrunableJob | KeptJob:
    folder = Path(job.job_dir)
    why = None
    if not job.status.final:
        why = f"it is {job.status.value}, as far as is known"
    elif (folder.parent.name, folder.name) != ("jobs", job.job_id):
        why = f"its folder {folder} is none that we make"
    elif job.output and Path(job.output).is_relative_to(folder):
        why = f"its folder holds the output {job.output}"
    if why is not None:
        return KeptJob(job_id=job.job_id, why=why)
    return PrunableJob(
        job_id=job.job_id, name=job.name, ended_at=_ended_at(job), job_dir=job.job_dir
    )


def forget_job(store: SwarmStore, job: PrunableJob) -> str | None:
    """Why not, or None. The record goes first: what is left of a folder is in nobody's way."""
    if not store.delete_ended_job(job.job_id):
        return "it has not ended"
    remove_folder(Path(job.job_dir))
    return None


def remove_folder(folder: Path) -> None:
    """Remove a folder; one that cannot be removed is named in the log."""
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        return
    except OSError as error:
        _log.warning("%s is left: %s", folder, error)
