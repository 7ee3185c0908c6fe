"""Inputs, read as they are needed: Parquet, CSV or JSON Lines, a record batch at a time."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

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

    def __init__(self, files: Sequence[Path]) -> None:
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


def _open(file: Path) -> pq.ParquetFile:
    try:
        # pre_buffer would hold the whole file's column chunks in memory.
        return pq.ParquetFile(file, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise InvalidInput(
            f"{file} cannot be read as Parquet: {str(error).splitlines()[0]}",
            hint="Check the path, its permissions, and that the file was written to its end.",
        ) from error


class TextDataset:
    """CSV or JSON Lines files with the same columns; types are settled by each file's first block.

    Opening reads everything once, so that a bad line is found before the first request.
    """

    def __init__(self, files: Sequence[Path], suffix: str) -> None:
        self._files = files
        self._suffix = suffix
        self.rows = 0
        self.schema = pa.schema([])
        for file in files:
            for batch in self._read(file):
                if not self.schema.names:
                    self.schema = batch.schema
                elif batch.schema != self.schema:
                    raise InvalidInput(f"{file} has other columns or types than {files[0]}.")
                self.rows += batch.num_rows

    def _read(self, file: Path) -> Iterator[pa.RecordBatch]:
        try:
            if self._suffix == ".csv":
                from pyarrow import csv

                yield from csv.open_csv(file)
            else:
                from pyarrow import json

                yield from json.open_json(file)
        except (pa.ArrowException, OSError) as error:
            raise InvalidInput(
                f"{file} cannot be read as {self._suffix}: {str(error).splitlines()[0]}",
                hint="Mend that line, or convert the file to Parquet.",
            ) from error

    def batches(
        self, columns: Sequence[str] | None = None, *, start: int = 0, limit: int | None = None
    ) -> Iterator[pa.RecordBatch]:
        """See `Dataset.batches`. Rows before `start` are read and left out."""
        end = self.rows if limit is None else min(limit, self.rows)
        first = 0
        for file in self._files:
            for block in self._read(file):
                for at in range(max(0, start - first), block.num_rows, BATCH_ROWS):
                    if first + at >= end:
                        return
                    batch = block.slice(at, min(BATCH_ROWS, end - first - at))
                    yield batch if columns is None else batch.select(list(columns))
                first += block.num_rows


_SUFFIXES = (".parquet", ".csv", ".jsonl")


def open_dataset(source: str) -> Dataset:
    """Open an input.

    Raises:
        InvalidInput: nothing is there, or it cannot be read.
    """
    files = _files_of(source)
    suffixes = {file.suffix for file in files}
    suffix = suffixes.pop() if len(suffixes) == 1 else ""
    if suffix not in _SUFFIXES:
        raise InvalidInput(
            f"{source}: inputs are files of one kind: {', '.join(_SUFFIXES)}.",
            hint="Convert it, or name its files by their kind.",
        )
    return ParquetDataset(files) if suffix == ".parquet" else TextDataset(files, suffix)


def _files_of(source: str) -> list[Path]:
    path = Path(source)
    if path.is_dir():
        files = sorted(one for one in path.iterdir() if one.suffix in _SUFFIXES)
    elif path.exists():
        files = [path]
    else:
        files = sorted(Path(name) for name in glob.glob(source, recursive=True))  # noqa: PTH207 - absolute patterns
    if not files:
        raise InvalidInput(
            f"There is no input at {source}.",
            hint=f"Give a file ({', '.join(_SUFFIXES)}), a folder of them, or a quoted glob.",
        )
    return files


def check_columns(dataset: Dataset, columns: Sequence[str], what: str) -> None:
    """Refuse columns that the input does not have.

    Raises:
        InvalidInput: names the missing ones and those that are there.
    """
    missing = [name for name in columns if name not in dataset.schema.names]
    if missing:
        raise InvalidInput(
            f"The input has no column {', '.join(map(repr, missing))} ({what}).",
            hint=f"It has: {', '.join(dataset.schema.names)}.",
        )


def check_ids(dataset: Dataset, column: str, *, limit: int | None) -> None:
    """Refuse null and duplicate ids; memory: 8 bytes a row.

    Raises:
        InvalidInput: names the row or the id.
    """
    hashes = []
    start = 0
    for batch in dataset.batches([column], limit=limit):
        values = batch.column(0)
        if values.null_count:
            row = start + values.is_null().to_pylist().index(True)
            raise InvalidInput(
                f"The id in column {column!r} is null in row {row}.",
                hint="Every row needs an id; leave --id-column out to use positions.",
            )
        hashes.append(np.fromiter(map(hash, values.to_pylist()), np.int64, batch.num_rows))
        start += batch.num_rows
    if not hashes:
        return
    ordered = np.sort(np.concatenate(hashes))
    suspects = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    if suspects:
        _refuse_duplicates(dataset, column, suspects, limit)


def _refuse_duplicates(
    dataset: Dataset, column: str, suspects: set[int], limit: int | None
) -> None:
    """Tell ids that are equal from ids whose hashes merely are."""
    seen: dict[object, int] = {}
    row = 0
    for batch in dataset.batches([column], limit=limit):
        for value in batch.column(0).to_pylist():
            if hash(value) in suspects:
                if value in seen:
                    raise InvalidInput(
                        f"The id {value!r} in column {column!r} stands in row {seen[value]} "
                        f"and in row {row}.",
                        hint="Ids must be unique; leave --id-column out to use positions.",
                    )
                seen[value] = row
            row += 1
