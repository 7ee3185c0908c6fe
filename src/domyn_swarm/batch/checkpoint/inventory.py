"""Lists the stores of answers in a folder: their jobs, sizes and holders; and removes them."""

from __future__ import annotations

import contextlib
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from domyn_swarm.batch.checkpoint import lease as leases
from domyn_swarm.batch.checkpoint.accounting import read_accounts
from domyn_swarm.batch.checkpoint.index import FrameFiles
from domyn_swarm.batch.checkpoint.job_store import (
    ResultsFolder,
    hidden_to,
    hold,
    job_folders,
    read_note,
)
from domyn_swarm.batch.checkpoint.lease import Lease
from domyn_swarm.batch.checkpoint.request_identity import read_fields
from domyn_swarm.batch.input.row_keys import search_keys
from domyn_swarm.batch.outcomes.verdicts import Reading
from domyn_swarm.errors import JobError
from domyn_swarm.model import Record

_DIGEST = re.compile(r"[0-9a-f]{24}")
_REMOVED = ".removed-"  # prefix of the name of a folder that is being removed
_POSITION_MIXER = np.uint64(0xC2B2AE3D27D4EB4F)  # odd: multiplication by it loses nothing

_Rows = NDArray[np.uint64]  # one number for each different row


class StoredJob(Record):
    """The part of one job in a store."""

    key: str  # of its input
    path: Path
    input: str | None  # None: the driver ended before it recorded that
    job_ids: tuple[str, ...]  # the runs that wrote here, the first run first
    rows_done: int  # different rows with a result here, including failed ones
    rows_failed: int  # of those: with an error, or with an answer that the job does not accept
    takes_from: dict[str, int]  # rows that its last run took from other jobs, by their keys
    bytes: int
    last_written_at: datetime
    lease: Literal["free", "held", "claimed"]  # claimed: by another machine
    holder: str | None  # of a lease that is not free


class StoredCheckpoint(Record):
    """One store: all answers to the same requests."""

    identity: str
    path: Path
    job: str | None  # its class or function; None: the driver ended before it recorded that
    model: str | None
    tag: str | None
    prompt: str | None  # None: the job has no template
    jobs: tuple[StoredJob, ...]
    rows_done: int  # different rows, over all jobs
    rows_failed: int  # of those: no job has an answer that it accepts
    bytes: int
    last_written_at: datetime


def stored_checkpoints(root: Path) -> Iterator[StoredCheckpoint]:
    """Every store under `root`, by identity. Reads the keys of all rows.

    Raises:
        JobError: the folder cannot be read.
    """
    try:
        folders = sorted(path for path in root.iterdir() if _DIGEST.fullmatch(path.name))
    except FileNotFoundError:
        return
    except OSError as error:
        raise JobError(f"{root} cannot be read: {error.strerror}.", hint="Check it.") from error
    for folder in folders:
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            yield _stored(folder)


def _stored(store: Path) -> StoredCheckpoint:
    fields: dict[str, Any] = read_fields(store) or {}
    jobs, answered, failed = [], [], []
    for folder in job_folders(store):
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            rows = _rows_in(folder)
            jobs.append(_job(folder, len(rows.answered) + len(rows.failed), rows.failed_now))
            answered.append(rows.answered)
            failed.append(rows.failed)
    good, bad = _different(answered, failed)
    prompt = fields.get("prompt")
    own = [path.stat() for path in store.iterdir() if path.is_file()]
    written = [datetime.fromtimestamp(one.st_mtime, UTC) for one in [*own, store.stat()]]
    return StoredCheckpoint(
        identity=store.name,
        path=store,
        job=fields.get("job"),
        model=fields.get("model"),
        tag=fields.get("tag"),
        prompt=prompt if isinstance(prompt, str) else None,
        jobs=tuple(jobs),
        rows_done=len(good) + len(bad),
        rows_failed=len(bad),
        bytes=sum(one.st_size for one in own) + sum(one.bytes for one in jobs),
        last_written_at=max([*written, *(one.last_written_at for one in jobs)]),
    )


