"""Rows as JSON Lines and as CSV: how they are written, and what of them can be compared again.

JSON has no bytes and no NaN: bytes become Base64, NaN null. CSV has no lists: what is nested
becomes JSON text.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO, Protocol

import msgspec
import pyarrow as pa
from pyarrow import csv

_encoder = msgspec.json.Encoder(enc_hook=str)
_CHUNK_BYTES = 1 << 20
CSV_BLOCK_BYTES = 4 << 20  # no row may be larger
_WITH_CSV_FORM = (
    pa.types.is_primitive,
    pa.types.is_decimal,
    pa.types.is_string,
    pa.types.is_large_string,
)


class TextForm(Protocol):
    """One kind of text."""

    def head(self, schema: pa.Schema) -> bytes:
        """What comes before the rows."""

    def body(self, batch: pa.RecordBatch) -> bytes:
        """Some rows."""

    def read(self, file: BinaryIO, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The rows of a file, every value as its text in one canonical form; null stays null.

        Raises:
            ValueError: the file is no such text, or has other columns.
        """

    def formed(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """A batch as `read` would give it back."""


class JsonLines:
    """One object on each line, with all columns."""

    def head(self, schema: pa.Schema) -> bytes:  # noqa: ARG002 - it has none
        """See `TextForm`."""
        return b""

    def body(self, batch: pa.RecordBatch) -> bytes:
        """See `TextForm`."""
        rows = printable(batch).to_pylist()
        return _encoder.encode_lines(rows) if rows else b""

    def read(self, file: BinaryIO, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """See `TextForm`."""
        decode = msgspec.json.Decoder(dict[str, Any]).decode
        while lines := file.readlines(_CHUNK_BYTES):
            rows = [decode(line) for line in lines]
            other = next((row for row in rows if [*row] != [*names]), None)
            if other is not None:
                raise ValueError(f"a row has the columns {', '.join(other)}")
            columns = [[canonical(row[name]) for row in rows] for name in names]
            arrays = [pa.array(values, pa.string()) for values in columns]
            yield pa.RecordBatch.from_arrays(arrays, names=list(names))

    def formed(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """See `TextForm`."""
        names = batch.schema.names
        return _one(self.read(io.BytesIO(self.body(batch)), names), names)


class Csv:
    """A header, then one line for each row; text is quoted, null is nothing at all."""

    def head(self, schema: pa.Schema) -> bytes:
        """See `TextForm`."""
        sink = io.BytesIO()
        csv.CSVWriter(sink, _csv_schema(schema)).close()
        return sink.getvalue()

    def body(self, batch: pa.RecordBatch) -> bytes:
        """See `TextForm`."""
        schema = _csv_schema(batch.schema)
        columns = [_as_text(column) if _is_odd(column.type) else column for column in batch.columns]
        sink = io.BytesIO()
        with csv.CSVWriter(
            sink, schema, write_options=csv.WriteOptions(include_header=False)
        ) as writer:
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
        return sink.getvalue()

    def read(self, file: BinaryIO, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """See `TextForm`."""
        reader = csv.open_csv(
            file,
            read_options=csv.ReadOptions(block_size=CSV_BLOCK_BYTES),
            parse_options=csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False),
            convert_options=csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()),
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )
        if reader.schema.names != list(names):
            raise ValueError(f"it has the columns {', '.join(reader.schema.names)}")
        yield from reader

    def formed(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """See `TextForm`."""
        whole = io.BytesIO(self.head(batch.schema) + self.body(batch))
        return _one(self.read(whole, batch.schema.names), batch.schema.names)


FORMS: dict[str, TextForm] = {"jsonl": JsonLines(), "csv": Csv()}


def _one(parts: Iterable[pa.RecordBatch], names: Sequence[str]) -> pa.RecordBatch:
    schema = pa.schema([(name, pa.string()) for name in names])
    table = pa.Table.from_batches(parts, schema).combine_chunks()
    arrays = [
        column.chunk(0) if column.num_chunks else pa.array([], column.type)
        for column in table.columns
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def canonical(value: Any) -> str | None:  # noqa: ANN401 - JSON
    """A value as text that is the same for equal values; null stays null."""
    return None if value is None else _encoder.encode(value).decode()


def _csv_schema(schema: pa.Schema) -> pa.Schema:
    return pa.schema(
        [(field.name, pa.string()) if _is_odd(field.type) else field for field in schema]
    )


def _is_odd(kind: pa.DataType) -> bool:
    """Whether CSV has no form for it."""
    return not any(is_plain(kind) for is_plain in _WITH_CSV_FORM)


def _as_text(column: pa.Array) -> pa.Array:
    return pa.array([_text(value) for value in column.to_pylist()], pa.string())


def _text(value: Any) -> str | None:  # noqa: ANN401 - a value of a column
    if value is None or isinstance(value, str):
        return value
    text = _encoder.encode(value).decode()
    return text.strip('"') if isinstance(value, bytes) else text


def printable(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with times in nanoseconds as text: Python's own times would lose digits."""
    columns = [
        column.cast(pa.string())
        if pa.types.is_timestamp(column.type) and column.type.unit == "ns"
        else column
        for column in batch.columns
    ]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def plain_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Rows as JSON has them: for a handful that is shown."""
    rows: list[dict[str, Any]] = []
    for batch in table.to_batches():
        rows += msgspec.json.decode(_encoder.encode(printable(batch).to_pylist()))
    return rows
