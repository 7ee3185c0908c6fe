"""Files that survive a loss of power."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
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


def try_writing(folder: Path) -> Path:
    """Write a file and leave none, in a folder or, where that is yet to be made, in the nearest one
    above it that is there; which one that is.

    Raises:
        OSError: nothing can be written there; it names the folder.
    """
    there = next(one for one in (folder, *folder.parents) if one.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(there)) from error
    return there


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


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A file beside `path` that takes its place at the end, or is gone when there was an error.

    Raises:
        JobError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise JobError(
            f"Cannot write {path}: {error.strerror or error}.",
            hint="Choose another place, or make room there.",
        ) from error
    finally:
        with contextlib.suppress(OSError):  # of a disk that takes nothing
            temporary.unlink(missing_ok=True)
