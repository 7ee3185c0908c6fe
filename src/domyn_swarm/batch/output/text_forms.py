"""Rows as JSON Lines and as CSV: how they are written, and which form of them can be compared
again.

JSON has no bytes and no NaN: bytes become Base64, NaN null. CSV has no lists: nested values become
JSON text.
"""

from __future__ import annotations

import contextlib
import csv as text_csv
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO, Protocol

import msgspec
import pyarrow as pa
from pyarrow import csv
from typing_extensions import override

from domyn_swarm.batch.column_values import (
    array,
    is_json,
    json_texts,
    json_values,
    python_values,
    raw_json,
)
from domyn_swarm.batch.input.dataset import Dataset, ParquetDataset
from domyn_swarm.batch.input.input_files import InputFile
from domyn_swarm.batch.input.text_dataset import TextDataset
from domyn_swarm.batch.times import has_far_years, in_known_zone, time_texts
from domyn_swarm.errors import InvalidInput

_CHUNK_BYTES = 1 << 20
_BLOCK_BYTES = (4 << 20, 64 << 20, 1 << 30)  # a block has to hold the largest row
_WITH_CSV_FORM = (
    pa.types.is_primitive,
    pa.types.is_decimal,
    pa.types.is_string,
    pa.types.is_large_string,
)


