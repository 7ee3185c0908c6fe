"""The rows of an input that have no result yet."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from domyn_swarm.batch.checkpoint.index import RowIndex
from domyn_swarm.batch.column_values import rows_at
from domyn_swarm.batch.input.dataset import Dataset
from domyn_swarm.batch.input.row_keys import DIGEST_BYTES, Digests, RowKeys
from domyn_swarm.batch.outcomes.row_outcomes import Row
from domyn_swarm.batch.outcomes.tally import Tally
from domyn_swarm.batch.outcomes.verdicts import count_verdicts

_SKIP_ROWS = 8 * 1024


@dataclass(frozen=True)
class PendingRows:
    """Rows without a result, in the order in which they are sent; never empty."""

    ordinals: NDArray[np.int64]
    digests: Digests
    columns: pa.RecordBatch  # the key columns of just these rows
    items: list[Any] | None = None  # set if they were made already

    def rows(self, keys: RowKeys) -> list[Row]:
        """The rows as the runner takes them."""
        items = keys.items(self.columns) if self.items is None else self.items
        raw = self.digests.tobytes()
        digests = [raw[at : at + DIGEST_BYTES] for at in range(0, len(raw), DIGEST_BYTES)]
        return list(map(Row, self.ordinals.tolist(), digests, items))

    def some(self, at: NDArray[np.int64]) -> PendingRows:
        """The rows at these positions."""
        items = None if self.items is None else [self.items[one] for one in at.tolist()]
        columns = rows_at(self.columns, at)
        return PendingRows(self.ordinals[at], self.digests[at], columns, items)


def joined(parts: Sequence[PendingRows]) -> PendingRows:
    """Several concatenated; either all have their items made, or none has."""
    items = [item for part in parts for item in part.items or ()]
    return PendingRows(
        np.concatenate([part.ordinals for part in parts]),
        np.concatenate([part.digests for part in parts]),
        pa.concat_batches([part.columns for part in parts]),
        items or None,
    )


def pending_rows(
    dataset: Dataset,
    keys: RowKeys,
    index: RowIndex,
    limit: int | None,
    tally: Tally,
    *,
    again: NDArray[np.uint8] | None = None,
) -> Iterator[PendingRows]:
    """The rows without a result, in input order, a batch at a time; settled rows are counted.

    With `again`, the rows whose results have these outcomes instead, without those that have no
    result.
    """
    start = 0 if again is not None else _first_to_look_at(dataset, keys, index, limit, tally)
    for batch in dataset.batches(keys.columns, start=start, limit=limit):
        items = keys.items(batch) if keys.fingerprint == "full" else None
        digests = keys.digests(batch, start, items)
        chosen = np.flatnonzero(_pending(index, start, digests, tally, again))
        whole = PendingRows(np.arange(start, start + batch.num_rows), digests, batch, items)
        if len(chosen):
            yield whole if len(chosen) == batch.num_rows else whole.some(chosen)
        start += batch.num_rows


def _pending(
    index: RowIndex,
    start: int,
    digests: Digests,
    tally: Tally,
    again: NDArray[np.uint8] | None = None,
) -> NDArray[np.bool_]:
    matches = index.match(start, digests)
    settled = matches.found
    pending = ~settled
    if again is not None:
        pending = settled & (again[matches.outcome] != 0)
        settled &= ~pending
    tally.rows_resumed += int(settled.sum())
    tally.resumed_failed += int((settled & matches.failed).sum())
    tally.resumed_verdicts.update(count_verdicts(matches.outcome[settled]))
    for folder, rows in index.frames.count_by_folder(matches.frame[settled]).items():
        if not folder.own:
            tally.resumed_from[folder.path.name] += rows
    return pending


def _first_to_look_at(
    dataset: Dataset, keys: RowKeys, index: RowIndex, limit: int | None, tally: Tally
) -> int:
    """The row at which reading begins: rows identified by position alone can be skipped unread."""
    if keys.id_column is not None or keys.fingerprint != "off":
        return 0
    rows = dataset.rows if limit is None else min(limit, dataset.rows)
    by_position = np.array([keys.position_digest], np.uint64)
    for start in range(0, rows, _SKIP_ROWS):
        size = min(_SKIP_ROWS, rows - start)
        digests = np.repeat(by_position, size, axis=0)
        if not index.match(start, digests).found.all():
            return start
        _pending(index, start, digests, tally)
    return rows


def still_pending(rows: Iterable[PendingRows], index: RowIndex) -> Iterator[PendingRows]:
    """The rows without a result, of rows that are given one by one in any order."""
    for one in rows:
        if not index.match(int(one.ordinals[0]), one.digests).found.all():
            yield one


def named_rows(
    dataset: Dataset, keys: RowKeys, limit: int | None, ordinals: Collection[int]
) -> Iterator[PendingRows]:
    """Exactly the rows at these ordinals, whose results turned out to be unreadable."""
    start = 0
    for batch in dataset.batches(keys.columns, limit=limit):
        inside = [at for at in range(batch.num_rows) if start + at in ordinals]
        if inside:
            digests = keys.digests(batch, start)
            ordinals = np.arange(start, start + batch.num_rows)
            yield PendingRows(ordinals, digests, batch).some(np.array(inside, np.int64))
        start += batch.num_rows
