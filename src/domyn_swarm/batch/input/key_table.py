"""Hundreds of millions of numbers: up to a limit in memory, beyond it in unnamed files; and a table
that maps many keys to numbers.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from domyn_swarm.errors import JobError

IN_MEMORY_BYTES = 64 << 20  # of one collection; a larger one is kept in a file
_MOST_PARTS = 1 << 16
_WRITTEN_ROWS = 1 << 16  # written at once

Numbers = NDArray[np.uint64]  # shape (rows, width)


class UnnamedFile:
    """A file that only this process has; it is removed with the object."""

    def __init__(self, folder: Path | None) -> None:
        """`folder`: preferred place, if it is writable.

        Raises:
            JobError: the temporary folder is not writable either.
        """
        try:
            file = _temporary(folder)
        except OSError as error:
            raise _no_room(error) from error
        with file:
            self.descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self.descriptor)
        self.size = 0

    def append(self, data: bytes | memoryview) -> None:
        """Write bytes at the end.

        Raises:
            JobError: the disk refuses them.
        """
        left = memoryview(data).cast("B")
        try:
            while left:
                written = os.pwrite(self.descriptor, left, self.size)
                self.size, left = self.size + written, left[written:]
        except OSError as error:
            raise _no_room(error) from error

    def read_into(self, target: memoryview, at: int) -> None:
        """Fill `target` from an offset.

        Raises:
            JobError: the disk cannot read them back.
        """
        try:
            while target:
                size = os.preadv(self.descriptor, [target], at)
                if not size:
                    raise OSError(None, "the file is shorter than it was")
                target, at = target[size:], at + size
        except OSError as error:
            raise _no_room(error) from error

    def pieces(self, offsets: Sequence[int], sizes: Sequence[int]) -> bytes:
        """Short pieces, joined.

        Raises:
            JobError: the disk cannot read them back.
        """
        try:
            found = b"".join(map(os.pread, repeat(self.descriptor), sizes, offsets))
            if len(found) != sum(sizes):
                raise OSError(None, "the file is shorter than it was")
        except OSError as error:
            raise _no_room(error) from error
        return found


def _temporary(folder: Path | None) -> IO[bytes]:
    try:
        return tempfile.TemporaryFile(dir=folder, buffering=0)
    except OSError:
        return tempfile.TemporaryFile(buffering=0)


def _no_room(error: OSError) -> JobError:
    return JobError(
        f"Cannot keep what was read about the rows in a temporary file: {error.strerror or error}.",
        hint="Make room beside the checkpoint, or set TMPDIR to a folder with room: 16 bytes a row "
        "or more. Finished rows are kept.",
    )


class NumberFile:
    """Rows of numbers in an unnamed file."""

    def __init__(self, folder: Path | None, width: int) -> None:
        """`folder`: see `UnnamedFile`. Raises as that does."""
        self.width = width
        self.rows = 0
        self.file = UnnamedFile(folder)

    def append(self, rows: Numbers) -> None:
        """Write rows at the end. Raises as `UnnamedFile.append`."""
        if len(rows):
            self.file.append(np.ascontiguousarray(rows).data)
            self.rows += len(rows)

    def read(self, start: int, end: int) -> Numbers:
        """The rows from `start` up to `end`. Raises as `UnnamedFile.read_into`."""
        found = np.empty((end - start, self.width), np.uint64)
        if len(found):
            self.file.read_into(memoryview(found.data).cast("B"), start * self.width * 8)
        return found


class NumberList:
    """Rows of numbers that are appended, and read back by their positions."""

    def __init__(self, folder: Path | None, width: int) -> None:
        self._folder = folder
        self._buffer = np.empty((IN_MEMORY_BYTES // (8 * width), width), np.uint64)
        self._buffered = 0
        self._file: NumberFile | None = None

    def __len__(self) -> int:
        return self._spilled + self._buffered

    @property
    def _spilled(self) -> int:
        return 0 if self._file is None else self._file.rows

    def append(self, rows: Numbers) -> None:
        """Append rows. Raises as `NumberFile.append`."""
        if self._buffered + len(rows) > len(self._buffer):
            if self._file is None:
                self._file = NumberFile(self._folder, self._buffer.shape[1])
            self._file.append(self._buffer[: self._buffered])
            self._file.append(rows)
            self._buffered = 0
            return
        self._buffer[self._buffered : self._buffered + len(rows)] = rows
        self._buffered += len(rows)

    def read(self, start: int, end: int) -> Numbers:
        """The rows from `start` up to `end`. Raises as `NumberFile.read`."""
        spilled = self._spilled
        buffered = self._buffer[max(0, start - spilled) : max(0, end - spilled)]
        if self._file is None or start >= spilled:
            return buffered
        return np.concatenate([self._file.read(start, min(end, spilled)), buffered])


class Parts:
    """Rows of numbers, each belonging to a part; read back part by part."""

    def __init__(self, folder: Path | None, width: int, rows: int) -> None:
        """For at most this number of rows: `count` parts, of about 32 MB each if they are even."""
        size = rows * width * 8
        many = 1 << (2 * size // IN_MEMORY_BYTES).bit_length()
        self.count = 1 if size <= IN_MEMORY_BYTES else min(_MOST_PARTS, many)
        self._folder = folder
        self._buffer = np.empty((max(1, IN_MEMORY_BYTES // (8 * width)), width), np.uint64)
        self._parts = np.zeros(len(self._buffer), np.uint16)
        self._buffered = 0
        self._file: NumberFile | None = None
        self._bounds: list[NDArray[np.int64]] = []  # of each run in the file: where parts begin
        self.rows = 0

    def of_key(self, keys: NDArray[np.uint64]) -> NDArray[np.uint16]:
        """The parts of numbers that are spread evenly over 64 bits, in ascending order."""
        if self.count == 1:
            return np.zeros(len(keys), np.uint16)
        return (keys >> np.uint64(64 - self.count.bit_length() + 1)).astype(np.uint16)

    def add(self, parts: NDArray[np.uint16], rows: Numbers) -> None:
        """Add rows to the parts with these numbers. Raises as `NumberFile.append`."""
        self.rows += len(rows)
        while len(rows):
            room = len(self._buffer) - self._buffered
            here = slice(self._buffered, self._buffered + min(room, len(rows)))
            self._buffer[here], self._parts[here] = rows[:room], parts[:room]
            self._buffered = here.stop
            rows, parts = rows[room:], parts[room:]
            if len(rows):
                self._spill()

    def _spill(self) -> None:
        """Write what is in memory to the file, part after part."""
        if self._file is None:
            self._file = NumberFile(self._folder, self._buffer.shape[1])
        order, bounds = self._sorted()
        self._bounds.append(self._file.rows + bounds)
        for start in range(0, len(order), _WRITTEN_ROWS):
            self._file.append(self._buffer[order[start : start + _WRITTEN_ROWS]])
        self._buffered = 0

    def _sorted(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        parts = self._parts[: self._buffered]
        bounds = np.zeros(self.count + 1, np.int64)
        np.cumsum(np.bincount(parts, minlength=self.count), out=bounds[1:])
        return np.argsort(parts, kind="stable"), bounds

    def __iter__(self) -> Iterator[Numbers]:
        """The rows of each part, in the order in which they were added; part after part, once.

        Raises:
            JobError: the disk cannot read them back.
        """
        if self._file is None:
            if self.count == 1:
                yield self._buffer[: self._buffered]
                return
            order, bounds = self._sorted()
            for part in range(self.count):
                yield self._buffer[order[bounds[part] : bounds[part + 1]]]
            return
        self._spill()
        self._buffer = np.empty((0, self._buffer.shape[1]), np.uint64)  # frees its memory
        for part in range(self.count):
            runs = [self._file.read(int(run[part]), int(run[part + 1])) for run in self._bounds]
            yield np.concatenate(runs)


_ROWS_OF_A_BUCKET = 16  # approximately; a lookup bisects a bucket
_Keys = NDArray[np.uint64]


class KeyTable:
    """Maps 64-bit keys, evenly spread as hashes are, to 64-bit numbers; of equal keys the greatest
    counts.

    Memory: 16 bytes a key up to 64 MB; beyond that the table is a file, read a bucket at a time,
    and half a byte a key locates the buckets. (A memory-mapped file would load many neighbours with
    each page.)
    """

    def __init__(
        self, pairs: Iterable[tuple[_Keys, _Keys]], expected: int, folder: Path | None
    ) -> None:
        """From keys and numbers, at most as many as expected; `folder`: preferred place of a file.

        Raises:
            JobError: no disk has room for the file.
        """
        parts = Parts(folder, 2, expected)
        for keys, numbers in pairs:
            parts.add(parts.of_key(keys), np.stack([keys, numbers], axis=1))
        self._bits = max(
            parts.count.bit_length() - 1, (parts.rows // _ROWS_OF_A_BUCKET).bit_length()
        )
        self._starts = np.zeros((1 << self._bits) + 1, np.int64 if parts.rows >> 31 else np.int32)
        self._steps = 0
        self._file: UnnamedFile | None = None
        if parts.count == 1:
            [self._pairs] = self._ordered(parts)
            return
        file = NumberFile(folder, 2)
        for ordered in self._ordered(parts):
            file.append(ordered)
        self._file = file.file

    def _ordered(self, parts: Parts) -> Iterator[Numbers]:
        """Part after part by key, one pair for each; notes where buckets begin."""
        buckets = (1 << self._bits) // parts.count
        rows = 0
        for part, pairs in enumerate(parts):
            ordered = _ordered(pairs)
            first = part * buckets
            here = self._bucket(ordered[:, 0]) - first
            counts = np.bincount(here, minlength=buckets)
            self._steps = max(self._steps, int(counts.max()).bit_length())
            self._starts[first + 1 : first + buckets + 1] = rows + np.cumsum(counts)
            rows += len(ordered)
            yield ordered

    def _bucket(self, keys: _Keys) -> NDArray[np.int64]:
        if not self._bits:
            return np.zeros(len(keys), np.int64)
        return (keys >> np.uint64(64 - self._bits)).astype(np.int64)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def find(self, keys: _Keys) -> tuple[_Keys, NDArray[np.bool_]]:
        """The numbers of keys, and which of the keys exist.

        Raises:
            JobError: the disk cannot read them back.
        """
        # In ascending order, so that neighbours are read together.
        order = np.argsort(keys)
        wanted = keys[order]
        pairs, low, high = self._candidates(self._bucket(wanted))
        if not len(pairs):
            return np.zeros(len(keys), np.uint64), np.zeros(len(keys), np.bool_)
        known, last = pairs[:, 0], len(pairs) - 1
        for _ in range(self._steps):
            middle = np.minimum((low + high) >> 1, last)
            less = (known[middle] < wanted) & (low < high)
            low = np.where(less, middle + 1, low)
            high = np.where(less, high, middle)
        found = pairs[np.minimum(low, last)]
        numbers, hit = np.empty_like(keys), np.empty(len(keys), np.bool_)
        numbers[order], hit[order] = found[:, 1], found[:, 0] == wanted
        return numbers, hit

    def _candidates(
        self, buckets: NDArray[np.int64]
    ) -> tuple[Numbers, NDArray[np.int64], NDArray[np.int64]]:
        """Pairs, and where the pairs of each bucket begin and end among them."""
        if self._file is None:
            low, high = self._starts[buckets], self._starts[buckets + 1]
            return self._pairs, low.astype(np.int64), high.astype(np.int64)
        different, which = np.unique(buckets, return_inverse=True)
        starts = self._starts[different].astype(np.int64)
        sizes = self._starts[different + 1].astype(np.int64) - starts
        raw = self._file.pieces((starts * 16).tolist(), (sizes * 16).tolist())
        ends = np.cumsum(sizes)
        return np.frombuffer(raw, np.uint64).reshape(-1, 2), (ends - sizes)[which], ends[which]


def _ordered(pairs: Numbers) -> Numbers:
    """By key; of pairs with the same key the one with the greatest number."""
    keys = pairs[:, 0]
    order = np.argsort(keys)
    ordered = keys[order]
    again = ordered[1:] == ordered[:-1]
    if not again.any():
        return pairs[order]
    order = np.lexsort((pairs[:, 1], keys))  # takes five times as long
    last = np.append(~again, True)
    greatest: Numbers = pairs[order[last]]
    return greatest
