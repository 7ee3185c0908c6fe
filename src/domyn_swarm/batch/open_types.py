"""Types of columns that only their values tell: settled before Parquet or Arrow are written.

A column of JSON gets the type that holds all of its values as they are, or stays JSON text; one of
a type for which a file has no place becomes JSON text. Which do, and why, is told.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Self

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from domyn_swarm.batch.arrow_arrays import array
from domyn_swarm.batch.cell_types import ARROW_TYPES, CellShape, as_array
from domyn_swarm.batch.column_values import python_values
from domyn_swarm.batch.json_shapes import Shape
from domyn_swarm.batch.json_values import JSON, is_json, json_array, json_values
from domyn_swarm.batch.reading import CellType

_TYPES_OF_CELLS: dict[pa.DataType, CellType] = {
    ARROW_TYPES[kind]: kind for kind in ("int", "float", "bool")
}


class OpenTypes:
    """Columns whose values have to be looked at, and what was seen of them."""

    def __init__(self, json: Sequence[str] = (), cells: Sequence[str] = ()) -> None:
        """`json` are columns of JSON, `cells` such of text."""
        self._shapes = {name: Shape() for name in json}
        self._cells = {name: CellShape() for name in cells}

    @property
    def names(self) -> list[str]:
        """The columns."""
        return [*self._shapes, *self._cells]

    def look(self, batch: pa.RecordBatch) -> None:
        """Take the values of a batch that has the columns."""
        for name, shape in self._shapes.items():
            for value in () if shape.why else json_values(batch.column(name)):
                shape.add(value)
        for name, cells in self._cells.items():
            for cell in batch.column(name).to_pylist():
                cells.add(cell)

    def merge(self, other: Self) -> None:
        """Take what another one has seen of the same columns."""
        for name, shape in self._shapes.items():
            shape.merge(other._shapes[name])

    def settled(self, schema: pa.Schema) -> pa.Schema:
        """The schema with the types of what was seen."""
        kinds = {name: shape.arrow() for name, shape in self._shapes.items()}
        kinds |= {name: ARROW_TYPES[cells.cell_type()] for name, cells in self._cells.items()}
        fields = [field.with_type(kinds.get(field.name, field.type)) for field in schema]
        return pa.schema(fields, metadata=schema.metadata)

    @property
    def reasons(self) -> dict[str, str]:
        """Why columns stay text, JSON's or that of cells, by their names."""
        json = {name: shape.why for name, shape in self._shapes.items() if shape.why}
        return json | {name: cells.why for name, cells in self._cells.items() if cells.why}


def for_parquet(schema: pa.Schema) -> tuple[pa.Schema, dict[str, str]]:
    """The schema with JSON text for types that Parquet has no place for; and why, by column."""
    reasons = {
        field.name: f"Parquet has no place for {field.type}"
        for field in schema
        if not _has_place(field)
    }
    fields = [field.with_type(JSON) if field.name in reasons else field for field in schema]
    return pa.schema(fields, metadata=schema.metadata), reasons


def _has_place(field: pa.Field) -> bool:
    if not (pa.types.is_nested(field.type) or _is_rare(field.type)):
        return True
    try:
        empty = pa.schema([field]).empty_table()
        with pq.ParquetWriter(pa.BufferOutputStream(), empty.schema) as writer:
            writer.write_table(empty)
    except pa.ArrowException:
        return False
    return True


def _is_rare(kind: pa.DataType) -> bool:
    return bool(pa.types.is_interval(kind) or pa.types.is_run_end_encoded(kind))


def typed(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """A batch with the types of a schema that was settled for its columns."""
    columns = [
        typed_column(column, kind) for column, kind in zip(batch.columns, schema.types, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def typed_column(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """A column as one of the type that was settled for it."""
    if pa.types.is_string(column.type) and kind in _TYPES_OF_CELLS:
        return as_array(column.to_pylist(), _TYPES_OF_CELLS[kind])
    if is_json(column.type) == is_json(kind):
        return column
    if is_json(kind):
        return json_array(_encoded(python_values(column)))
    return array(json_values(column), kind)


def _encoded(values: Iterable[object]) -> list[bytes | None]:
    return [None if one is None else msgspec.json.encode(one, enc_hook=str) for one in values]
