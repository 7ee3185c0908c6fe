"""From an input to the rows that are still to be asked."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from domyn_swarm.batch.dataset import Dataset
from domyn_swarm.batch.index import Digests, RowIndex
from domyn_swarm.batch.rows import Row
from domyn_swarm.batch.tally import Tally

_encoder = msgspec.msgpack.Encoder(enc_hook=str)


@dataclass(frozen=True)
class RowKeys:
    """What a row is: which columns a job reads, and which one names the row."""

    input_columns: Sequence[str]
    id_column: str | None

    @property
    def columns(self) -> list[str]:
        """Every column that has to be read."""
        extra = [] if self.id_column in (None, *self.input_columns) else [str(self.id_column)]
        return [*self.input_columns, *extra]

    def items(self, batch: pa.RecordBatch) -> list[Any]:
        """What a job is given for each row: the one column's value, or a dict of several."""
        columns: list[list[Any]] = [batch.column(name).to_pylist() for name in self.input_columns]
        if len(columns) == 1:
            return columns[0]
        names = self.input_columns
        return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]

    def digests(self, batch: pa.RecordBatch, items: Sequence[Any]) -> list[bytes]:
        """16 bytes for each row over its id (where there is one) and its inputs."""
        encode, blake = _encoder.encode, hashlib.blake2b
        if self.id_column is None:
            return [blake(encode(item), digest_size=16).digest() for item in items]
        ids = batch.column(self.id_column).to_pylist()
        return [
            blake(encode((name, item)), digest_size=16).digest()
            for name, item in zip(ids, items, strict=True)
        ]


def as_matrix(digests: Sequence[bytes]) -> Digests:
    """Digests as the index compares them: shape (rows, 2)."""
    return np.frombuffer(b"".join(digests), "<u8").reshape(len(digests), 2)


def pending_rows(
    dataset: Dataset, keys: RowKeys, index: RowIndex | None, limit: int | None, tally: Tally
) -> Iterator[list[Row]]:
    """The rows without a result, in input order, a batch at a time; settled ones are counted."""
    start = 0
    for batch in dataset.batches(keys.columns, limit=limit):
        items = keys.items(batch)
        digests = keys.digests(batch, items)
        chosen: Sequence[int] = range(len(items))
        if index is not None:
            matches = index.match(start, as_matrix(digests))
            tally.rows_resumed += int(matches.found.sum())
            tally.resumed_failed += int((matches.found & matches.failed).sum())
            chosen = np.flatnonzero(~matches.found).tolist()
        rows = [Row(start + at, digests[at], items[at]) for at in chosen]
        if rows:
            yield rows
        start += batch.num_rows


def named_rows(
    dataset: Dataset, keys: RowKeys, limit: int | None, ordinals: Collection[int]
) -> Iterator[list[Row]]:
    """Exactly the rows at these ordinals: those whose results turned out to be unreadable."""
    start = 0
    for batch in dataset.batches(keys.columns, limit=limit):
        inside = [at for at in range(batch.num_rows) if start + at in ordinals]
        if inside:
            items = keys.items(batch)
            digests = keys.digests(batch, items)
            yield [Row(start + at, digests[at], items[at]) for at in inside]
        start += batch.num_rows
