"""The files of a checkpoint: growing journals, immutable segments, and the joining of neighbouring
segments, so that they stay few.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from domyn_swarm.batch.checkpoint.frames import (
    SortedFrames,
    encode_frame,
    read_results,
    scan_frames,
)
from domyn_swarm.batch.durable_files import sync_folder

_NAME = re.compile(r"^(\d{6,})-(\d{3,})-(\d{8,})\.(journal|segment)$")
_UNFINISHED = ".unfinished-"  # prefix of the name of a segment that is being written
SEGMENT_FRAME_ROWS = 2048
_VOID = ".void"
_TRIES = 3  # attempts to seal a journal that grows meanwhile


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
    """Marker: errors recorded by this generation are void; their rows will be sent again."""
    return folder / f"{generation:06d}{_VOID}"


def has_void(folder: Path) -> bool:
    """Whether a folder has void errors."""
    return any(path.suffix == _VOID for path in folder.iterdir())


@contextmanager
def new_segment(path: Path) -> Iterator[BinaryIO]:
    """A file that replaces `path`, whole and synced with its name, when the body ends; it is
    removed on an error. Its name is unique: several processes may write one segment.
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
    """Remove unfinished segments of killed drivers. A driver that is still writing one fails, and
    keeps the files that the segment should have replaced.
    """
    for path in folder.glob(f"{_UNFINISHED}*"):
        with contextlib.suppress(OSError):  # harmless if it stays
            path.unlink()


class _Grown(Exception):
    """Another process appended to a journal while it was sealed."""


def seal(journal: Path) -> None:
    """Turn a journal that no process appends to into a segment; an empty one is removed.

    The segment appears whole and synced before the journal is removed: a crash in between leaves
    both, which is harmless. A journal that is appended to all the same, as by the worker of a
    killed driver, stays a journal; one that another process seals first is left to it.
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


MOST_FILES = 32  # of one writer, or of earlier drivers, before some are joined
_AT_ONCE = 16
_MOST_BYTES = 4 << 30  # a joined file that would be larger is not worth the copy


def merge_writer(folder: Path, generation: int, writer: int) -> None:
    """Join segments of one living writer if there are many. Called by that writer alone."""
    files = [path for path in _segments(folder) if file_order(path)[:2] == (generation, writer)]
    _merge(files)


def merge_earlier(folder: Path, generation: int) -> None:
    """Join segments of drivers before this generation if there are many."""
    while True:
        files = [path for path in _segments(folder) if file_order(path)[0] < generation]
        if not _merge(files):
            return


def _segments(folder: Path) -> list[Path]:
    return [path for path in checkpoint_files(folder) if path.suffix == ".segment"]


def _merge(files: Sequence[Path]) -> bool:
    if len(files) < MOST_FILES:
        return False
    chosen = _cheapest(files)
    if not chosen:
        return False
    join(chosen)
    return True


def _cheapest(files: Sequence[Path]) -> Sequence[Path]:
    """The neighbours that cost least to join: each byte is copied about once per 16-fold growth."""
    found = [files[at : at + _AT_ONCE] for at in range(max(1, len(files) - _AT_ONCE + 1))]
    sizes = {path: path.stat().st_size for path in files}
    costs = [(sum(sizes[path] for path in window), at) for at, window in enumerate(found)]
    cost, cheapest = min(costs, default=(_MOST_BYTES, -1))
    return found[cheapest] if cost < _MOST_BYTES else []


def join(files: Sequence[Path]) -> None:
    """Make one segment of several neighbours, weakest claim first."""
    *others, last = files
    with new_segment(last) as target:
        for path in files:
            _copy(path, target)
    for path in others:
        path.unlink(missing_ok=True)


def _copy(path: Path, target: BinaryIO) -> None:
    with path.open("rb") as source:
        for ref in scan_frames(path):
            if void_path(path.parent, ref.generation).exists():
                results = read_results(source.fileno(), ref)
                answered = [result for result in results if not result.failed]
                if answered:
                    target.write(encode_frame(answered, ref.generation, compress=True))
            else:
                target.write(os.pread(source.fileno(), ref.end - ref.offset, ref.offset))
