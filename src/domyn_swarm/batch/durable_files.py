"""Files that survive a loss of power."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from domyn_swarm.errors import JobError

# On such file systems a folder cannot be synced: they make names durable themselves.
_NO_SUCH_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EBADF})


def write_synced(path: Path, text: str) -> None:
    """Write a file and make it survive a loss of power."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def try_writing(folder: Path) -> Path:
    """Test whether a file can be written, and leave none: in a folder or, if it does not exist yet,
    in its nearest existing parent, which is returned.

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
    """Make the names in a folder survive a loss of power: files that appeared, moved or were
    removed.

    Raises:
        OSError: the disk refuses it.
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
    """Write everything: after a partial write the rest is written, or the reason raised.

    Raises:
        OSError: the disk refuses it.
    """
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A file beside `path` that replaces it at the end, or is removed after an error.

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
        with contextlib.suppress(OSError):  # a full disk
            temporary.unlink(missing_ok=True)
