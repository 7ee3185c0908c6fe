"""Rows that are read as needed: the protocol, and tables, Arrow and Parquet files."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from typing_extensions import override

from domyn_swarm.batch.input.file_facts import (
    InputFacts,
    Look,
    as_schema,
    check_names,
    check_text,
    common_schema,
)
from domyn_swarm.batch.input.input_files import InputFile
from domyn_swarm.batch.times import unknown_zone
from domyn_swarm.errors import InvalidInput

BATCH_ROWS = 2048
LOT_BYTES = 4 << 20
"""Bytes of an input that are processed at once, unless one row is larger."""


def rows_of_a_lot(rows: int, size: int) -> int:
    """The number of rows in a lot, of rows that have `size` bytes in all."""
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
    """A batch of this number of rows without columns."""
    return pa.RecordBatch.from_struct_array(pa.array([{}] * rows, pa.struct([])))


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
    """Refuse columns that the input does not have, and times that nobody can tell.

    Raises:
        InvalidInput: names the missing ones, what may be meant, and those that are there; or one
            whose times are of a zone that is not known.
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
    for field in dataset.schema:
        zone = unknown_zone(field.type) if field.name in columns else None
        if zone is not None:
            raise InvalidInput(
                f"The times in the column {field.name!r} are of the time zone {zone!r}, which "
                "nobody knows here.",
                hint="Give the column a zone such as Europe/Rome or +02:00, or make it text.",
            )


