"""Rows that are read as they are needed, a record batch at a time."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Protocol

import pyarrow as pa

from domyn_swarm.errors import InvalidInput


class Dataset(Protocol):
    """Rows in a fixed order that can be read more than once."""

    schema: pa.Schema
    rows: int

    def batches(
        self, columns: Sequence[str] | None = None, *, start: int = 0, limit: int | None = None
    ) -> Iterator[pa.RecordBatch]:
        """The rows from `start` up to `limit`, in order and in lots: at most `BATCH_ROWS`, and no
        more bytes than `LOT_BYTES` unless one row has more; the named columns, or all.
        """


def check_columns(dataset: Dataset, columns: Sequence[str], what: str) -> None:
    """Refuse columns that the input does not have.

    Raises:
        InvalidInput: names the missing ones, what may be meant, and those that are there.
    """
    missing = [name for name in columns if name not in dataset.schema.names]
    if missing:
        there = dataset.schema.names
        close = difflib.get_close_matches(missing[0], there, 1)
        meant = f"Did you mean {close[0]!r}? " if close else ""
        raise InvalidInput(
            f"The input has no column {', '.join(map(repr, missing))} ({what}).",
            hint=f"{meant}It has: {', '.join(there)}.",
        )
