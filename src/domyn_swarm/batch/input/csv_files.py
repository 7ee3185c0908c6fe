"""CSV and TSV: every cell is text, or has the type that the user chose."""

from __future__ import annotations

import csv
import functools
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from domyn_swarm.batch.input.cell_types import (
    ARROW_TYPES,
    as_array,
    is_beyond_int,
    is_number,
    wrong_cell,
)
from domyn_swarm.batch.input.dataset import BATCH_ROWS, LOT_BYTES, no_columns
from domyn_swarm.batch.input.file_facts import InputFacts, Look
from domyn_swarm.batch.input.input_files import InputFile
from domyn_swarm.batch.input.reading import CellType, InputReading, Problems
from domyn_swarm.batch.input.text_dataset import (
    NAME_ENCODING,
    TextDataset,
    not_encoded,
    opened_text,
)
from domyn_swarm.errors import InvalidInput, quantity

_CELL_BYTES = 1 << 28  # of one cell, so that an unclosed quotation mark does not fill the memory
_DELIMITERS = ",;\t|"
_EXCELS_NOTE = re.compile("sep=(.)", re.IGNORECASE)  # in a first line, of the delimiter
_MEND = (
    'Repair the line: a cell with the delimiter, quotes or line breaks is quoted, "" is one quote.'
)


@dataclass(frozen=True)
class _Form:
    """How the cells of a file are separated."""

    delimiter: str
    quoted: bool
    encoding: str
    chosen: bool  # the user chose the delimiter


def open_csv(
    files: Sequence[InputFile], kind: str, reading: InputReading, facts: InputFacts | None = None
) -> TextDataset:
    """Files with the same columns. In TSV quotation marks are ordinary characters.

    Raises:
        InvalidInput: a file is no such text, has other columns, or cells are not of their types.
    """
    usual = "\t" if kind == "tsv" else ","
    chosen = reading.delimiter is not None
    form = _Form(reading.delimiter or usual, kind != "tsv", reading.encoding, chosen)
    problems = Problems()
    header: list[str] = []
    looks = (facts or InputFacts()).looks(
        files, lambda file: _examined(file, form, reading.types, problems)
    )
    for file, look in zip(files, looks, strict=True):
        found = look.schema.names
        if found and header and found != header:
            named = ", ".join(header)
            problems.add(
                f"{file} has other columns than {files[0]}: {', '.join(found)} instead of {named}.",
                "Give only files with the same columns.",
            )
        header = header or found
    problems.check()
    if not header:
        raise InvalidInput(
            f"{files[0]} is empty: there is nothing that names its columns.",
            hint="Write its rows, or take it out.",
        )
    missing = [name for name in reading.types if name not in header]
    if missing:
        raise InvalidInput(
            f"The input has no column {', '.join(map(repr, missing))} (--types).",
            hint=f"It has: {', '.join(header)}.",
        )
    kinds = {name: reading.types.get(name, "text") for name in header}
    schema = pa.schema([(name, ARROW_TYPES[kind]) for name, kind in kinds.items()])
    rows = [look.rows for look in looks]
    return TextDataset(files, schema, rows, functools.partial(_blocks, form=form, kinds=kinds))


# -- rows ----------------------------------------------------------------------------------------


def _reader(text: io.TextIOBase, form: _Form) -> Iterator[list[str]]:
    csv.field_size_limit(_CELL_BYTES)  # of the whole process: there is no other
    if form.quoted:
        return csv.reader(text, delimiter=form.delimiter, strict=True)
    return csv.reader(text, delimiter=form.delimiter, quoting=csv.QUOTE_NONE, strict=True)


def _blocks(
    file: InputFile, columns: Sequence[str], *, form: _Form, kinds: dict[str, CellType]
) -> Iterator[pa.RecordBatch]:
    at = [list(kinds).index(name) for name in columns]
    schema = pa.schema([(name, ARROW_TYPES[kinds[name]]) for name in columns])
    for rows in _lots(file, form):
        try:
            cells = list(zip(*rows, strict=True))
            arrays = [
                as_array(cells[one], kinds[name]) for one, name in zip(at, columns, strict=True)
            ]
        except (ValueError, IndexError) as error:
            raise InvalidInput(f"{file} has changed since it was opened: {error}.") from error
        if arrays:
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)
        else:
            yield no_columns(len(rows))


def _lots(file: InputFile, form: _Form) -> Iterator[list[list[str]]]:
    """The rows below the header, lot by lot."""
    with opened_text(file, form.encoding, "CSV") as text:
        lot, size, header = list[list[str]](), 0, True
        try:
            for row in _reader(text, form):
                if not row:
                    continue
                if header:
                    header = False
                    continue
                lot.append(row)
                size += sum(map(len, row))
                if len(lot) >= BATCH_ROWS or size >= LOT_BYTES:
                    yield lot
                    lot, size = [], 0
        except csv.Error as error:
            raise InvalidInput(f"{file} has changed since it was opened: {error}.") from error
        except UnicodeDecodeError as error:
            raise not_encoded(file, error) from error
        if lot:
            yield lot


# -- errors in a file ----------------------------------------------------------------------------


