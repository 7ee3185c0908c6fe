"""Rows in lots: so many at a time, and so many bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa

BATCH_ROWS = 2048
LOT_BYTES = 4 << 20
"""How much of an input is looked at at once, unless one row is larger."""


def rows_of_a_lot(rows: int, size: int) -> int:
    """How many of these rows, which have `size` bytes, make a lot."""
    return max(1, min(BATCH_ROWS, rows * LOT_BYTES // max(1, size)))


def lots(
    block: pa.RecordBatch, columns: Sequence[str] | None, start: int, end: int
) -> Iterator[pa.RecordBatch]:
    """The rows of a block from `start` up to `end`, in lots; the named columns, or all."""
    chosen = block if columns is None else block.select(list(columns))
    most = rows_of_a_lot(chosen.num_rows, chosen.nbytes)
    for at in range(max(0, start), min(end, chosen.num_rows), most):
        yield chosen.slice(at, min(most, end - at))


def no_columns(rows: int) -> pa.RecordBatch:
    """A batch of so many rows of which nothing is asked."""
    return pa.RecordBatch.from_struct_array(pa.array([{}] * rows, pa.struct([])))
