"""Ids of rows: every row has one, and no two have the same."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from domyn_swarm.batch.column_values import python_values
from domyn_swarm.batch.dataset import Dataset
from domyn_swarm.batch.json_values import is_json
from domyn_swarm.batch.spilled import Parts
from domyn_swarm.errors import InvalidInput

_SPREADER = np.uint64(0x9E3779B97F4A7C15)  # odd; Python's hash of a small number is that number
_UNSIGNED = (1 << 64) - 1
_SUSPECTS_AT_ONCE = 100_000  # of the ids that may be there twice


def check_ids(dataset: Dataset, column: str, *, limit: int | None) -> None:
    """Refuse null and duplicate ids; memory: 8 bytes a row, and beyond 64 MB a temporary file.

    Raises:
        InvalidInput: names the row or the id, or the column's type if nothing of it can be one.
        JobError: there is no room for the file.
    """
    _check_type(dataset.schema.field(column))
    hashes = Parts(None, 1, dataset.rows if limit is None else min(limit, dataset.rows))
    start = 0
    for batch in dataset.batches([column], limit=limit):
        _check_present(batch.column(0), column, start)
        values = python_values(batch.column(0))
        if is_json(batch.column(0).type):
            _check_plain(values, column, start)
        found = np.fromiter(map(hash, values), np.int64, batch.num_rows).astype(np.uint64)
        hashes.add(hashes.of_key(found * _SPREADER), found[:, None])
        start += batch.num_rows
    for part in hashes:
        ordered = np.sort(part[:, 0])
        suspects = ordered[1:][ordered[1:] == ordered[:-1]]
        for at in range(0, len(suspects), _SUSPECTS_AT_ONCE):
            some = set(suspects[at : at + _SUSPECTS_AT_ONCE].tolist())
            _refuse_duplicates(dataset, column, some, limit)


def _check_type(field: pa.Field) -> None:
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    if pa.types.is_nested(kind):
        raise InvalidInput(
            f"The column {field.name!r} ({field.type}) cannot name rows.",
            hint="Ids are numbers, text, bytes, dates or times.",
        )


def _check_plain(values: Sequence[object], column: str, start: int) -> None:
    """JSON has a type for each value."""
    for at, value in enumerate(values):
        if isinstance(value, list | dict):
            raise InvalidInput(
                f"The id in column {column!r} is a list or an object in row {start + at}.",
                hint="Ids are numbers or text.",
            )


def _check_present(values: pa.Array, column: str, start: int) -> None:
    absent = values.is_null(nan_is_null=pa.types.is_floating(values.type))
    if absent.true_count:
        at = absent.to_pylist().index(True)
        told = "null" if values[at].as_py() is None else "not a number"
        raise InvalidInput(
            f"The id in column {column!r} is {told} in row {start + at}.",
            hint="Every row needs an id; leave --id-column out to use positions.",
        )


def _refuse_duplicates(
    dataset: Dataset, column: str, suspects: set[int], limit: int | None
) -> None:
    """Tell ids that are equal from ids whose hashes merely are."""
    seen: dict[object, int] = {}
    row = 0
    for batch in dataset.batches([column], limit=limit):
        for value in python_values(batch.column(0)):
            if hash(value) & _UNSIGNED in suspects:
                if value in seen:
                    raise InvalidInput(
                        f"The id {value!r} in column {column!r} stands in row {seen[value]} "
                        f"and in row {row}.",
                        hint="Ids must be unique; leave --id-column out to use positions.",
                    )
                seen[value] = row
            row += 1
