"""Which rows of an input are settled, and where their results lie.

`PositionalIndex` compares ordinals and digests window by window and keeps only the frames' extents
in memory. `IdIndex` finds rows by the digest over id and inputs wherever they now stand, at 16
bytes a row.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from domyn_swarm.batch.frames import FrameKeys, FrameRef, read_keys, read_values, scan_frames
from domyn_swarm.batch.rows import RowValue
from domyn_swarm.batch.segments import checkpoint_files, file_order, void_path

_CACHED_FRAMES = 48

Digests = NDArray[np.uint64]  # shape (rows, 2)


@dataclass(frozen=True, slots=True)
class Matches:
    """For each row of a window: the frame and the row in it, or -1; and whether it failed."""

    frame: NDArray[np.int64]
    row: NDArray[np.int64]
    failed: NDArray[np.bool_]

    @property
    def found(self) -> NDArray[np.bool_]:
        """Which rows of the window are settled."""
        return self.frame >= 0


class RowIndex(Protocol):
    """Finds the results of an input's rows."""

    frames: FrameFiles

    def match(self, first_ordinal: int, digests: Digests) -> Matches:
        """The results of the rows `first_ordinal, first_ordinal + 1, …`.

        Windows may come in any order; ascending ones are cheap.
        """


class FrameFiles:
    """Every whole frame of a checkpoint, weakest claim first, as it was when this was opened.

    Its driver may go on writing meanwhile.
    """

    @classmethod
    def open(cls, folder: Path) -> FrameFiles:
        """The files as they are; opened again when a journal was sealed in between."""
        while True:
            listed = checkpoint_files(folder)
            frames = cls(folder)
            if checkpoint_files(folder) == listed:
                return frames
            frames.close()

    def __init__(self, folder: Path) -> None:
        self._descriptors: list[int] = []
        self.refs: list[FrameRef] = []
        self._file_of: list[int] = []
        self._void: list[bool] = []  # per file: its errors do not count
        self._keys: OrderedDict[int, FrameKeys | None] = OrderedDict()
        self._values: OrderedDict[int, list[RowValue] | None] = OrderedDict()
        for path in checkpoint_files(folder):
            try:
                descriptor = os.open(path, os.O_RDONLY)
            except FileNotFoundError:  # sealed meanwhile; its segment follows or is listed
                continue
            self._descriptors.append(descriptor)
            self._void.append(void_path(folder, file_order(path)[0]).exists())
            found = list(scan_frames(path))
            self.refs.extend(found)
            self._file_of.extend([len(self._descriptors) - 1] * len(found))
        self.first = np.array([ref.first_ordinal for ref in self.refs], np.int64)
        self.last = np.array([ref.last_ordinal for ref in self.refs], np.int64)

    @property
    def rows(self) -> int:
        """Rows in all frames, those that later frames supersede included."""
        return sum(ref.rows for ref in self.refs)

    def keys(self, frame: int) -> FrameKeys | None:
        """The keys of a frame; None when they are damaged."""
        if frame not in self._keys:
            file = self._file_of[frame]
            keys = read_keys(self._descriptors[file], self.refs[frame])
            if keys is not None and self._void[file]:
                answered = np.where(keys.failed[:, None] != 0, np.uint64(0), keys.digests)
                keys = FrameKeys(keys.ordinals, answered, keys.failed)  # zero: no row's digest
            self._keys[frame] = keys
            if len(self._keys) > _CACHED_FRAMES:
                self._keys.popitem(last=False)
        return self._keys[frame]

    def value(self, frame: int, row: int) -> RowValue | None:
        """One result; None when its frame is damaged."""
        if frame in self._values:
            self._values.move_to_end(frame)
        else:
            descriptor = self._descriptors[self._file_of[frame]]
            self._values[frame] = read_values(descriptor, self.refs[frame])
            if len(self._values) > _CACHED_FRAMES:
                self._values.popitem(last=False)
        values = self._values[frame]
        return None if values is None else values[row]

    def close(self) -> None:
        """Close the files."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()


def _no_matches(rows: int) -> Matches:
    return Matches(
        np.full(rows, -1, np.int64), np.full(rows, -1, np.int64), np.zeros(rows, np.bool_)
    )


class PositionalIndex:
    """A row is settled when its ordinal and its digest match."""

    def __init__(self, frames: FrameFiles) -> None:
        self.frames = frames

    def match(self, first_ordinal: int, digests: Digests) -> Matches:
        """See `RowIndex.match`."""
        rows = len(digests)
        found = _no_matches(rows)
        last = first_ordinal + rows - 1
        overlapping = np.flatnonzero(
            (self.frames.first <= last) & (self.frames.last >= first_ordinal)
        )
        for frame in overlapping.tolist():
            keys = self.frames.keys(frame)
            if keys is None:
                continue
            at = keys.ordinals.astype(np.int64) - first_ordinal
            inside = np.flatnonzero((at >= 0) & (at < rows))
            at = at[inside]
            same = (digests[at] == keys.digests[inside]).all(axis=1)
            failed = keys.failed[inside] != 0
            # An answer is never given up for an error; otherwise the later claim wins.
            better = same & (~failed | (found.frame[at] < 0) | found.failed[at])
            # Errors first: of a row that stands twice in a frame the last assignment stays.
            order = np.argsort(~failed[better], kind="stable")
            at, inside, failed = at[better][order], inside[better][order], failed[better][order]
            found.frame[at] = frame
            found.row[at] = inside
            found.failed[at] = failed
        return found


class IdIndex:
    """A row is settled when the digest over its id and inputs matches, wherever it stands.

    In memory the first 64 bits of the digest stand for it (8 bytes, and 8 for the place); the
    reader of a result compares all 128 (`verified`).
    """

    def __init__(self, frames: FrameFiles) -> None:
        self.frames = frames
        heads, places, failed = [], [], []
        for frame in range(len(frames.refs)):
            keys = frames.keys(frame)
            if keys is not None:
                rows = np.flatnonzero(keys.digests.any(axis=1)).astype(np.uint64)  # void ones: zero
                heads.append(keys.digests[rows, 0])
                places.append((np.uint64(frame) << np.uint64(32)) | rows)
                failed.append(keys.failed[rows] != 0)
        empty = np.empty(0, np.uint64)
        head = np.concatenate(heads) if heads else empty
        place = np.concatenate(places) if places else empty
        bad = np.concatenate(failed) if failed else np.empty(0, np.bool_)
        # Stable order: by head, answers behind errors, later claims behind earlier ones; the
        # last of each group wins.
        order = np.lexsort((place, ~bad, head))
        head, place, bad = head[order], place[order], bad[order]
        keep = np.ones(len(head), np.bool_)
        keep[:-1] = head[1:] != head[:-1]
        self._heads, self._places, self._failed = head[keep], place[keep], np.packbits(bad[keep])

    def match(self, first_ordinal: int, digests: Digests) -> Matches:  # noqa: ARG002 - places do not matter
        """See `RowIndex.match`."""
        found = _no_matches(len(digests))
        if not len(self._heads):
            return found
        at = np.searchsorted(self._heads, digests[:, 0])
        at[at == len(self._heads)] = 0
        hit = np.flatnonzero(self._heads[at] == digests[:, 0])
        place = self._places[at[hit]]
        found.frame[hit] = (place >> np.uint64(32)).astype(np.int64)
        found.row[hit] = (place & np.uint64(0xFFFFFFFF)).astype(np.int64)
        bits = self._failed[at[hit] >> 3] >> (7 - (at[hit] & 7))
        found.failed[hit] = (bits & 1).astype(np.bool_)
        return found