_encoder = msgspec.json.Encoder(enc_hook=str)
_split = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class TextForm(Protocol):
    """One form of text."""

    def head(self, schema: pa.Schema) -> bytes:
        """The bytes before the rows."""

    def body(self, batch: pa.RecordBatch) -> bytes:
        """The bytes of some rows."""

    def read(self, file: BinaryIO, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The rows of a file, every value as its text in one canonical form; null stays null.

        Raises:
            ValueError: the file is not in this form, or has other columns.
        """

    def formed(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """A batch as `read` would return it."""


class JsonLines(TextForm):
    """One object on each line, with all columns.

    With `row`, the column of that name holds objects of JSON: their members come first in their
    line, in their written form, followed by the other columns.
    """

    def __init__(self, row: str | None = None) -> None:
        self._row = row

    @override
    def head(self, schema: pa.Schema) -> bytes:
        return b""

    @override
    def body(self, batch: pa.RecordBatch) -> bytes:
        names = [name for name in batch.schema.names if name != self._row]
        columns = [_json_column(batch.column(name)) for name in names]
        if self._row not in batch.schema.names:
            rows = [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
            return _encoder.encode_lines(rows) if rows else b""
        own = json_texts(batch.column(self._row))
        others = zip(*columns, strict=True) if columns else ((),) * len(own)
        return b"".join(
            _joined(text, _encoder.encode(dict(zip(names, values, strict=True)))) + b"\n"
            for text, values in zip(own, others, strict=True)
        )

    @override
    def read(self, file: BinaryIO, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        while lines := file.readlines(_CHUNK_BYTES):
            rows = [self._read_row(line, names) for line in lines]
            columns = [[_text_of(row[name]) for row in rows] for name in names]
            arrays = [array(texts, pa.string()) for texts in columns]
            yield pa.RecordBatch.from_arrays(arrays, names=list(names))

    def _read_row(self, line: bytes, names: Sequence[str]) -> dict[str, bytes | msgspec.Raw]:
        row: dict[str, Any] = dict(_split(line))
        if self._row is not None and self._row in names:
            own = {name: row.pop(name) for name in list(row) if name not in names}
            row[self._row] = _encoder.encode(own)
        if row.keys() != {*names} or (self._row is None and [*row] != [*names]):
            raise ValueError(f"a row has the columns {', '.join(row)}")
        return row

    @override
    def formed(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        names = batch.schema.names
        return _concatenated(self.read(io.BytesIO(self.body(batch)), names), names)


def _json_column(column: pa.Array) -> list[Any]:
    """The values of a column, in the form that is encoded to their JSON."""
    if not is_json(column.type):
        return python_values(_printable(column))
    return [None if text is None else raw_json(text) for text in json_texts(column)]


def _joined(own: str | None, others: bytes) -> bytes:
    """One object of the members of both; `own` is the text of a line."""
    inside = (own or "{}").strip()[1:-1].strip()
    if not inside or len(others) == len(b"{}"):
        return b"{" + inside.encode() + b"}" if inside else others
    return b"{" + inside.encode() + b"," + others[1:]


def _text_of(value: bytes | msgspec.Raw) -> str | None:
    text = bytes(value)
    return None if text == b"null" else text.decode()


class Csv(TextForm):
    """A header, then one line for each row; text is quoted, null is empty."""

    @override
    def head(self, schema: pa.Schema) -> bytes:
        sink = io.StringIO()
        writer = text_csv.writer(sink, quoting=text_csv.QUOTE_ALL, lineterminator="\n")
        writer.writerow(schema.names)
        return sink.getvalue().encode()

    @override
    def body(self, batch: pa.RecordBatch) -> bytes:
        columns = list(map(_csv_column, batch.columns))
        kinds = [column.type for column in columns]
        schema = pa.schema(list(zip(batch.schema.names, kinds, strict=True)))
        sink = io.BytesIO()
        with csv.CSVWriter(
            sink, schema, write_options=csv.WriteOptions(include_header=False)
        ) as writer:
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
        return sink.getvalue()

    @override
    def read(self, file: BinaryIO, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        given = 0
        for block_bytes in _BLOCK_BYTES:
            file.seek(0)
            try:
                for batch in _csv_batches(file, names, block_bytes, given):
                    given += batch.num_rows
                    yield batch
            except pa.ArrowInvalid as error:
                if "block size" not in str(error) or block_bytes == _BLOCK_BYTES[-1]:
                    raise
            else:
                return

    @override
    def formed(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        whole = io.BytesIO(self.head(batch.schema) + self.body(batch))
        return _concatenated(self.read(whole, batch.schema.names), batch.schema.names)


def _csv_batches(
    file: BinaryIO, names: Sequence[str], block_bytes: int, skipped: int
) -> Iterator[pa.RecordBatch]:
    """The rows of a file after some that were read before, in blocks of a size."""
    reader = csv.open_csv(
        file,
        read_options=csv.ReadOptions(block_size=block_bytes),
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
    for batch in reader:
        left = batch.slice(min(skipped, batch.num_rows))
        skipped -= batch.num_rows - left.num_rows
        if left.num_rows:
            yield left


FORMS: dict[str, TextForm] = {"jsonl": JsonLines(), "csv": Csv()}


def _concatenated(parts: Iterable[pa.RecordBatch], names: Sequence[str]) -> pa.RecordBatch:
    schema = pa.schema([(name, pa.string()) for name in names])
    table = pa.Table.from_batches(parts, schema).combine_chunks()
    arrays = [
        column.chunk(0) if column.num_chunks else array([], column.type) for column in table.columns
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _csv_column(column: pa.Array) -> pa.Array:
    """A column in the form that the writer of CSV accepts."""
    if _is_odd(column.type):
        return _as_text(column)
    return time_texts(column) if has_far_years(column) else in_known_zone(column)


def _is_odd(kind: pa.DataType) -> bool:
    """Whether CSV has no form for it."""
    return pa.types.is_interval(kind) or not any(is_it(kind) for is_it in _WITH_CSV_FORM)


def _as_text(column: pa.Array) -> pa.Array:
    if is_json(column.type):
        pairs = zip(json_texts(column), json_values(column), strict=True)
        return array([one if isinstance(one, str) else text for text, one in pairs], pa.string())
    return array([_text(value) for value in python_values(column)], pa.string())


def _text(value: Any) -> str | None:  # noqa: ANN401 - a value of a column
    if value is None or isinstance(value, str):
        return value
    text = _encoder.encode(value).decode()
    return text.strip('"') if isinstance(value, bytes) else text


def _printable(column: pa.Array) -> pa.Array:
    """Times in nanoseconds as text: Python's own times would lose digits."""
    fine = pa.types.is_timestamp(column.type) and column.type.unit == "ns"
    return time_texts(column) if fine else column


def plain_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Rows as Python values in the form of JSON, for a few rows that are shown."""
    form = JsonLines()
    return [
        msgspec.json.decode(line)
        for batch in table.to_batches()
        for line in form.body(batch).splitlines()
    ]


def opened_output(
    names: Sequence[str], files: Sequence[InputFile], form: TextForm | None
) -> Dataset:
    """The rows of files; text with every value as its text (see `TextForm.read`).

    Raises:
        InvalidInput: a file is damaged, or has other columns than `names`.
    """
    if form is None:
        return ParquetDataset(files)

    def read(file: InputFile, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        try:
            with contextlib.closing(file.open()) as opened:
                for batch in form.read(opened, names):
                    yield batch.select(list(columns))
        except (ValueError, pa.ArrowException) as error:
            raise InvalidInput(f"{file} cannot be read: {error}.") from error

    rows = [sum(part.num_rows for part in read(file, names)) for file in files]
    schema = pa.schema([(name, pa.string()) for name in names])
    return TextDataset(files, schema, rows, read)
