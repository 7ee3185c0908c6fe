"""Locates the result of each row of an input, from one reading of its keys."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from domyn_swarm.batch.checkpoint.frames import FrameKeys, packed_values, unpacked_values
from domyn_swarm.batch.checkpoint.index import FrameFiles, Matches, RowIndex
from domyn_swarm.batch.input.dataset import Dataset
from domyn_swarm.batch.input.key_table import NumberList, Parts, UnnamedFile
from domyn_swarm.batch.input.row_keys import Digests, RowKeys
from domyn_swarm.batch.outcomes.row_outcomes import RowValue

_NOWHERE = np.uint64(2**64 - 1)
_FRAME_AT = np.uint64(24)
_ROW_MASK = np.uint64((1 << 24) - 1)


class Places:
    """For each row its frame, its place there and the first half of its digest.

    Memory: 64 MB for the rows, which are in an unnamed file beyond that, and 16 bytes a frame.
    """

    def __init__(self, dataset: Dataset, keys: RowKeys, index: RowIndex, limit: int | None) -> None:
        """Read the input's keys.

        Raises:
            InvalidInput: they cannot be read.
            JobError: no disk has room for the file.
        """
        self.rows_failed = 0
        frames = len(index.frames.refs)
        self.first = np.full(frames, -1, np.int64)  # first row of each frame, -1: it has none
        self.last = np.full(frames, -1, np.int64)
        self._list = NumberList(index.frames.folder, 2)
        for batch in dataset.batches(keys.columns, limit=limit):
            start = len(self._list)
            digests = keys.digests(batch, start)
            self._take_in(start, index.match(start, digests), digests)

    def _take_in(self, start: int, matches: Matches, digests: Digests) -> None:
        known = np.flatnonzero(matches.found)
        frame = matches.frame[known]
        self.rows_failed += int(matches.failed[known].sum())
        self.last[frame] = start + known  # for rows of one frame the last assignment stays
        new = self.first[frame] < 0
        self.first[frame[new][::-1]] = (start + known[new])[::-1]
        rows = np.full((len(digests), 2), _NOWHERE, np.uint64)
        place = frame.astype(np.uint64) << _FRAME_AT
        rows[known, 0] = place | matches.row[known].astype(np.uint64)
        rows[:, 1] = digests[:, 0]
        self._list.append(rows)

    def __len__(self) -> int:
        return len(self._list)

    def of(
        self, start: int, end: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint64]]:
        """For the rows from `start` up to `end`, with shape (rows,) each: the frame, -1 if there is
        none, the row in it, and the first half of the digest.

        Raises:
            JobError: the disk cannot read them back.
        """
        rows = self._list.read(start, end)
        place = rows[:, 0]
        frame = np.where(place == _NOWHERE, -1, (place >> _FRAME_AT).astype(np.int64))
        return frame, (place & _ROW_MASK).astype(np.int64), rows[:, 1]


_PART_BYTES = 32 << 20  # of decoded values, approximately
_WAITING_BYTES = 64 << 20  # of values that are not written yet
_VALUE_BYTES = 200  # size of such a value beside its own bytes
_ROWS_AT_ONCE = 1 << 16
_HEADER = struct.Struct("<QQ")


class _Chunks:
    """The file of the parts."""

    def __init__(self, bounds: NDArray[np.int64], folder: Path) -> None:
        """`bounds`: the first row of each part, and the number of rows."""
        self._bounds = bounds
        self._file = UnnamedFile(folder)
        self._offsets: list[NDArray[np.int64]] = []  # of each write: where parts begin and end
        self._rows: list[int] = []
        self._values: list[msgspec.Raw] = []
        self._bytes = 0

    def add(self, row: int, value: msgspec.Raw, size: int) -> None:
        """The value of a row."""
        self._rows.append(row)
        self._values.append(value)
        self._bytes += size
        if self._bytes >= _WAITING_BYTES:
            self.write()

    def write(self) -> None:
        """Write all added values to the file.

        Raises:
            JobError: the disk refuses it.
        """
        rows, values = np.array(self._rows, np.int64), self._values
        self._rows, self._values, self._bytes = [], [], 0
        order = np.argsort(rows)
        ordered = rows[order]
        ends = np.searchsorted(ordered, self._bounds)
        offsets = np.zeros(len(self._bounds), np.int64)
        for part, (start, end) in enumerate(
            zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)
        ):
            offsets[part] = self._file.size
            if end > start:
                chosen = [values[at] for at in order[start:end].tolist()]
                self._append(ordered[start:end].tobytes(), chosen)
        offsets[-1] = self._file.size
        self._offsets.append(offsets)

    def _append(self, rows: bytes, values: list[msgspec.Raw]) -> None:
        packed, size = packed_values(values)
        header = _HEADER.pack(len(values), size)
        self._file.append(b"".join((header, rows, packed)))

    def part(self, number: int) -> list[RowValue | None]:
        """The values of a part, decoded; None for rows without one.

        Raises:
            JobError: the disk cannot read them back.
        """
        first = int(self._bounds[number])
        found: list[RowValue | None] = [None] * (int(self._bounds[number + 1]) - first)
        for offsets in self._offsets:
            start, end = int(offsets[number]), int(offsets[number + 1])
            if start == end:
                continue
            raw = bytearray(end - start)
            self._file.read_into(memoryview(raw), start)
            count, size = _HEADER.unpack_from(raw)
            values_at = _HEADER.size + 8 * count
            rows = np.frombuffer(raw, np.int64, count, _HEADER.size) - first
            values = unpacked_values(bytes(raw[values_at:]), size)
            for row, value in zip(rows.tolist(), values, strict=True):
                found[row] = value
        return found


class RoutedValues:
    """The values of rows in any order, read in the order of the rows."""

    def __init__(self, places: Places, frames: FrameFiles) -> None:
        """Decode every frame that has a row's result, once.

        Raises:
            JobError: no disk has room for the parts.
        """
        self._frames = frames
        self._bounds = _bounds(places, frames)
        self._chunks = _Chunks(self._bounds, frames.folder)
        for wanted in _by_frame(places, frames):
            self._route(wanted)
        self._chunks.write()
        self._part, self._values = -1, list[RowValue | None]()

    def _route(self, wanted: NDArray[np.uint64]) -> None:
        """`wanted`: place, row of the input, first half of its digest."""
        ordered = wanted[np.argsort(wanted[:, 0])]
        numbers, starts = np.unique(ordered[:, 0] >> _FRAME_AT, return_index=True)
        ends = [*starts[1:].tolist(), len(ordered)]
        for frame, start, end in zip(numbers.tolist(), starts.tolist(), ends, strict=True):
            keys, values = self._frames.keys(frame), self._frames.undecoded(frame)
            if keys is not None and values is not None:
                self._route_frame(keys, values, ordered[start:end])

    def _route_frame(
        self, keys: FrameKeys, values: list[msgspec.Raw], wanted: NDArray[np.uint64]
    ) -> None:
        rows = (wanted[:, 0] & _ROW_MASK).astype(np.int64)
        same = keys.digests[rows, 0] == wanted[:, 2]  # else of another row with an equal key
        for at, row in zip(rows[same].tolist(), wanted[same, 1].tolist(), strict=True):
            value = values[at].copy()  # a view would keep the whole frame
            self._chunks.add(row, value, memoryview(value).nbytes + _VALUE_BYTES)

    def values(self, start: int, end: int) -> list[RowValue | None]:
        """The values of the rows from `start` up to `end`; ascending ranges are cheap.

        Raises:
            JobError: the disk cannot read them back.
        """
        found: list[RowValue | None] = []
        while start < end:
            part = int(np.searchsorted(self._bounds, start, "right")) - 1
            if part != self._part:
                self._part, self._values = part, []
                self._values = self._chunks.part(part)
            first, last = int(self._bounds[part]), int(self._bounds[part + 1])
            found += self._values[start - first : end - first]
            start = last
        return found


def _bounds(places: Places, frames: FrameFiles) -> NDArray[np.int64]:
    """The first row of each part, and the number of rows."""
    weights = frames.decoded_bytes / np.array([ref.rows for ref in frames.refs], np.int64)
    bounds, before = [np.zeros(1, np.int64)], 0.0
    for start in range(0, len(places), _ROWS_AT_ONCE):
        frame, _, _ = places.of(start, min(start + _ROWS_AT_ONCE, len(places)))
        bytes_up_to = before + np.cumsum(np.where(frame < 0, 0.0, weights[frame]))
        part = np.concatenate([[before], bytes_up_to]) // _PART_BYTES
        bounds.append(start + 1 + np.flatnonzero(part[1:] > part[:-1]))
        before = float(bytes_up_to[-1])
    return np.unique(np.concatenate([*bounds, [len(places)]]))


def _by_frame(places: Places, frames: FrameFiles) -> Iterator[NDArray[np.uint64]]:
    """The place, the row and the first half of the digest of all rows that have a result, by parts
    of neighbouring frames.
    """
    parts = Parts(frames.folder, 3, len(places))
    for start in range(0, len(places), _ROWS_AT_ONCE):
        frame, row, names = places.of(start, min(start + _ROWS_AT_ONCE, len(places)))
        known = np.flatnonzero(frame >= 0)
        frame = frame[known]
        place = (frame.astype(np.uint64) << _FRAME_AT) | row[known].astype(np.uint64)
        part = (frame * parts.count // len(frames.refs)).astype(np.uint16)
        wanted = (place, (start + known).astype(np.uint64), names[known])
        parts.add(part, np.stack(wanted, axis=1))
    yield from parts
