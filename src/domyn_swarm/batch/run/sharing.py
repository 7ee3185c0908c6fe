"""Rows of equal values share a request (`--dedup`): one row is sent, and the others get a copy of
its result.

Values are compared by a 16-byte hash over the input columns, whatever `--fingerprint` compares. The
waiting rows are copied once the others are settled, so a run that is killed before or during the
copying is resumed as any other: settled rows stay settled, waiting rows wait again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from domyn_swarm.batch.checkpoint.index import RowIndex
from domyn_swarm.batch.input.dataset import BATCH_ROWS, Dataset
from domyn_swarm.batch.input.key_table import Parts
from domyn_swarm.batch.input.row_keys import RowKeys, encoded_value
from domyn_swarm.batch.outcomes.row_outcomes import Result, Row, RowValue
from domyn_swarm.batch.outcomes.tally import Tally
from domyn_swarm.batch.outcomes.verdicts import Reading
from domyn_swarm.batch.output.ordered_results import ordered_results
from domyn_swarm.batch.output.row_join import joined
from domyn_swarm.batch.run.pending import PendingRows
from domyn_swarm.batch.run.runner import Events

_PENDING = np.uint64(1 << 63)  # above the row: it sorts behind all answered rows
_ROW = _PENDING - np.uint64(1)


class Shared(NamedTuple):
    """A row that waited, with its copied result."""

    result: Result  # as it is kept
    item: Any  # the item that its job would have received


class SharedRows:
    """The pending rows that wait for another row.

    Among rows of equal values all pending ones wait for an answered one, or else for the first of
    them. Memory: one byte a row, and 64 MB; the rest is in unnamed files.
    """

    def __init__(
        self,
        dataset: Dataset,
        keys: RowKeys,
        index: RowIndex,
        limit: int | None,
        *,
        again: NDArray[np.uint8] | None = None,
    ) -> None:
        """Read all rows' keys and values.

        Args:
            dataset: the rows.
            keys: by what they are known.
            index: what is settled.
            limit: how many of the rows there are.
            again: the outcomes that are asked again, and no other rows; None: all rows that are not
                settled.

        Raises:
            InvalidInput: the input cannot be read.
            JobError: no disk takes the files.
        """
        self._dataset, self._keys, self._limit = dataset, keys, limit
        self._rows = dataset.rows if limit is None else min(limit, dataset.rows)
        self._folder = index.frames.folder
        self._waits = np.zeros(self._rows, np.bool_)
        by_value = Parts(self._folder, 5, self._rows)
        start = 0
        for batch in dataset.batches(keys.columns, limit=limit):
            items = keys.items(batch)
            digests = keys.digests(batch, start, items)
            found = index.match(start, digests)
            pending = ~found.found if again is None else found.found & (again[found.outcome] != 0)
            answered = found.found & ~found.failed & ~pending  # errors are not copied
            chosen = np.flatnonzero(pending | answered)
            rows = (start + chosen).astype(np.uint64)
            marked = np.where(answered[chosen], rows, rows | _PENDING)
            values = _hashes(items)[chosen]
            columns = np.column_stack([values, marked, digests[chosen]])
            by_value.add(by_value.of_key(values[:, 0]), columns)
            start += batch.num_rows
        self._by_leader = Parts(self._folder, 4, self._rows)
        for part in by_value:
            self._find(part)

    def _find(self, rows: NDArray[np.uint64]) -> None:
        """Search rows among all rows of their values."""
        if not len(rows):
            return
        rows = rows[np.lexsort((rows[:, 2], rows[:, 1], rows[:, 0]))]
        first = np.append(True, (rows[1:, :2] != rows[:-1, :2]).any(axis=1))
        leader = np.maximum.accumulate(np.where(first, np.arange(len(rows)), 0))
        waiting = np.flatnonzero(~first & (rows[:, 2] >= _PENDING))
        leaders = rows[leader[waiting], 2] & _ROW
        followers = rows[waiting, 2] & _ROW
        self._waits[followers.astype(np.int64)] = True
        part = (leaders * np.uint64(self._by_leader.count) // np.uint64(self._rows)).astype(
            np.uint16
        )
        columns = np.column_stack([leaders, followers, rows[waiting, 3:]])
        self._by_leader.add(part, columns)

    @property
    def waiting(self) -> int:
        """The number of waiting rows."""
        return self._by_leader.rows

    def without(self, source: Iterator[PendingRows]) -> Iterator[PendingRows]:
        """The pending rows that do not wait."""
        for pending in source:
            asked = np.flatnonzero(~self._waits[pending.ordinals])
            if len(asked) == len(pending.ordinals):
                yield pending
            elif len(asked):
                yield pending.some(asked)

    def results(self, index: RowIndex) -> Iterator[list[Shared]]:
        """Results for the waiting rows whose request is answered by now, some at a time; the index
        returns them as they are kept. Use it once.

        Raises:
            JobError: a file cannot be read back.
        """
        source = ordered_results(self._dataset, self._keys, index, self._limit)
        followers = self._followers()
        part = next(followers, None)
        start = 0
        for batch, values in joined(self._dataset, self._keys.columns, source, self._limit):
            end = start + len(values)
            items = None
            while part is not None and part[0, 0] < end:
                items = self._keys.items(batch) if items is None else items
                until = min(BATCH_ROWS, int(np.searchsorted(part[:, 0], end)))
                if found := list(_copies(part[:until], values, items, start)):
                    yield found
                part = part[until:] if until < len(part) else next(followers, None)
            start = end

    def _followers(self) -> Iterator[NDArray[np.uint64]]:
        """The waiting rows by the row that they wait for; never none."""
        for part in self._by_leader:
            if len(part):
                yield part[np.argsort(part[:, 0], kind="stable")]


def _copies(
    followers: NDArray[np.uint64],
    values: Sequence[RowValue | None],
    items: Sequence[Any],
    start: int,
) -> Iterator[Shared]:
    for leader, row, *digest in followers.tolist():
        value = values[leader - start]
        if value is not None:
            raw = np.array(digest, np.uint64).tobytes()
            yield Shared(Result(row, raw, _copy(value)), items[leader - start])


def _copy(value: RowValue) -> RowValue:
    """The same result, for which nothing was sent."""
    return msgspec.structs.replace(
        value, attempts=0, prompt_tokens=0, completion_tokens=0, latency_s=0.0
    )


def count_shared(
    kept: Sequence[Shared], reading: Reading, tally: Tally, events: Events
) -> list[Result]:
    """Count the rows that got copies, and report the failed ones; returns them with their
    outcomes.
    """
    judged = []
    for result, item in kept:
        counts = reading.judged(result.value)
        error = tally.count_shared(result.ordinal, result.value, counts)
        if error is not None:
            events.on_row_error(Row(result.ordinal, result.digest, item), error)
        judged.append(msgspec.structs.replace(result, value=counts))
    return judged


def _hashes(items: Sequence[Any]) -> NDArray[np.uint64]:
    raw = b"".join(
        [hashlib.blake2b(encoded_value(item), digest_size=16).digest() for item in items]
    )
    return np.frombuffer(raw, "<u8").reshape(-1, 2)
