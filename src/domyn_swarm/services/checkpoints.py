"""Lists and removes checkpoints."""

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

_PREFIX_CHARACTERS = 4  # minimum, so that a typing error does not match many checkpoints


class CheckpointQuery(Record):
    """Which checkpoints; by default all."""

    refs: tuple[str, ...] = ()  # prefixes of identities (for whole stores), or ids of jobs
    older_than_days: Annotated[float, Meta(ge=0)] | None = None  # since a store was last written
    root: Path | None = None  # None: the folder in the home


class JobEntry(StoredJob):
    """The stored rows of one job, with the job's record in the database."""

    job_name: str | None  # of the last run
    external_id: str | None  # likewise
    output: str | None  # likewise


class Touched(Record):
    """A job that is not listed but uses answers of a listed job."""

    key: str
    job_id: str | None  # of the last run
    external_id: str | None
    input: str | None
    rows: int  # that it uses


class CheckpointEntry(StoredCheckpoint):
    """One store, or some jobs of it."""

    jobs: tuple[JobEntry, ...]
    whole: bool  # all jobs of the store are listed
    touched: tuple[Touched, ...]  # jobs that would lose answers


class CheckpointList(Record):
    """The checkpoints that a query selects."""

    schema_version: Literal[1] = 1
    root: Path
    checkpoints: tuple[CheckpointEntry, ...]
    bytes: int  # of all of them


class Removal(Record):
    """The result of removing one job's rows, or a whole store."""

    identity: str
    key: str | None  # None: the whole store
    job_ids: tuple[str, ...]
    bytes: int
    removed: bool
    error: str | None = None
    hint: str | None = None


class RemovalReport(Record):
    """The results of a removal."""

    schema_version: Literal[1] = 1
    checkpoints: tuple[Removal, ...]
    bytes_freed: int


def list_checkpoints(query: CheckpointQuery) -> CheckpointList:
    """The checkpoints that a query selects, the last written one at the end.

    Raises:
        StateError: a reference matches no checkpoint, or several.
        JobError: the folder cannot be read.
    """
    root = (query.root or checkpoints_dir()).absolute()
    records = _records()
    entries = [_entry(stored, records) for stored in stored_checkpoints(root)]
    if query.refs:
        entries = _chosen(query.refs, entries, records, root)
    if query.older_than_days is not None:
        since = utc_now() - timedelta(days=query.older_than_days)
        entries = [entry for entry in entries if entry.last_written_at < since]
    entries.sort(key=_last_written)
    total = sum(entry.bytes for entry in entries)
    return CheckpointList(root=root, checkpoints=tuple(entries), bytes=total)


def remove_checkpoints(listed: CheckpointList) -> RemovalReport:
    """Remove the listed checkpoints, except those whose lease a driver holds; the report names
    these.
    """
    removals = []
    for entry in listed.checkpoints:
        if entry.whole:
            removals.append(_remove_store(entry))
        else:
            removals += [_remove_job(entry.identity, job) for job in entry.jobs]
    freed = sum(removal.bytes for removal in removals if removal.removed)
    return RemovalReport(checkpoints=tuple(removals), bytes_freed=freed)


def _remove_store(entry: CheckpointEntry) -> Removal:
    ids = tuple(job_id for job in entry.jobs for job_id in job.job_ids)
    removal = Removal(
        identity=entry.identity, key=None, job_ids=ids, bytes=entry.bytes, removed=True
    )
    try:
        remove_store(entry.path)
    except SwarmError as error:
        return _failed(removal, error)
    return removal


def _remove_job(identity: str, job: JobEntry) -> Removal:
    removal = Removal(
        identity=identity, key=job.key, job_ids=job.job_ids, bytes=job.bytes, removed=True
    )
    try:
        remove_job(job.path)
    except SwarmError as error:
        return _failed(removal, error)
    return removal


def _failed(removal: Removal, error: SwarmError) -> Removal:
    why = {"removed": False, "error": error.message, "hint": error.hint}
    return removal.model_copy(update=why)


def _last_written(entry: CheckpointEntry) -> datetime:
    return entry.last_written_at


def _records() -> dict[str, JobRecord]:
    """Every job by its id; empty if there is no database, which is not created."""
    if not database_path().exists():
        return {}
    from domyn_swarm.state import SwarmStore

    return {record.job_id: record for record in SwarmStore.open().jobs()}


def _entry(stored: StoredCheckpoint, records: Mapping[str, JobRecord]) -> CheckpointEntry:
    jobs = tuple(_job_entry(job, records) for job in stored.jobs)
    fields = stored.as_fields()
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
    entries: Sequence[CheckpointEntry],
    records: Mapping[str, JobRecord],
    root: Path,
) -> list[CheckpointEntry]:
    """The stores and jobs that the references select, each once."""
    whole: set[str] = set()
    keys: dict[str, set[str]] = {}
    for ref in refs:
        identity, key = _match(ref, entries, records, root)
        if key is None:
            whole.add(identity)
        else:
            keys.setdefault(identity, set()).add(key)
    return [
        entry if entry.identity in whole else _part(entry, keys[entry.identity])
        for entry in entries
        if entry.identity in whole or entry.identity in keys
    ]


def _match(
    ref: str, entries: Sequence[CheckpointEntry], records: Mapping[str, JobRecord], root: Path
) -> tuple[str, str | None]:
    """The identity, and the key of a job in it (None: the whole store), that a reference matches.

    Raises:
        StateError: it matches none, or several.
    """
    ids = {ref, *(job.job_id for job in records.values() if job.external_id == ref)}
    matching: list[tuple[str, str | None]] = [
        (entry.identity, job.key)
        for entry in entries
        for job in entry.jobs
        if ids & set(job.job_ids)
    ]
    if not matching and len(ref) >= _PREFIX_CHARACTERS:
        matching = [(entry.identity, None) for entry in entries if entry.identity.startswith(ref)]
    if not matching:
        raise StateError(
            f"There is no checkpoint of {ref!r} in {root}.",
            hint="Give the id of a job, or at least 4 characters of an identity: see "
            "`domyn-swarm checkpoints list`.",
        )
    if len(matching) > 1:
        names = ("/".join(filter(None, match)) for match in matching)
        raise StateError(
            f"{ref!r} matches {len(matching)} checkpoints: {', '.join(names)}.",
            hint="Give more characters of the identity, or the id of a job.",
        )
    return matching[0]


def _part(entry: CheckpointEntry, keys: set[str]) -> CheckpointEntry:
    """Some jobs of a store, with the other jobs that would lose answers."""
    chosen = tuple(job for job in entry.jobs if job.key in keys)
    if len(chosen) == len(entry.jobs):
        return entry
    touched = []
    for job in entry.jobs:
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
    return entry.model_copy(
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
