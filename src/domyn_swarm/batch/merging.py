"""Few files, however many rows and runs: neighbouring segments are joined into one.

A frame stands for itself and says which generation wrote it, so joining copies bytes; only what a
void generation failed is left out.
The joined file takes the name of the last of those it replaces (temporary file, fsync, rename)
before the others go: a crash in between leaves rows twice, which is harmless.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from domyn_swarm.batch.frames import encode_frame, read_results, scan_frames
from domyn_swarm.batch.segments import checkpoint_files, file_order, new_segment, void_path

MOST_FILES = 32  # of one writer, or left by earlier drivers, before some are joined
_AT_ONCE = 16
_MOST_BYTES = 4 << 30  # a joined file that would be larger is not worth copying


def merge_writer(folder: Path, generation: int, writer: int) -> None:
    """Join segments of one living writer, when there are many. Called by that writer alone."""
    files = [path for path in _segments(folder) if file_order(path)[:2] == (generation, writer)]
    _merge(files)


def merge_earlier(folder: Path, generation: int) -> None:
    """Join segments that drivers before this generation left, when there are many."""
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
    """The neighbours that cost least to join: so a byte is copied about once per 16-fold growth."""
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
