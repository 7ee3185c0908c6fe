"""The results of an input's rows, in the rows' order; each frame is decoded once per reading.

If the frames that neighbouring rows need fit into memory together, they are decoded at their first
row and released after their last one. If they do not (a shuffled input, a thousand writers of large
answers), their values are first copied in the rows' order.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from typing_extensions import override

from domyn_swarm.batch.checkpoint.index import DECODED_BYTES, FrameFiles, RowIndex
from domyn_swarm.batch.input.dataset import BATCH_ROWS, Dataset
from domyn_swarm.batch.input.row_keys import RowKeys
from domyn_swarm.batch.outcomes.row_outcomes import RowValue
from domyn_swarm.batch.output.routed_values import Places, RoutedValues


class OrderedResults(Protocol):
    """The results of an input's rows. May be read more than once."""

    def of(self, start: int, batch: pa.RecordBatch) -> list[RowValue | None]:
        """The results of a batch of the input that begins with row `start`, None for a row without
        a readable one. Batches must be requested in order.
        """

    def count_failed(self) -> int:
        """The number of failed rows; values are not read."""


def ordered_results(
    dataset: Dataset, keys: RowKeys, index: RowIndex, limit: int | None
) -> OrderedResults:
    """The results of an input's first rows, or of all.

    Raises:
        InvalidInput: the input cannot be read.
        JobError: no disk has room for the required copy.
    """
    frames = index.frames
    if index.in_order and _fits(frames, frames.first, frames.last):
        return _InPlace(dataset, keys, index, limit)
    places = Places(dataset, keys, index, limit)
    if _fits(frames, places.first, places.last):
        return _Placed(places, frames)
    return _Routed(places, frames)


def _fits(frames: FrameFiles, first: NDArray[np.int64], last: NDArray[np.int64]) -> bool:
    """Whether the frames that any lot of rows needs fit into memory together; `first` and `last`:
    the rows of each frame, -1 if it has none.
    """
    used = np.flatnonzero(first >= 0)
    size = frames.decoded_bytes[used]
    moments = np.concatenate([first[used], last[used] + BATCH_ROWS])
    order = np.argsort(moments, kind="stable")  # at equal moments frames are added first
    at_once = np.cumsum(np.concatenate([size, -size])[order])
    return int(at_once.max(initial=0)) <= DECODED_BYTES


class _InPlace(OrderedResults):
    """Results in the order of the rows, read row by row."""

    def __init__(self, dataset: Dataset, keys: RowKeys, index: RowIndex, limit: int | None) -> None:
        self._dataset = dataset
        self._keys = keys
        self._index = index
        self._limit = limit

    @override
    def of(self, start: int, batch: pa.RecordBatch) -> list[RowValue | None]:
        digests = self._keys.digests(batch, start)
        matches = self._index.match(start, digests)
        frames = self._index.frames
        found = _values(frames, matches.frame, matches.row, digests[:, 0])
        frames.let_go(frames.last, start + batch.num_rows)
        return found

    @override
    def count_failed(self) -> int:
        if not self._index.frames.holds_failures:
            return 0
        failed = start = 0
        for batch in self._dataset.batches(self._keys.columns, limit=self._limit):
            matches = self._index.match(start, self._keys.digests(batch, start))
            failed += int((matches.found & matches.failed).sum())
            start += batch.num_rows
        return failed


class _Placed(OrderedResults):
    """Results in approximately the order of the rows."""

    def __init__(self, places: Places, frames: FrameFiles) -> None:
        self._places = places
        self._frames = frames

    @override
    def of(self, start: int, batch: pa.RecordBatch) -> list[RowValue | None]:
        end = start + batch.num_rows
        found = _values(self._frames, *self._places.of(start, end))
        self._frames.let_go(self._places.last, end)
        return found

    @override
    def count_failed(self) -> int:
        return self._places.rows_failed


class _Routed(OrderedResults):
    """Results in another order than the rows, or too large."""

    def __init__(self, places: Places, frames: FrameFiles) -> None:
        self._rows_failed = places.rows_failed
        self._reading = frames.reading
        self._routed = RoutedValues(places, frames)

    @override
    def of(self, start: int, batch: pa.RecordBatch) -> list[RowValue | None]:
        values = self._routed.values(start, start + batch.num_rows)
        judged = self._reading.judged
        return [None if value is None else judged(value) for value in values]

    @override
    def count_failed(self) -> int:
        return self._rows_failed


def _values(
    frames: FrameFiles,
    frame: NDArray[np.int64],
    row: NDArray[np.int64],
    names: NDArray[np.uint64],
) -> list[RowValue | None]:
    """The values at places, if they belong to the named rows."""
    found: list[RowValue | None] = [None] * len(frame)
    order = np.argsort(frame, kind="stable")
    order = order[np.searchsorted(frame[order], 0) :]  # without places that have no frame
    places = zip(
        order.tolist(),
        frame[order].tolist(),
        row[order].tolist(),
        names[order].tolist(),
        strict=True,
    )
    for at, number, place, name in places:
        found[at] = frames.value(number, place, name)
    return found
