"""CSV, TSV and JSON Lines files, compressed or not.

Opening reads everything once: rows are counted, a bad line is found before the first request, and
types are settled that hold every value, wherever in the files it stands.
"""

from __future__ import annotations

import contextlib
import csv as text_csv
import io
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
import pyarrow as pa
from pyarrow import csv

from domyn_swarm.batch.arrow_types import fit, type_of, unify
from domyn_swarm.batch.dataset import BATCH_ROWS
from domyn_swarm.batch.input_files import InputFile
from domyn_swarm.batch.text_forms import CSV_BLOCK_BYTES
from domyn_swarm.errors import InvalidInput

_CHUNK_BYTES = 1 << 20
_CSV_FAILURE = re.compile(r"In CSV column #(\d+): .*conversion error to ([\w\[\]]+)")

Blocks = Callable[[InputFile], Iterator[pa.RecordBatch]]


class TextDataset:
    """See `batch.dataset.Dataset`."""

    def __init__(
        self, files: Sequence[InputFile], schema: pa.Schema, rows: int, read: Blocks
    ) -> None:
        self.schema = schema
        self.rows = rows
        self._files = files
        self._read = read

    def batches(
        self, columns: Sequence[str] | None = None, *, start: int = 0, limit: int | None = None
    ) -> Iterator[pa.RecordBatch]:
        """See `Dataset.batches`. Rows before `start` are read and left out."""
        end = self.rows if limit is None else min(limit, self.rows)
        first = 0
        for file in self._files:
            if first >= end:
                return
            for block in self._read(file):
                for at in range(max(0, start - first), block.num_rows, BATCH_ROWS):
                    if first + at >= end:
                        return
                    batch = block.slice(at, min(BATCH_ROWS, end - first - at))
                    yield batch if columns is None else batch.select(list(columns))
                first += block.num_rows


# -- CSV -----------------------------------------------------------------------------------------


def open_csv(files: Sequence[InputFile], delimiter: str) -> TextDataset:
    """CSV files with the same columns. A column holds text where it is not numbers throughout.

    Raises:
        InvalidInput: a file cannot be read; it is named.
    """
    named: list[str] = []
    types: dict[str, pa.DataType] = {}
    rows = 0
    for file in files:
        columns = _header(file, delimiter)
        if not columns:
            continue
        if named and columns != named:
            raise InvalidInput(
                f"{file} has other columns than {files[0]}: {', '.join(columns)} instead of "
                f"{', '.join(named)}."
            )
        named = columns
        while (count := _look(file, delimiter, columns, types)) is None:
            pass  # once for each column that had to be widened
        rows += count
    if not named:
        raise _empty(files)
    types = {name: types.get(name, pa.string()) for name in named}
    schema = pa.schema(list(types.items()))
    return TextDataset(files, schema, rows, lambda file: _csv_blocks(file, delimiter, types))


def _header(file: InputFile, delimiter: str) -> list[str]:
    """The names in a file's first line; none where there is no line."""
    with _named(file, "CSV"), file.stream() as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8", errors="replace", newline="")
        names = next(text_csv.reader(text, delimiter=delimiter), [])
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise InvalidInput(
            f"{file} has the column {twice[0]!r} more than once.", hint="Rename one of them."
        )
    return names


def _look(
    file: InputFile, delimiter: str, columns: list[str], types: dict[str, pa.DataType]
) -> int | None:
    """Settle the types of a file's columns and count its rows; None: some had to be widened."""
    rows = 0
    known = dict(types)
    try:
        for block in _csv_blocks(file, delimiter, types):
            known = dict(zip(block.schema.names, block.schema.types, strict=True))
            rows += block.num_rows
    except InvalidInput as error:
        match = _CSV_FAILURE.search(str(error.__cause__))
        if match is None:
            raise
        name = columns[int(match[1])]
        wider = {pa.null(): pa.int64(), pa.int64(): pa.float64()}
        types[name] = wider.get(known.get(name, pa.string()), pa.string())
        return None
    if rows:
        types |= known
    return rows


