"""Rows that are read as they are needed, a record batch at a time; and Parquet files of them."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from domyn_swarm.batch.input_files import InputFile
from domyn_swarm.errors import InvalidInput

BATCH_ROWS = 2048


class Dataset(Protocol):
    """Rows in a fixed order that can be read more than once."""

    schema: pa.Schema
    rows: int

    def batches(
        self, columns: Sequence[str] | None = None, *, start: int = 0, limit: int | None = None
    ) -> Iterator[pa.RecordBatch]:
        """The rows from `start` up to `limit`, in order, at most `BATCH_ROWS` at a time; the named
        columns, or all.
        """


class ParquetDataset:
    """One Parquet file, or several with the same columns in the order of their names."""

    def __init__(self, files: Sequence[InputFile | Path]) -> None:
        self._files = files
        self.rows = 0
        self.schema = pa.schema([])
        for file in files:
            with _open(file) as opened:
                self.rows += opened.metadata.num_rows
                found = opened.schema_arrow.remove_metadata()
            if file is files[0]:
                self.schema = found
            elif not found.equals(self.schema):
                raise InvalidInput(
                    f"{file} has other columns or types than {files[0]}.",
                    hint="Give only files with one schema, or convert them first.",
                )

    def batches(
        self, columns: Sequence[str] | None = None, *, start: int = 0, limit: int | None = None
    ) -> Iterator[pa.RecordBatch]:
        """See `Dataset.batches`. Row groups before `start` are not read."""
        end = self.rows if limit is None else min(limit, self.rows)
        selected = None if columns is None else list(columns)
        first = 0  # ordinal of the next row group's first row
        for file in self._files:
            if first >= end:
                return
            with _open(file) as opened:
                skipped, groups = _groups_from(opened.metadata, start - first)
                first += skipped
                for batch in opened.iter_batches(
                    BATCH_ROWS, row_groups=groups, columns=selected, use_threads=False
                ):
                    wanted = batch.slice(max(0, start - first), max(0, end - max(first, start)))
                    first += batch.num_rows
                    if wanted.num_rows:
                        yield wanted
                    if first >= end:
                        return


def _groups_from(metadata: pq.FileMetaData, row: int) -> tuple[int, list[int]]:
    """The row groups of a file from that of `row` on, and how many rows lie before them."""
    before = 0
    for group in range(metadata.num_row_groups):
        size = metadata.row_group(group).num_rows
        if before + size > row:
            return before, list(range(group, metadata.num_row_groups))
        before += size
    return before, []


def _open(file: InputFile | Path) -> pq.ParquetFile:
    try:
        source = file.open() if isinstance(file, InputFile) and file.system else str(file)
        # pre_buffer would hold the whole file's column chunks in memory.
        return pq.ParquetFile(source, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise InvalidInput(
            f"{file} cannot be read as Parquet: {str(error).splitlines()[0]}",
            hint="Check the path, its permissions, and that the file was written to its end.",
        ) from error


def check_columns(dataset: Dataset, columns: Sequence[str], what: str) -> None:
    """Refuse columns that the input does not have.

    Raises:
        InvalidInput: names the missing ones, what may be meant, and those that are there.
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
