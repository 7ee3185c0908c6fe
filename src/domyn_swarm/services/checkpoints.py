"""Checkpoints as a person sees them: which there are, and removing some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from domyn_swarm.batch.checkpoint.inventory import (
    StoredCheckpoint,
    StoredJob,
    remove_job,
    remove_store,
    stored_checkpoints,
)
from domyn_swarm.errors import StateError, SwarmError
from domyn_swarm.model import Record, utc_now
from domyn_swarm.paths import checkpoints_dir, database_path
from domyn_swarm.record import Meta

if TYPE_CHECKING:
    from domyn_swarm.state import JobRecord

_PREFIX_CHARACTERS = 4  # at least, so that nobody removes half of everything by a slip


class CheckpointQuery(Record):
    """Which checkpoints; all when nothing is said."""

    refs: tuple[str, ...] = ()  # the beginning of an identity: whole stores; or jobs' ids
    older_than_days: Annotated[float, Meta(ge=0)] | None = None  # by when a store was last written
    root: Path | None = None  # None: that of the home


class JobEntry(StoredJob):
    """What one job has left, with what the database knows of it."""

    job_name: str | None  # of the last run
    external_id: str | None  # likewise
    output: str | None  # likewise


class Touched(Record):
    """A job that would miss answers of what is listed."""

    key: str
    job_id: str | None  # of the last run
    external_id: str | None
    input: str | None
    rows: int  # that it took from there


class CheckpointEntry(StoredCheckpoint):
    """One store, or some jobs of it."""

    jobs: tuple[JobEntry, ...]
    whole: bool  # all jobs of the store are listed
    touched: tuple[Touched, ...]  # jobs that are not listed


class CheckpointList(Record):
    """What lies there."""

    schema_version: Literal[1] = 1
    root: Path
    checkpoints: tuple[CheckpointEntry, ...]
    bytes: int  # all together


class Removal(Record):
    """What became of what one job had left, or of a whole store."""

    identity: str
    key: str | None  # None: the whole store
    job_ids: tuple[str, ...]
    bytes: int
    removed: bool
    error: str | None = None
    hint: str | None = None


class RemovalReport(Record):
    """What was removed."""

    schema_version: Literal[1] = 1
    checkpoints: tuple[Removal, ...]
    bytes_freed: int


def list_checkpoints(query: CheckpointQuery) -> CheckpointList:
    """The checkpoints that a query is about, the one written last at the end.

    Raises:
        StateError: a reference means none, or several.
        JobError: the folder cannot be read.
    """
    root = (query.root or checkpoints_dir()).absolute()
    records = _records()
    found = [_entry(one, records) for one in stored_checkpoints(root)]
    if query.refs:
        found = _chosen(query.refs, found, records, root)
    if query.older_than_days is not None:
        since = utc_now() - timedelta(days=query.older_than_days)
        found = [one for one in found if one.last_written_at < since]
    found.sort(key=_last_written)
    total = sum(one.bytes for one in found)
    return CheckpointList(root=root, checkpoints=tuple(found), bytes=total)


def remove_checkpoints(listed: CheckpointList) -> RemovalReport:
    """Remove what was listed, except what a driver holds: that stays, and is named."""
    removals = []
    for one in listed.checkpoints:
        if one.whole:
            removals.append(_remove_store(one))
        else:
            removals += [_remove_job(one.identity, job) for job in one.jobs]
    freed = sum(one.bytes for one in removals if one.removed)
    return RemovalReport(checkpoints=tuple(removals), bytes_freed=freed)


def _remove_store(one: CheckpointEntry) -> Removal:
    ids = tuple(job_id for job in one.jobs for job_id in job.job_ids)
    gone = Removal(identity=one.identity, key=None, job_ids=ids, bytes=one.bytes, removed=True)
    try:
        remove_store(one.path)
    except SwarmError as error:
        return _kept(gone, error)
    return gone


def _remove_job(identity: str, job: JobEntry) -> Removal:
    gone = Removal(
        identity=identity, key=job.key, job_ids=job.job_ids, bytes=job.bytes, removed=True
    )
    try:
        remove_job(job.path)
    except SwarmError as error:
        return _kept(gone, error)
    return gone


def _kept(gone: Removal, error: SwarmError) -> Removal:
    why = {"removed": False, "error": error.message, "hint": error.hint}
    return gone.model_copy(update=why)


def _last_written(one: CheckpointEntry) -> datetime:
    return one.last_written_at


def _records() -> dict[str, JobRecord]:
    """Every job by its id; none when there is no database, which is not created for this."""
    if not database_path().exists():
        return {}
    from domyn_swarm.state import SwarmStore

    return {record.job_id: record for record in SwarmStore.open().jobs()}


def _entry(one: StoredCheckpoint, records: Mapping[str, JobRecord]) -> CheckpointEntry:
    jobs = tuple(_job_entry(job, records) for job in one.jobs)
    fields = one.as_fields()
    return CheckpointEntry(**{**fields, "jobs": jobs}, whole=True, touched=())


def _job_entry(job: StoredJob, records: Mapping[str, JobRecord]) -> JobEntry:
    known = [records[job_id] for job_id in job.job_ids if job_id in records]
    last = known[-1] if known else None
    return JobEntry(
        **job.as_fields(),
        job_name=None if last is None else last.name,
        external_id=None if last is None else last.external_id,
        output=None if last is None else last.output,
    )


def _chosen(
    refs: Sequence[str],
    found: Sequence[CheckpointEntry],
    records: Mapping[str, JobRecord],
    root: Path,
) -> list[CheckpointEntry]:
    """The stores and jobs that are meant, each once."""
    whole: set[str] = set()
    keys: dict[str, set[str]] = {}
    for ref in refs:
        identity, key = _meant(ref, found, records, root)
        if key is None:
            whole.add(identity)
        else:
            keys.setdefault(identity, set()).add(key)
    return [
        one if one.identity in whole else _part(one, keys[one.identity])
        for one in found
        if one.identity in whole or one.identity in keys
    ]


def _meant(
    ref: str, found: Sequence[CheckpointEntry], records: Mapping[str, JobRecord], root: Path
) -> tuple[str, str | None]:
    ids = {ref, *(job.job_id for job in records.values() if job.external_id == ref)}
    matching: list[tuple[str, str | None]] = [
        (one.identity, job.key) for one in found for job in one.jobs if ids & set(job.job_ids)
    ]
    if not matching and len(ref) >= _PREFIX_CHARACTERS:
        matching = [(one.identity, None) for one in found if one.identity.startswith(ref)]
    if not matching:
        raise StateError(
            f"There is no checkpoint of {ref!r} in {root}.",
            hint="Name a job by its id, or at least 4 characters of an identity: see "
            "`domyn-swarm checkpoints list`.",
        )
    if len(matching) > 1:
        names = ("/".join(filter(None, one)) for one in matching)
        raise StateError(
            f"{ref!r} means {len(matching)} checkpoints: {', '.join(names)}.",
            hint="Write more of its identity, or a job's own id.",
        )
    return matching[0]


def _part(one: CheckpointEntry, keys: set[str]) -> CheckpointEntry:
    """Some jobs of a store, and who would miss their answers."""
    chosen = tuple(job for job in one.jobs if job.key in keys)
    if len(chosen) == len(one.jobs):
        return one
    touched = []
    for job in one.jobs:
        rows = sum(job.takes_from.get(key, 0) for key in keys)
        if job.key not in keys and rows:
            job_id = job.job_ids[-1] if job.job_ids else None
            touched.append(
                Touched(
                    key=job.key,
                    job_id=job_id,
                    external_id=job.external_id,
                    input=job.input,
                    rows=rows,
                )
            )
    return one.model_copy(
        update={
            "jobs": chosen,
            "whole": False,
            "touched": tuple(touched),
            "rows_done": sum(job.rows_done for job in chosen),
            "rows_failed": sum(job.rows_failed for job in chosen),
            "bytes": sum(job.bytes for job in chosen),
            "last_written_at": max(job.last_written_at for job in chosen),
        }
    )