def _job(folder: Path, rows_done: int, rows_failed: int) -> StoredJob:
    found = [path.stat() for path in folder.iterdir()]
    written = max([*(one.st_mtime for one in found), folder.stat().st_mtime])
    holder = leases.holder_of(folder)
    note, accounts = read_note(folder), read_accounts(folder)
    ids = [one.job_id for one in accounts] + ([] if note is None else [note.job_id])
    return StoredJob(
        key=folder.name,
        path=folder,
        input=None if note is None else note.input,
        job_ids=tuple(dict.fromkeys(ids)),
        rows_done=rows_done,
        rows_failed=rows_failed,
        takes_from=accounts[-1].resumed_from if accounts else {},
        bytes=sum(one.st_size for one in found),
        last_written_at=datetime.fromtimestamp(written, UTC),
        lease="free" if holder is None else "held" if holder.surely_alive else "claimed",
        holder=None if holder is None else f"process {holder.pid} on {holder.host}",
    )


class _FolderRows(NamedTuple):
    """The rows of one job's folder."""

    answered: _Rows
    failed: _Rows  # whose results all failed
    failed_now: int  # by the results that are not hidden from the job, if there are any


def _rows_in(folder: Path) -> _FolderRows:
    note = read_note(folder)
    reading = Reading(None if note is None else note.accept)
    answered, failed = _rows_of(ResultsFolder(folder), reading)
    hidden = 0
    with contextlib.suppress(JobError):  # reported by the job itself
        hidden = hidden_to(folder)
    if not hidden:
        return _FolderRows(answered, failed, len(failed))
    good, bad = _rows_of(ResultsFolder(folder, hidden_to=hidden), reading)
    only_hidden = np.setdiff1d(failed, np.concatenate([good, bad]))
    return _FolderRows(answered, failed, len(bad) + len(only_hidden))


def _rows_of(folder: ResultsFolder, reading: Reading) -> tuple[_Rows, _Rows]:
    """The rows with an accepted answer, and the others."""
    answered, failed = [], []
    with contextlib.closing(FrameFiles.open([folder], reading)) as frames:
        for number in range(len(frames.refs)):
            keys = frames.keys(number)
            if keys is None:
                continue
            by_position = keys.digests[:, 0] == 1  # else by their ids, in any order
            where = np.where(by_position, keys.ordinals * _POSITION_MIXER, np.uint64(0))
            rows = search_keys(keys.digests, "full") ^ where
            counted = keys.digests[:, 0] != 0  # zero: its error is void
            errors = reading.failed[keys.outcomes] != 0
            answered.append(rows[counted & ~errors])
            failed.append(rows[counted & errors])
    return _different(answered, failed)


def _different(answered: Sequence[_Rows], failed: Sequence[_Rows]) -> tuple[_Rows, _Rows]:
    none = np.empty(0, np.uint64)
    good = np.unique(np.concatenate([none, *answered]))
    return good, np.setdiff1d(np.concatenate([none, *failed]), good)


def remove_job(folder: Path) -> None:
    """Remove the part of one job in a store, if no driver holds it.

    Raises:
        CheckpointBusy: a driver holds it; the message names it.
        JobError: it cannot be removed.
    """
    hold(folder).abandon()  # others see a holder until the folder is gone
    _remove(folder)


def remove_store(store: Path) -> None:
    """Remove a whole store, if no driver holds any of it.

    Raises:
        CheckpointBusy: a driver holds a job's part; the message names it. Nothing was removed.
        JobError: it cannot be removed.
    """
    held: dict[Path, Lease] = {}
    try:
        while left := [folder for folder in job_folders(store) if folder not in held]:
            held.update((folder, hold(folder)) for folder in left)
    except BaseException:
        for lease in held.values():
            lease.release()
        raise
    for lease in held.values():
        lease.abandon()
    _remove(store)


def _remove(folder: Path) -> None:
    """Remove a folder that is held. Does not wait."""
    gone = folder.with_name(f"{_REMOVED}{folder.name}-{secrets.token_hex(4)}")
    try:
        folder.rename(gone)
    except OSError as error:
        raise JobError(
            f"{folder} cannot be removed: {error.strerror}.", hint="Check who owns it."
        ) from error
    for leftover in folder.parent.glob(f"{_REMOVED}*"):  # also of a removal that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    if gone.exists():
        raise JobError(f"Some of {gone} cannot be removed.", hint="Check who owns it.")