def _examined(file: InputFile, form: _Form, types: dict[str, CellType], problems: Problems) -> Look:
    """The names in the first line that is not blank, and the number of rows below it."""
    look = _Examination(file, form, types)
    try:
        header, rows = look.run("strict")
    except UnicodeDecodeError as error:
        look = _Examination(file, form, types)
        try:  # a second reading that reports all affected cells
            header, rows = look.run("surrogateescape")
        except UnicodeDecodeError:  # an encoding whose invalid bytes cannot be located
            raise not_encoded(file, error) from error
    problems.take(look.problems)
    names = [name.encode("utf-8", "replace").decode() for name in header]
    return Look(pa.schema([(name, pa.string()) for name in names]), rows)


class _Examination:
    """One examination of one file."""

    def __init__(self, file: InputFile, form: _Form, types: dict[str, CellType]) -> None:
        self.problems = Problems()
        self._file = file
        self._form = form
        self._types = types
        self._header: list[str] = []
        self._typed: list[tuple[int, str, CellType]] = []

    def run(self, errors: str) -> tuple[list[str], int]:
        """Read header and rows; errors are added to the problems.

        Raises:
            UnicodeDecodeError: the text is in another encoding, and errors are strict.
        """
        rows = last = 0
        with opened_text(self._file, self._form.encoding, "CSV", errors) as text:
            reader = _reader(text, self._form)
            while True:
                try:
                    row = next(reader)
                except StopIteration:
                    return self._header, rows
                except csv.Error as error:
                    if self._failed(last + 1, str(error)):
                        return self._header, rows
                else:
                    if row and not self._header:
                        if not self._begin(row, last + 1):
                            return self._header, rows
                    elif row:
                        rows += 1
                        if len(row) != len(self._header) or self._typed or errors != "strict":
                            self._judge(row, last + 1)
                last = reader.line_num  # type: ignore[attr-defined]

    def _add(self, line: int, problem: str, hint: str = _MEND) -> None:
        self.problems.add(f"{self._file}, line {line}: {problem}.", hint)

    def _failed(self, line: int, reason: str) -> bool:
        """Report the reader's error for the row that begins in a line; returns whether reading ends
        there.
        """
        if "unexpected end" in reason:
            self._add(line, "a quotation mark that is opened in this row is never closed")
        elif "field larger" in reason:
            what = f"a cell has more than {_CELL_BYTES >> 20} MB; is a quotation mark not closed?"
            self._add(line, what)
            return True
        else:
            self._add(line, "behind a closing quotation mark there is neither delimiter nor end")
        return "unexpected end" in reason

    def _begin(self, names: list[str], line: int) -> bool:
        """Check the columns' names; returns whether the rows below can be checked against them."""
        self._header = names
        self._typed = [(at, n, self._types[n]) for at, n in enumerate(names) if n in self._types]
        if any("\0" in name for name in names):
            self._add(line, "the columns' names hold NUL bytes: is it UTF-16?", NAME_ENCODING)
            return False
        note = _EXCELS_NOTE.fullmatch(self._form.delimiter.join(names))
        if note:
            given = "tab" if note[1] == "\t" else note[1]
            self._add(
                line,
                f"'sep={given}' is a note for Excel, and names no columns",
                f"Remove that line and say so: --delimiter '{given}'.",
            )
            return False
        twice = [name for name, times in Counter(names).items() if times > 1 and name]
        if twice:
            self._add(
                line, f"the file has the column {twice[0]!r} more than once", "Rename one of them."
            )
        if "" in names:
            self._add(line, f"column {names.index('') + 1} has no name", "Give each column a name.")
        self._judge(names, line)
        usual = self._form.delimiter
        others = (one for one in _DELIMITERS if one != usual and one in names[0])
        other = next(others, None)
        if len(names) == 1 and other and not self._form.chosen:
            given = "tab" if other == "\t" else other
            self._add(
                line,
                f"there is one column, {names[0]!r}: {other!r} seems to be the delimiter",
                f"Say so: --delimiter '{given}'; or that it is not: "
                f"--delimiter '{'tab' if usual == chr(9) else usual}'.",
            )
        return True

    def _judge(self, row: list[str], line: int) -> None:
        if len(row) != len(self._header):
            self._add(
                line,
                f"the row has {quantity(len(row), 'cell')}, and there "
                f"{'is' if len(self._header) == 1 else 'are'} "
                f"{quantity(len(self._header), 'column')}",
            )
            return
        for name, cell in zip(self._header, row, strict=True):
            bad = next((one for one in cell if "\ud800" <= one <= "\udfff"), None)
            if bad is not None:
                byte = ord(bad) - 0xDC00
                column = name.encode("utf-8", "replace").decode()
                what = f"the column {column!r} is not {self._form.encoding}: byte 0x{byte:02x}"
                self._add(line, what.replace("utf-8", "UTF-8"), NAME_ENCODING)
        for at, name, kind in self._typed:
            if row is not self._header and wrong_cell(row[at], kind):
                why = f"is no {kind}"
                if kind == "int" and is_beyond_int(row[at]):
                    why = "has more than the 64 bits of an int"
                elif kind == "float" and is_number(row[at]):
                    why = "is beyond what a float holds, 10^308"
                self._add(
                    line,
                    f"the column {name!r} holds {row[at]!r:.80}, which {why}",
                    "Correct the cell, or leave the column out of --types: then it is text.",
                )
