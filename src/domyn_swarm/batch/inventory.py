"""What checkpoints lie in a folder: of which job, how much, held by whom; and how one goes away."""

from __future__ import annotations

import contextlib
import re
import secrets
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from domyn_swarm.batch import lease as leases
from domyn_swarm.batch.accounting import read_accounts
from domyn_swarm.batch.identity import read_fields
from domyn_swarm.batch.index import FrameFiles
from domyn_swarm.batch.results_folder import ResultsFolder
from domyn_swarm.batch.row_keys import search_keys
from domyn_swarm.errors import JobError
from domyn_swarm.model import Record

_DIGEST = re.compile(r"[0-9a-f]{24}")
_REMOVED = ".removed-"  # before the name of a folder that is on its way out
_POSITION_MIXER = np.uint64(0xC2B2AE3D27D4EB4F)  # odd: multiplication by it loses nothing


class StoredCheckpoint(Record):
    """One checkpoint."""

    identity: str
    path: Path
    job: str | None  # its class or function; None: the driver died before it wrote that down
    model: str | None
    tag: str | None
    job_ids: tuple[str, ...]  # the runs that wrote here, the first one first
    rows_done: int  # different rows with a result, failed ones included
    rows_failed: int  # of those: with an error
    bytes: int
    last_written_at: datetime
    lease: Literal["free", "held", "claimed"]  # claimed: by a machine that is not this one
    holder: str | None  # of a lease that is not free


def stored_checkpoints(root: Path) -> Iterator[StoredCheckpoint]:
    """Every checkpoint under `root`, by identity. Reads the keys of all rows.

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


def _stored(folder: Path) -> StoredCheckpoint:
    fields: dict[str, Any] = read_fields(folder) or {}
    found = [path.stat() for path in folder.iterdir()]
    done, failed = _count(folder)
    holder = leases.holder_of(folder)
    written = max([*(one.st_mtime for one in found), folder.stat().st_mtime])
    return StoredCheckpoint(
        identity=folder.name,
        path=folder,
        job=fields.get("job"),
        model=fields.get("model"),
        tag=fields.get("tag"),
        job_ids=tuple(dict.fromkeys(one.job_id for one in read_accounts(folder))),
        rows_done=done,
        rows_failed=failed,
        bytes=sum(one.st_size for one in found),
        last_written_at=datetime.fromtimestamp(written, UTC),
        lease="free" if holder is None else "held" if holder.surely_alive else "claimed",
        holder=None if holder is None else f"process {holder.pid} on {holder.host}",
    )


def _count(folder: Path) -> tuple[int, int]:
    """Rows with a result, and those of them with nothing but an error."""
    with contextlib.closing(FrameFiles.open([ResultsFolder(folder)])) as frames:
        answered, given_up = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)]
        for number in range(len(frames.refs)):
            keys = frames.keys(number)
            if keys is None:
                continue
            by_position = keys.digests[:, 0] == 1  # else by their ids, wherever they stand
            where = np.where(by_position, keys.ordinals * _POSITION_MIXER, np.uint64(0))
            rows = search_keys(keys.digests, "full") ^ where
            counted = keys.digests[:, 0] != 0  # zero: its error does not count any more
            failed = keys.outcomes & 1 != 0
            answered.append(rows[counted & ~failed])
            given_up.append(rows[counted & failed])
    good = np.unique(np.concatenate(answered))
    bad = np.setdiff1d(np.concatenate(given_up), good)
    return len(good) + len(bad), len(bad)


def remove_checkpoint(folder: Path) -> None:
    """Remove a checkpoint that nobody holds. Waits to find out whether a holder elsewhere lives.

    Raises:
        CheckpointBusy: a driver holds it; the message says who.
        JobError: it cannot be removed.
    """
    gone = folder.with_name(f"{_REMOVED}{folder.name}-{secrets.token_hex(4)}")
    lease = leases.acquire(folder)
    lease.abandon()  # others still see a holder, until nothing is there
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