def _csv_blocks(
    file: InputFile, delimiter: str, types: dict[str, pa.DataType]
) -> Iterator[pa.RecordBatch]:
    with _named(file, "CSV"), file.stream() as stream:
        yield from csv.open_csv(
            stream,
            read_options=csv.ReadOptions(block_size=CSV_BLOCK_BYTES),
            parse_options=csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=csv.ConvertOptions(column_types=types),
        )


# -- JSON Lines ----------------------------------------------------------------------------------


def open_json_lines(files: Sequence[InputFile]) -> TextDataset:
    """Files with one JSON object on each line; a column holds what all its values agree on.

    Whole numbers and fractions become fractions, objects keep the fields of all; what agrees on
    nothing becomes JSON text.

    Raises:
        InvalidInput: a line is no JSON object; file and line are named.
    """
    types: dict[str, pa.DataType] = {}
    rows = 0
    for file in files:
        for objects in _objects(file):
            rows += len(objects)
            for name in dict.fromkeys(key for one in objects for key in one):
                known = types.get(name, pa.null())
                types[name] = unify(known, _common([one.get(name) for one in objects]))
    if not types:
        raise _empty(files)
    schema = pa.schema(list(types.items()))
    return TextDataset(files, schema, rows, lambda file: _json_blocks(file, schema))


def _common(values: list[Any]) -> pa.DataType:
    """The type of all values; Arrow's own look at them is fast, but refuses what does not agree."""
    with contextlib.suppress(pa.ArrowException, OverflowError):
        found = pa.array(values).type
        if found in (pa.null(), pa.bool_(), pa.int64(), pa.float64(), pa.string()):
            return found
    kind = pa.null()
    for value in values:
        kind = unify(kind, type_of(value))
    return kind


def _json_blocks(file: InputFile, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for objects in _objects(file):
        columns = [
            _column([one.get(field.name) for one in objects], field.type) for field in schema
        ]
        yield pa.RecordBatch.from_arrays(columns, schema=schema)


def _column(values: list[Any], kind: pa.DataType) -> pa.Array:
    with contextlib.suppress(pa.ArrowException, OverflowError):
        if kind in (pa.int64(), pa.float64(), pa.bool_(), pa.string()):
            return pa.array(values, kind)
    return pa.array([fit(value, kind) for value in values], kind)


def _objects(file: InputFile) -> Iterator[list[dict[str, Any]]]:
    decode = msgspec.json.Decoder(dict[str, Any]).decode
    for number, lines in numbered_lines(file):
        objects = []
        for at, line in enumerate(lines):
            if not line or line.isspace():
                continue
            try:
                objects.append(decode(line))
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise InvalidInput(
                    f"{file}, line {number + at}, is no JSON object: {error}.",
                    hint='Every line must be one object, such as {"prompt": "..."}.',
                ) from error
        if objects:
            yield objects


# -- lines ---------------------------------------------------------------------------------------


def numbered_lines(file: InputFile) -> Iterator[tuple[int, list[bytes]]]:
    """Lines without their ends, many at a time, each lot with the number of its first, from 1."""
    number, lot, rest = 1, [], b""
    with _named(file, "text"), file.stream() as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            *whole, rest = (rest + chunk).split(b"\n")
            lot += whole
            for at in range(0, len(lot) - BATCH_ROWS, BATCH_ROWS):
                yield number + at, lot[at : at + BATCH_ROWS]
            given = max(0, -(-(len(lot) - BATCH_ROWS) // BATCH_ROWS)) * BATCH_ROWS
            number, lot = number + given, lot[given:]
    yield number, [*lot, *([rest] if rest else [])]


# -- errors --------------------------------------------------------------------------------------


@contextlib.contextmanager
def _named(file: InputFile, kind: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, EOFError) as error:
        told = str(error).strip().splitlines()
        raise InvalidInput(
            f"{file} cannot be read as {kind}: {told[0] if told else type(error).__name__}",
            hint="Check the path and its permissions; mend that line, or convert the file.",
        ) from error


def _empty(files: Sequence[InputFile]) -> InvalidInput:
    return InvalidInput(
        f"{files[0]} is empty: there is nothing that names its columns.",
        hint="Write its rows, or take it out.",
    )
