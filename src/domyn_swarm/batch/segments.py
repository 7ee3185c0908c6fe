"""The files of a checkpoint: journals that grow, segments that do not change any more.

Names are `<generation>-<writer>-<sequence>.journal` and `.segment`; a later generation or sequence
wins where two files hold the same row. A file belongs to the one process that created it: a driver
of that generation, or one of its workers.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from domyn_swarm.batch.durable_files import sync_folder
from domyn_swarm.batch.frames import SortedFrames

_NAME = re.compile(r"^(\d{6,})-(\d{3,})-(\d{8,})\.(journal|segment)$")
_UNFINISHED = ".unfinished-"  # before the name of a segment that is being written
SEGMENT_FRAME_ROWS = 2048
_VOID = ".void"
_TRIES = 3  # to seal a journal that grows meanwhile


def file_order(path: Path) -> tuple[int, int, int, bool]:
    """Sort key: generation, writer, sequence, and a segment after its journal."""
    match = _NAME.match(path.name)
    if match is None:
        raise ValueError(f"{path} is not a file of a checkpoint")
    return int(match[1]), int(match[2]), int(match[3]), match[4] == "segment"


def checkpoint_files(folder: Path) -> list[Path]:
    """The journals and segments in a folder, from the weakest claim to the strongest."""
    return sorted((path for path in folder.iterdir() if _NAME.match(path.name)), key=file_order)


def void_path(folder: Path, generation: int) -> Path:
    """Exists when the errors that this generation recorded do not count any more."""
    return folder / f"{generation:06d}{_VOID}"


def has_void(folder: Path) -> bool:
    """Whether there are errors in a folder that do not count any more."""
    return any(path.suffix == _VOID for path in folder.iterdir())


@contextmanager
def new_segment(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path`, whole and synced with its name, when the body ends;
    it is gone if there is an error. Its name is its own: several processes may write one segment.
    """
    temporary = path.with_name(f"{_UNFINISHED}{os.getpid()}-{secrets.token_hex(4)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        with os.fdopen(os.open(temporary, flags, 0o600), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def remove_unfinished(folder: Path) -> None:
    """Remove segments that earlier drivers were killed over. One that is still at it fails, and
    keeps what it wanted to replace.
    """
    for path in folder.glob(f"{_UNFINISHED}*"):
        with contextlib.suppress(OSError):  # it is nobody's harm
            path.unlink()


class _Grown(Exception):
    """Somebody appended to a journal while it was sealed."""


def seal(journal: Path) -> None:
    """Turn a journal that nobody appends to into a segment; an empty one just goes.

    The segment appears whole and synced before the journal goes, so that a crash in between leaves
    both, which is harmless. A journal that somebody appends to all the same, as the worker of a
    driver that was killed may, stays a journal; one that somebody else seals first is left to them.
    """
    for _ in range(_TRIES):
        try:
            _seal(journal)
        except _Grown:
            continue
        except FileNotFoundError:
            if journal.exists():
                raise
        return


def _seal(journal: Path) -> None:
    size = journal.stat().st_size
    results = SortedFrames(journal)
    if results.rows:
        with new_segment(journal.with_suffix(".segment")) as file:
            for frame in results.frames(SEGMENT_FRAME_ROWS):
                file.write(frame)
            _check_size(journal, size)
    _check_size(journal, size)
    journal.unlink()


def _check_size(journal: Path, size: int) -> None:
    if journal.stat().st_size != size:
        raise _Grown
