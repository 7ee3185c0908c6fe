"""Types of columns that depend on their values: settled before Parquet is written."""

from __future__ import annotations

from collections.abc import Iterable, KeysView, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from domyn_swarm.batch.column_values import (
    JSON,
    WrittenFloat,
    array,
    is_json,
    json_array,
    json_values,
    keeps_digits,
    may_lose_digits,
    python_values,
)
from domyn_swarm.batch.input.cell_types import ARROW_TYPES, CellShape, as_array
from domyn_swarm.batch.input.reading import CellType

_EXACT = 1 << 53  # integers up to here are exact as floats, beyond it only some
_DIGITS = 38  # of a decimal
_DEPTH = 32
_KINDS = {"text": pa.string(), "true or false": pa.bool_(), "nothing": pa.null()}


class NoType(Exception):
    """No single type holds the values; the message says why."""


@dataclass
class Shape:
    """The common type of the values so far. Once there is none, further values are not examined."""

    kind: str = "nothing"
    fractions: bool = False
    least: int = 0
    most: int = 0
    inexact: int | None = None  # an integer that may not be exact as a float
    items: Shape | None = None
    fields: dict[str, Shape] = field(default_factory=dict)
    why: str = ""  # why there is no common type
    depth: int = 0

    def add(self, value: Any) -> None:  # noqa: ANN401 - JSON
        """Add a value."""
        if self.why or value is None:
            return
        try:
            self._add(value)
        except NoType as none:
            self.give_up(str(none))

    def give_up(self, why: str) -> None:
        """There is no common type from now on; nothing is kept of the values."""
        self.why, self.items, self.fields = why, None, {}

    def _add(self, value: Any) -> None:  # noqa: ANN401 - JSON
        if isinstance(value, str):
            self._be("text")
        elif isinstance(value, bool):
            self._be("true or false")
        elif isinstance(value, int):
            self._be("numbers")
            self.least, self.most = min(self.least, value), max(self.most, value)
            if not -_EXACT <= value <= _EXACT and self.inexact is None:
                self.inexact = value
            self._check_numbers()
        elif isinstance(value, float):
            self._be("numbers")
            if isinstance(value, WrittenFloat) and not keeps_digits(value.text):
                raise NoType(f"it holds {value.text:.40}, which would lose digits as a number")
            self.fractions = True
            self._check_numbers()
        elif isinstance(value, list):
            self._be("lists")
            self.items = self.items or self._inside()
            for one in value:
                if one is not None:
                    self.items._add(one)
        else:
            self._add_object(value)

    def _add_object(self, value: dict[str, Any]) -> None:
        if self.kind == "objects":
            self._check_keys(value.keys())
        else:
            self._be("objects")
            if not value:
                raise NoType("it holds an object without keys")
            self.fields = {name: self._inside() for name in value}
        for name, one in value.items():
            if one is not None:
                self.fields[name]._add(one)

    def _check_keys(self, keys: KeysView[str]) -> None:
        if keys != self.fields.keys():
            odd = sorted(keys ^ self.fields.keys())[0]
            raise NoType(f"its objects have different keys ({odd!r} is not in all)")

    def _inside(self) -> Shape:
        if self.depth == _DEPTH:
            raise NoType(f"it holds values nested more than {_DEPTH} deep")
        return Shape(depth=self.depth + 1)

    def _be(self, kind: str) -> None:
        if self.kind == "nothing":
            self.kind = kind
        elif self.kind != kind:
            one, other = sorted((self.kind, kind))
            raise NoType(f"it holds {one} and {other}")

    def _check_numbers(self) -> None:
        if self.fractions and self.inexact is not None:
            raise NoType(f"it holds fractions, and {self.inexact}, which is too large for one")
        if max(self.most, -self.least) >= 10**_DIGITS:
            raise NoType(f"it holds whole numbers of more than {_DIGITS} digits")

    def merge(self, other: Self) -> None:
        """Add the values of another shape."""
        if self.why or other.kind == "nothing":
            self.why = self.why or other.why
            return
        if other.why:
            self.give_up(other.why)
            return
        try:
            self._merge(other)
        except NoType as none:
            self.give_up(str(none))

    def _merge(self, other: Shape) -> None:
        if other.kind == "nothing":
            return
        if self.kind == "nothing":
            self.__dict__.update(other.__dict__)
            return
        self._be(other.kind)
        self.fractions |= other.fractions
        self.least, self.most = min(self.least, other.least), max(self.most, other.most)
        self.inexact = other.inexact if self.inexact is None else self.inexact
        self._check_numbers()
        if self.items is not None and other.items is not None:
            self.items._merge(other.items)
        if self.kind == "objects":
            self._check_keys(other.fields.keys())
            for name, one in other.fields.items():
                self.fields[name]._merge(one)

    def arrow(self) -> pa.DataType:
        """The type; JSON if there is no other (see `why`)."""
        return JSON if self.why else self._arrow()

    def _arrow(self) -> pa.DataType:
        if self.kind == "numbers":
            return self._number()
        if self.kind == "lists":
            return pa.list_(Shape()._arrow() if self.items is None else self.items._arrow())
        if self.kind == "objects":
            return pa.struct([(name, one._arrow()) for name, one in self.fields.items()])
        return _KINDS[self.kind]

    def _number(self) -> pa.DataType:
        if self.fractions:
            return pa.float64()
        if self.least >= -(2**63) and self.most < 2**63:
            return pa.int64()
        return pa.uint64() if self.least >= 0 and self.most < 2**64 else pa.decimal128(_DIGITS)


