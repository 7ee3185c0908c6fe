"""A number for each of many keys, found in a microsecond, in memory or in a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from domyn_swarm.batch.spilled import NumberFile, Numbers, Parts, UnnamedFile

_ROWS_OF_A_BUCKET = 16  # about; a lookup halves a bucket until it has found its key
_Keys = NDArray[np.uint64]


class KeyTable:
    """Keys of 64 bits, evenly spread as hashes are, with 64 bits each; of equal keys the greatest.

    Memory: 16 bytes a key up to 64 MB; beyond that the table is a file, read a bucket at a time,
    and half a byte a key says where buckets begin. (Mapped, a page that is looked at brings many
    neighbours into memory.)
    """

    def __init__(
        self, pairs: Iterable[tuple[_Keys, _Keys]], expected: int, folder: Path | None
    ) -> None:
        """Of keys and numbers, not more than expected; `folder`: where a file may lie.

        Raises:
            JobError: no disk takes the file.
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
        """The numbers of keys, and which of the keys are there at all.

        Raises:
            JobError: the disk does not give them back.
        """
        # In ascending order, so that what lies together is looked at together.
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
        """Pairs, and where those of each bucket begin and end among them."""
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
    """By key; of pairs with the same one that with the greatest number."""
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
