"""Removes records and folders of ended swarms and their jobs, old jobs without a swarm, and swarms
and jobs that can never be asked again.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Literal

from domyn_swarm.errors import PlatformError, StateError, SwarmError
from domyn_swarm.logs import get_logger
from domyn_swarm.model import JobStatus, Reach, Record
from domyn_swarm.paths import SwarmPaths
from domyn_swarm.state import JobRecord, SwarmRecord, SwarmStore
from domyn_swarm.swarm.factory import rehydrate
from domyn_swarm.swarm.reconcile import launchers, reconcile
from domyn_swarm.swarm.submitter import JobSubmitter
from domyn_swarm.swarm.whereabouts import is_elsewhere, place_of, reach

_log = get_logger(__name__)


class PrunableJob(Record):
    """A job without a swarm that ended long ago."""

    job_id: str
    name: str
    ended_at: datetime
    job_dir: str


class KeptJob(Record):
    """A job without a swarm that was submitted long ago, and stays."""

    job_id: str
    why: str


def survey_jobs(store: SwarmStore, before: datetime) -> Sequence[PrunableJob | KeptJob]:
    """The jobs without a swarm that were submitted before a moment, the oldest first: those that
    ended before it may be removed. Each job's platform is asked.
    """
    found = JobSubmitter(store).refresh_all(store.jobs_of_none(before))
    return [_judged_job(job) for job in found if not _ended_since(job, before)]


def _ended_since(job: JobRecord, before: datetime) -> bool:
    return job.status.final and _ended_at(job) >= before


def _ended_at(job: JobRecord) -> datetime:
    return job.ended_at or job.submitted_at


def _judged_job(job: JobRecord) -> PrunableJob | KeptJob:
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
    """Remove a job; returns why it was not removed, or None. The record goes first: the rest of a
    folder harms nothing.
    """
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


class PrunableSwarm(Record):
    """A swarm of which nothing runs, with what would be removed."""

    name: str
    tag: str
    stopped_at: datetime
    swarm_dir: str
    jobs: tuple[str, ...]  # ended ones; their records and folders are removed with it


class KeptSwarm(Record):
    """A swarm that stays."""

    name: str
    why: str


class PruneReport(Record):
    """The changes of `db prune`. Outputs and checkpoints are never touched."""

    schema_version: Literal[1] = 1
    removed: bool  # False: only listed, nothing was removed
    swarms: tuple[PrunableSwarm, ...]
    kept: tuple[KeptSwarm, ...]
    jobs: tuple[PrunableJob, ...] = ()  # without a swarm
    kept_jobs: tuple[KeptJob, ...] = ()  # likewise


def survey_prunable(store: SwarmStore, *, jobs_before: datetime) -> PruneReport:
    """The swarms and jobs that may be removed, and those that stay and why. Each swarm's platform
    is asked. Jobs without a swarm may be removed if they ended before a moment.
    """
    found = [_judged_swarm(store, record) for record in store.swarms(include_stopped=True)]
    jobs = survey_jobs(store, jobs_before)
    return PruneReport(
        removed=False,
        swarms=tuple(one for one in found if isinstance(one, PrunableSwarm)),
        kept=tuple(one for one in found if isinstance(one, KeptSwarm)),
        jobs=tuple(one for one in jobs if isinstance(one, PrunableJob)),
        kept_jobs=tuple(one for one in jobs if isinstance(one, KeptJob)),
    )


def prune(store: SwarmStore, wanted: PruneReport) -> PruneReport:
    """Remove the result of a survey, except what has changed since."""
    gone, kept = [], list(wanted.kept)
    for swarm in wanted.swarms:
        why = _forget(store, swarm)
        if why is None:
            gone.append(swarm)
        else:
            kept.append(KeptSwarm(name=swarm.name, why=why))
    jobs, kept_jobs = [], list(wanted.kept_jobs)
    for job in wanted.jobs:
        why = forget_job(store, job)
        if why is None:
            jobs.append(job)
        else:
            kept_jobs.append(KeptJob(job_id=job.job_id, why=why))
    return PruneReport(
        removed=True,
        swarms=tuple(gone),
        kept=tuple(kept),
        jobs=tuple(jobs),
        kept_jobs=tuple(kept_jobs),
    )


def _judged_swarm(store: SwarmStore, record: SwarmRecord) -> PrunableSwarm | KeptSwarm:
    try:
        why = _elsewhere(record)
        if why is None:
            record = reconcile(store, record)
            jobs = JobSubmitter(store).refresh_all(store.jobs(record.name))
            why = _reason_to_keep(record) or _reason_of_jobs(record, jobs)
    except (SwarmError, ValueError) as error:  # no answer, or a record of another version
        why = f"it could not be asked: {str(error).splitlines()[0]}"
    if why is not None:
        return KeptSwarm(name=record.name, why=why)
    return PrunableSwarm(
        name=record.name,
        tag=record.tag,
        stopped_at=record.updated_at,
        swarm_dir=record.swarm_dir,
        jobs=tuple(job.job_id for job in jobs),
    )


def _elsewhere(record: SwarmRecord) -> str | None:
    if not is_elsewhere(record):
        return None
    return f"it is {record.phase.value} on {place_of(record)}, which cannot be asked from here"


def _reason_to_keep(record: SwarmRecord) -> str | None:
    folder = Path(record.swarm_dir)
    if record.phase.live:
        return f"it is {record.phase.value}"
    if (folder.parent.name, folder.name) != ("swarms", record.name):
        return f"its folder {folder} is none that we make"
    if launchers(SwarmPaths(folder)):
        return "another swarm of its name is being brought up"
    swarm = rehydrate(record)
    if reach(record) is Reach.ELSEWHERE:
        return f"it ran on {place_of(record)}, which cannot be asked from here what is left of it"
    left = swarm.backend.find(swarm.handle)
    parts = [f"{part.kind} {part.index}" for handle in left for part in handle.parts]
    return f"parts of it still run: {', '.join(parts)}" if left else None


def _reason_of_jobs(record: SwarmRecord, jobs: Sequence[JobRecord]) -> str | None:
    for job in jobs:
        if not job.status.final:
            where = f" on {place_of(job)}" if is_elsewhere(job) else ""
            return f"its job {job.job_id} is {job.status.value}{where}, as far as is known"
        if job.output and Path(job.output).is_relative_to(record.swarm_dir):
            return f"its folder holds the output {job.output}"
    return None


def _forget(store: SwarmStore, swarm: PrunableSwarm) -> str | None:
    """Remove a swarm; returns why it was not removed, or None. The folder is renamed first: a new
    swarm of that name gets a new one.
    """
    folder = Path(swarm.swarm_dir)
    aside = folder.with_name(f".pruned-{swarm.tag}")
    try:
        folder.rename(aside)
    except FileNotFoundError:
        pass  # removed before, or renamed by an earlier attempt
    except OSError as error:
        return f"its folder cannot be removed: {error.strerror}"
    if not store.delete_stopped(swarm.tag):
        if not folder.exists() and aside.exists():
            aside.rename(folder)
        return "it is not stopped any more"
    remove_folder(aside)
    return None


def write_off_swarm(store: SwarmStore, name: str) -> None:
    """Record that a swarm has stopped, and that its jobs that cannot be asked either have failed.
    From then on it belongs to no place: `prune` may remove the rest of it.

    Raises:
        SwarmNotFound: there is none of that name.
        StateError: it can be asked from here, and so can be stopped.
    """
    record = store.swarm(name)
    if not _is_unreachable(record):
        raise StateError(
            f"The swarm {name} can be asked from here, and is not forgotten.",
            hint=f"Stop it: domyn-swarm down {name}",
        )
    store.set_stopped(record.tag, f"forgotten: it was on {place_of(record)}")
    store.forget_location(record.tag)
    for job in store.jobs(name):
        if not job.status.final and _is_unreachable(job):
            store.set_job_status(job.job_id, JobStatus.FAILED)


def write_off_job(store: SwarmStore, record: JobRecord) -> JobRecord:
    """Record that a job has failed. If it still runs, another driver still sees its lease.

    Raises:
        StateError: it can be asked from here, and so can be cancelled.
    """
    if record.status.final:
        return record
    if not _is_unreachable(record):
        raise StateError(
            f"The job {record.job_id} can be asked from here, and is not forgotten.",
            hint=f"End it: domyn-swarm job cancel {record.job_id}",
        )
    store.set_job_status(record.job_id, JobStatus.FAILED)
    return store.job(record.job_id)


def _is_unreachable(record: SwarmRecord | JobRecord) -> bool:
    """Whether it cannot be asked. If the platform does not answer, the caller asserts that it never
    will.
    """
    try:
        return reach(record) is Reach.ELSEWHERE
    except PlatformError:
        return True
