"""JSON Lines: each row is its own JSON object.

Opening reads everything once: rows are counted, the columns' names collected, and every invalid
line is reported before the first request. A column holds the JSON of each row's own value (see
`column_values`).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePosixPath
from shlex import quote
from typing import Any, TypeVar

import msgspec
import pyarrow as pa

from domyn_swarm.batch.column_values import JSON, json_array
from domyn_swarm.batch.input.dataset import BATCH_ROWS, LOT_BYTES, no_columns
from domyn_swarm.batch.input.file_facts import InputFacts, Look
from domyn_swarm.batch.input.input_files import InputFile
from domyn_swarm.batch.input.reading import Problems
from domyn_swarm.batch.input.text_dataset import (
    NAME_ENCODING,
    TextDataset,
    not_encoded,
    opened_bytes,
    opened_text,
)
from domyn_swarm.errors import InvalidInput

_T = TypeVar("_T")

CheckLine = Callable[[bytes], None]
"""Further requirements of a job on its lines; raises `NotAsAgreed`. Users read its docstring."""


_CHUNK_BYTES = 1 << 20
_LINE_BYTES = 1 << 30
_DEPTH = 200  # many programs do not read deeper nesting

_decode = msgspec.json.Decoder(dict[str, Any]).decode
_split = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class NotAsAgreed(ValueError):
    """A line is an object, but does not meet the job's requirements; the message says how."""


def open_json_lines(
    files: Sequence[InputFile],
    encoding: str = "utf-8",
    check: CheckLine | None = None,
    columns: Sequence[str] = (),
    facts: InputFacts | None = None,
) -> TextDataset:
    """Files with one JSON object on each line. A row without a key that other rows have is null
    there.

    Args:
        files: in the order of their rows.
        encoding: of their text.
        check: further requirements on each line.
        columns: those to read; none: all.
        facts: recorded facts of the files.

    Raises:
        InvalidInput: lines are not JSON objects, or fail `check`; each is named.
    """
    problems = Problems()
    looks = (facts or InputFacts()).looks(
        files, lambda file: _examined(file, encoding, check, problems)
    )
    problems.check()
    names = dict.fromkeys(name for look in looks for name in look.schema.names)
    rows = [look.rows for look in looks]
    if not any(rows):
        raise InvalidInput(
            f"{files[0]} is empty: there is nothing that names its columns.",
            hint="Write its rows, or take it out.",
        )
    row_column = "_row"
    while row_column in names:
        row_column += "_"
    schema = pa.schema([(name, JSON) for name in columns or names])
    read = functools.partial(_blocks, encoding=encoding, row_column=row_column)
    return TextDataset(files, schema, rows, read, row_column)


def _examined(
    file: InputFile,
    encoding: str,
    check: CheckLine | None,
    problems: Problems,
) -> Look:
    """All keys of a file's objects, and the number of objects; errors are added to the problems."""
    names: dict[str, None] = {}
    rows = 0
    for number, line in _numbered(file, encoding):
        if rows == 0 and (found := _not_lines(line)) is not None:
            words, query = found
            name = PurePosixPath(file.path).name
            lines = f"{name.partition('.')[0]}.jsonl"
            if lines == name:  # the shell would empty it before jq reads it
                lines = f"{name.partition('.')[0]}.lines.jsonl"
            problems.add(
                f"{file} {words}, not one object on each line.",
                f"Make lines of it: jq -c '{query}' {quote(str(file))} > {quote(lines)}",
            )
            break
        rows += 1
        try:
            row = _decode(line)
            if line.count(b"[") + line.count(b"{") > _DEPTH:
                _check_depth(row)
            if check is not None:
                check(line)
        except (ValueError, RecursionError) as error:
            if not problems.counted():  # a detailed message takes time
                problems.add(f"{file}, line {number}, {_reason(line, error)}.", _hint(error, check))
        else:
            names.update(dict.fromkeys(row))
    return Look(pa.schema([(name, JSON) for name in names]), rows)


def _not_lines(first: bytes) -> tuple[str, str] | None:
    """For a file that is JSON and not JSON Lines, by its first line: its form, and the `jq` filter
    that converts it; None: it may be JSON Lines.
    """
    if first.lstrip().startswith(b"["):
        return "holds a JSON array", ".[]"
    return ("holds objects of several lines", ".") if first.strip() == b"{" else None


def _numbered(file: InputFile, encoding: str) -> Iterator[tuple[int, bytes]]:
    for first, lines in numbered_lines(file, encoding):
        for number, line in enumerate(lines, first):
            if line and not line.isspace():
                yield number, line