_TYPES_OF_CELLS: dict[pa.DataType, CellType] = {
    ARROW_TYPES[kind]: kind for kind in ("int", "float", "bool")
}


class OpenTypes:
    """Columns whose values have to be examined, and their shapes so far."""

    def __init__(self, json: Sequence[str] = (), cells: Sequence[str] = ()) -> None:
        """`json` are columns of JSON, `cells` such of text."""
        self._shapes = {name: Shape() for name in json}
        self._cells = {name: CellShape() for name in cells}

    @property
    def names(self) -> list[str]:
        """The columns."""
        return [*self._shapes, *self._cells]

    def look(self, batch: pa.RecordBatch) -> None:
        """Add the values of a batch that has the columns."""
        for name, shape in self._shapes.items():
            column = batch.column(name)
            for value in () if shape.why else json_values(column, written=may_lose_digits(column)):
                shape.add(value)
        for name, cells in self._cells.items():
            for cell in batch.column(name).to_pylist():
                cells.add(cell)

    def merge(self, other: Self) -> None:
        """Add the values of another object for the same columns."""
        for name, shape in self._shapes.items():
            shape.merge(other._shapes[name])

    def settled(self, schema: pa.Schema) -> pa.Schema:
        """The schema with the types of the examined values."""
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
    """The schema with JSON text for types that Parquet does not support; and why, by column.
    Dictionaries of text views, as polars writes them, become dictionaries of text.
    """
    fields = [field.with_type(_text_categories(field.type)) for field in schema]
    schema = pa.schema(fields, metadata=schema.metadata)
    reasons = {
        field.name: f"Parquet has no place for {field.type}"
        for field in schema
        if not _has_place(field)
    }
    fields = [field.with_type(JSON) if field.name in reasons else field for field in schema]
    return pa.schema(fields, metadata=schema.metadata), reasons


def _text_categories(kind: pa.DataType) -> pa.DataType:
    if not _is_view_category(kind):
        return kind
    text = pa.types.is_string_view(kind.value_type)
    values = pa.large_string() if text else pa.large_binary()
    return pa.dictionary(kind.index_type, values, kind.ordered)


def _is_view_category(kind: pa.DataType) -> bool:
    """Whether a type is a dictionary of views, which Arrow's writer of Parquet cannot cast."""
    if not pa.types.is_dictionary(kind):
        return False
    return bool(
        pa.types.is_string_view(kind.value_type) or pa.types.is_binary_view(kind.value_type)
    )


def _holds_view_category(kind: pa.DataType) -> bool:
    inside = [kind.field(at).type for at in range(kind.num_fields)]
    return _is_view_category(kind) or any(map(_holds_view_category, inside))


def _has_place(field: pa.Field) -> bool:
    if _holds_view_category(field.type):
        return False
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
    """A column with its settled type."""
    if pa.types.is_string(column.type) and kind in _TYPES_OF_CELLS:
        return as_array(column.to_pylist(), _TYPES_OF_CELLS[kind])
    if _is_view_category(column.type) and pa.types.is_dictionary(kind):
        return column.cast(kind)
    if is_json(column.type) == is_json(kind):
        return column
    if is_json(kind):
        return json_array(_encoded(python_values(column)))
    return array(json_values(column), kind)


def _encoded(values: Iterable[object]) -> list[bytes | None]:
    return [None if one is None else msgspec.json.encode(one, enc_hook=str) for one in values]
