"""Checkpoints as a person sees them: which there are, and removing some."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from domyn_swarm.batch.inventory import StoredCheckpoint, remove_checkpoint, stored_checkpoints
from domyn_swarm.errors import StateError, SwarmError
from domyn_swarm.model import Record, utc_now
from domyn_swarm.paths import checkpoints_dir, database_path

if TYPE_CHECKING:
    from domyn_swarm.state import JobRecord

_PREFIX_CHARACTERS = 4  # at least, so that nobody removes half of everything by a slip


class CheckpointQuery(Record):
    """Which checkpoints; all when nothing is said."""

    refs: tuple[str, ...] = ()  # the beginning of an identity, a job's id or its external id
    older_than_days: float | None = Field(None, ge=0)  # by when it was last written
    root: Path | None = None  # None: that of the home


class CheckpointEntry(StoredCheckpoint):
    """One checkpoint, with what the database knows of the jobs that wrote it."""

    job_name: str | None  # of the last run
    output: str | None  # likewise


class CheckpointList(Record):
    """What lies there."""

    schema_version: Literal[1] = 1
    root: Path
    checkpoints: tuple[CheckpointEntry, ...]
    bytes: int  # all together


class Removal(Record):
    """What became of one checkpoint."""

    identity: str
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
    jobs = _jobs()
    found = [_entry(one, jobs) for one in stored_checkpoints(root)]
    if query.refs:
        chosen = {_chosen(ref, found, jobs, root) for ref in query.refs}
        found = [one for one in found if one.identity in chosen]
    if query.older_than_days is not None:
        since = utc_now() - timedelta(days=query.older_than_days)
        found = [one for one in found if one.last_written_at < since]
    found.sort(key=_last_written)
    total = sum(one.bytes for one in found)
    return CheckpointList(root=root, checkpoints=tuple(found), bytes=total)


def remove_checkpoints(listed: CheckpointList) -> RemovalReport:
    """Remove what was listed, except what a driver holds: that stays, and is named."""
    removals = tuple(map(_remove, listed.checkpoints))
    freed = sum(one.bytes for one in removals if one.removed)
    return RemovalReport(checkpoints=removals, bytes_freed=freed)


def _remove(one: CheckpointEntry) -> Removal:
    told = {"identity": one.identity, "bytes": one.bytes}
    try:
        remove_checkpoint(one.path)
    except SwarmError as error:
        failed = {"removed": False, "error": error.message, "hint": error.hint}
        return Removal.model_validate({**told, **failed})
    return Removal.model_validate({**told, "removed": True})


def _last_written(one: CheckpointEntry) -> datetime:
    return one.last_written_at


def _jobs() -> dict[str, JobRecord]:
    """Every job by its id; none when there is no database, which is not created for this."""
    if not database_path().exists():
        return {}
    from domyn_swarm.state import SwarmStore

    return {record.job_id: record for record in SwarmStore.open().jobs()}


def _entry(one: StoredCheckpoint, jobs: dict[str, JobRecord]) -> CheckpointEntry:
    known = [jobs[job_id] for job_id in one.job_ids if job_id in jobs]
    last = known[-1] if known else None
    return CheckpointEntry(
        **one.model_dump(),
        job_name=None if last is None else last.name,
        output=None if last is None else last.output,
    )


def _chosen(
    ref: str, found: Sequence[CheckpointEntry], jobs: dict[str, JobRecord], root: Path
) -> str:
    ids = {ref, *(job.job_id for job in jobs.values() if job.external_id == ref)}
    by_job = [one.identity for one in found if ids & set(one.job_ids)]
    long_enough = len(ref) >= _PREFIX_CHARACTERS
    by_prefix = [one.identity for one in found if long_enough and one.identity.startswith(ref)]
    matching = by_job or by_prefix
    if not matching:
        raise StateError(
            f"There is no checkpoint of {ref!r} in {root}.",
            hint="Name a job by its id, or at least 4 characters of an identity: see "
            "`domyn-swarm checkpoints list`.",
        )
    if len(matching) > 1:
        raise StateError(
            f"{ref!r} means {len(matching)} checkpoints: {', '.join(matching)}.",
            hint="Write more of its identity.",
        )
    return matching[0]