def _check_depth(row: dict[str, Any]) -> None:
    level: list[Any] = [row]
    for _ in range(_DEPTH + 1):
        inner = [one.values() if isinstance(one, dict) else one for one in level]
        level = [one for values in inner for one in values if isinstance(one, dict | list)]
        if not level:
            return
    raise RecursionError


def _blocks(
    file: InputFile, columns: Sequence[str], *, encoding: str, row_column: str
) -> Iterator[pa.RecordBatch]:
    fields = [(name, JSON) for name in columns]
    for _, lines in numbered_lines(file, encoding):
        texts = [line for line in lines if line and not line.isspace()]
        try:
            rows = [_split(text) for text in texts]
        except ValueError as error:
            raise InvalidInput(f"{file} has changed since it was opened: {error}.") from error
        if rows:
            columned = [
                json_array(map(bytes.strip, texts))
                if name == row_column
                else json_array([row.get(name) for row in rows])
                for name in columns
            ]
            yield _batch(columned, fields, len(rows))


def _batch(
    columns: list[pa.Array], fields: list[tuple[str, pa.DataType]], rows: int
) -> pa.RecordBatch:
    if columns:
        return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields))
    return no_columns(rows)


def numbered_lines(file: InputFile, encoding: str = "utf-8") -> Iterator[tuple[int, list[bytes]]]:
    """Lines without their ends, in lots, each with the number of its first line, from 1.

    Raises:
        InvalidInput: the file cannot be read, or a line has more than a gibibyte.
    """
    number, lot, size = 1, list[bytes](), 0
    rest: list[bytes] = []  # of a line whose end is not read yet
    for chunk in _chunks(file, encoding):
        begun, *others = chunk.split(b"\n")
        rest.append(begun)
        if not others:
            _check_length(file, number + len(lot), rest)
            continue
        whole, rest = [b"".join(rest), *others[:-1]], [others[-1]]
        for line in whole:
            lot.append(line)
            size += len(line)
            if size >= LOT_BYTES or len(lot) >= BATCH_ROWS:
                yield number, lot
                number, lot, size = number + len(lot), [], 0
    yield number, [*lot, *([last] if (last := b"".join(rest)) else [])]


def _chunks(file: InputFile, encoding: str) -> Iterator[bytes]:
    """The content of a file as UTF-8."""
    if encoding == "utf-8":
        with opened_bytes(file, encoding, "text") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                yield chunk
        return
    with opened_text(file, encoding, "text") as text:
        try:
            while part := text.read(_CHUNK_BYTES):
                yield part.encode()
        except UnicodeDecodeError as error:
            raise not_encoded(file, error) from error


def _check_length(file: InputFile, number: int, parts: Sequence[bytes]) -> None:
    if len(parts) * _CHUNK_BYTES > _LINE_BYTES:
        raise InvalidInput(
            f"{file}, line {number}, has more than a gibibyte.",
            hint="One row stands on each line; is this JSON Lines?",
        )


# -- errors in a line ----------------------------------------------------------------------------


def _reason(line: bytes, error: Exception) -> str:
    if isinstance(error, RecursionError):
        return f"is nested more than {_DEPTH} deep"
    if isinstance(error, NotAsAgreed):
        return str(error)
    try:
        line.decode()
    except UnicodeDecodeError as other:
        return f"is not UTF-8: byte {other.start + 1} is 0x{line[other.start]:02x}"
    return f"is no JSON object: {_mistake(line, error)}"


def _mistake(line: bytes, error: Exception) -> str:
    """A message that is clearer than the decoder's, if there is one."""
    constants: list[str] = []
    try:
        json.loads(line, parse_constant=constants.append)
    except (ValueError, RecursionError) as other:
        if "4300 digits" in str(other):  # Python's own limit
            return "a whole number has more than 4,300 digits"
        return f"{constants[0]} is no JSON" if constants else str(error)
    if constants:
        return f"{constants[0]} is no number of JSON"
    if "truncated" in str(error) or "surrogate" in str(error):
        return "half of a surrogate pair (\\ud800 to \\udfff alone) is no character"
    return str(error)


def _hint(error: Exception, check: CheckLine | None) -> str:
    if isinstance(error, UnicodeDecodeError):
        return NAME_ENCODING
    if check is not None and check.__doc__:
        return " ".join(check.__doc__.split())
    return 'Every line must be one object, such as {"prompt": "..."}; what is not a number is null.'
