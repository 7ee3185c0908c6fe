"""Files that survive a loss of power."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from domyn_swarm.errors import JobError

# Of file systems on which a folder cannot be synced: they keep names safe on their own.
_NO_SUCH_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EBADF})


def write_synced(path: Path, text: str) -> None:
    """Write a file and have it survive a loss of power."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Have the names in a folder survive a loss of power: files that appeared, moved or went.

    Raises:
        OSError: the disk does not take them.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SUCH_SYNC:
            raise
    finally:
        os.close(descriptor)


def write_whole(descriptor: int, data: bytes) -> None:
    """Write all of it: a disk that takes a part is asked for the rest, and then says why not.

    Raises:
        OSError: the disk does not take it.
    """
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def disk_error(error: OSError, place: Path | None = None) -> JobError:
    """What a disk or the system refused, in words; at `place` if the error does not say where."""
    where = error.filename or place
    what = "The system refused" if where is None else f"Cannot use {where}"
    return JobError(
        f"{what}: {error.strerror or str(error) or type(error).__name__}.",
        hint="Check that disk and submit the same job again: what is finished is kept.",
    )