class TableDataset(Dataset):
    """A table; its columns are not copied."""

    def __init__(self, table: pa.Table) -> None:
        """Use the rows as they are.

        Raises:
            InvalidInput: two columns have one name.
        """
        check_names(table.schema, "The input")
        self._table = table
        self.schema = table.schema.remove_metadata()
        self.rows = table.num_rows

    @classmethod
    def of(cls, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> TableDataset:
        """A table from its parts.

        Raises:
            InvalidInput: two columns have one name.
        """
        return cls(pa.Table.from_batches(batches, schema))

    @classmethod
    def without_rows(cls, columns: Iterable[str]) -> TableDataset:
        """No rows, with columns without a type."""
        return cls(pa.schema((name, pa.null()) for name in columns).empty_table())

    @override
    def batches(
        self, columns: Sequence[str] | None = None, *, start: int = 0, limit: int | None = None
    ) -> Iterator[pa.RecordBatch]:
        end = self.rows if limit is None else min(limit, self.rows)
        chosen = self._table if columns is None else self._table.select(list(columns))
        wanted = chosen.slice(start, max(0, end - start)).replace_schema_metadata(None)
        for batch in wanted.to_batches(max_chunksize=BATCH_ROWS):
            check_text(batch, "The input", start)
            start += batch.num_rows
            yield from lots(batch, None, 0, batch.num_rows)


_MAGIC = b"ARROW1"  # of files; streams begin with a message


class ArrowDataset(Dataset):
    """Arrow files, read batch by batch."""

    def __init__(self, files: Sequence[InputFile], facts: InputFacts | None = None) -> None:
        """Read the footers of files without recorded facts.

        Raises:
            InvalidInput: a file cannot be read, or has other columns; it is named.
        """
        self._files = files
        looks = (facts or InputFacts()).looks(files, _arrow_footer, side_by_side=len(files) > 1)
        self._rows = [look.rows for look in looks]
        self.rows = sum(self._rows)
        schemas = [look.schema for look in looks]
        self.schema = common_schema(list(zip(files, schemas, strict=True)))

    @override
    def batches(
        self, columns: Sequence[str] | None = None, *, start: int = 0, limit: int | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Files before `start` are not read."""
        end = self.rows if limit is None else min(limit, self.rows)
        names = self.schema.names if columns is None else list(columns)
        schema = pa.schema([self.schema.field(name) for name in names])
        first = 0
        for file, rows in zip(self._files, self._rows, strict=True):
            if first >= end:
                return
            at = first
            if first + rows > start:
                for block in _blocks(file):
                    for batch in lots(block, names, start - at, end - at):
                        check_text(batch, file, max(at, start))
                        yield as_schema(batch, schema)
                    at += block.num_rows
                    if at >= end:
                        return
            first += rows


def _arrow_footer(file: InputFile) -> Look:
    with _opened(file) as reader:
        rows = sum(block.num_rows for block in _of(reader))
        return Look(reader.schema.remove_metadata(), rows)


def _blocks(file: InputFile) -> Iterator[pa.RecordBatch]:
    with _opened(file) as reader:
        for block in _of(reader):
            yield block.replace_schema_metadata(None)


def _of(reader: Any) -> Iterator[pa.RecordBatch]:  # noqa: ANN401 - of a file or a stream
    if isinstance(reader, pa.ipc.RecordBatchFileReader):
        for at in range(reader.num_record_batches):
            yield reader.get_batch(at)
    else:
        yield from reader


@contextlib.contextmanager
def _opened(file: InputFile) -> Iterator[Any]:
    try:
        mapped = file.system is None
        source = pa.memory_map(file.path) if mapped else pa.PythonFile(file.open(), "r")
        with source:
            is_file = source.read(len(_MAGIC)) == _MAGIC
            source.seek(0)
            with pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source) as reader:
                yield reader
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(file, "Arrow", error) from error


def _unreadable(file: InputFile, kind: str, error: Exception) -> InvalidInput:
    return InvalidInput(
        f"{file} cannot be read as {kind}: {str(error).splitlines()[0]}",
        hint="Check the path, its permissions, and that the file was written to its end.",
    )


class ParquetDataset(Dataset):
    """One Parquet file, or several with the same columns (see `common_schema`), in their order."""

    def __init__(self, files: Sequence[InputFile], facts: InputFacts | None = None) -> None:
        """Read the footers of files without recorded facts, many in parallel.

        Raises:
            InvalidInput: a file cannot be read, or has other columns.
        """
        self._files = files
        looks = (facts or InputFacts()).looks(files, _parquet_footer, side_by_side=len(files) > 1)
        self._rows = [look.rows for look in looks]
        self.rows = sum(self._rows)
        self.schema = common_schema(
            [(file, look.schema) for file, look in zip(files, looks, strict=True)]
        )

    @override
    def batches(
        self, columns: Sequence[str] | None = None, *, start: int = 0, limit: int | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Files and row groups before `start` are not read."""
        end = self.rows if limit is None else min(limit, self.rows)
        selected = self.schema.names if columns is None else list(columns)
        schema = pa.schema([self.schema.field(name) for name in selected])
        first = 0  # ordinal of the next file's first row
        for file, rows in zip(self._files, self._rows, strict=True):
            if first >= end:
                return
            if first + rows > start:
                at = max(0, start - first)  # in the file
                for batch in _read(file, selected, at, end - first):
                    check_text(batch, file, at)
                    yield as_schema(batch, schema)
                    at += batch.num_rows
            first += rows


def _parquet_footer(file: InputFile) -> Look:
    with _opened_parquet(file) as opened:
        schema = opened.schema_arrow.remove_metadata()
        return Look(schema, opened.metadata.num_rows)


def _read(file: InputFile, columns: list[str], start: int, end: int) -> Iterator[pa.RecordBatch]:
    """The rows of one file from `start` up to `end`, in lots."""
    first = 0
    with _opened_parquet(file) as opened:
        metadata = opened.metadata
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            if first >= end:
                return
            if first + group.num_rows > start:
                most = rows_of_a_lot(group.num_rows, group.total_byte_size)
                at = first
                for batch in opened.iter_batches(
                    most, row_groups=[number], columns=columns, use_threads=False
                ):
                    yield from lots(batch.select(columns), None, start - at, end - at)
                    at += batch.num_rows
                    if at >= end:
                        return
            first += group.num_rows


@contextlib.contextmanager
def _opened_parquet(file: InputFile) -> Iterator[pq.ParquetFile]:
    """A file whose pages may turn out to be damaged when they are read, long after its footer."""
    try:
        source = file.open() if file.system else file.path
        # pre_buffer would hold the whole file's column chunks in memory.
        with pq.ParquetFile(source, pre_buffer=False) as opened:
            yield opened
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(file, "Parquet", error) from error
