"""Parquet files, a row group at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from domyn_swarm.batch.input_facts import InputFacts, Look
from domyn_swarm.batch.input_files import InputFile
from domyn_swarm.batch.lots import lots, rows_of_a_lot
from domyn_swarm.batch.shard_schemas import as_schema, common_schema
from domyn_swarm.errors import InvalidInput


class ParquetDataset:
    """One Parquet file, or several with the same columns (see `common_schema`), in their order."""

    def __init__(self, files: Sequence[InputFile], facts: InputFacts | None = None) -> None:
        """Look at the footers that are not known, many side by side.

        Raises:
            InvalidInput: a file cannot be read, or has other columns.
        """
        self._files = files
        looks = (facts or InputFacts()).looks(files, _look, side_by_side=len(files) > 1)
        self._rows = [look.rows for look in looks]
        self.rows = sum(self._rows)
        self.schema = common_schema(
            [(file, look.schema) for file, look in zip(files, looks, strict=True)]
        )

    def batches(
        self, columns: Sequence[str] | None = None, *, start: int = 0, limit: int | None = None
    ) -> Iterator[pa.RecordBatch]:
        """See `Dataset.batches`. Files and row groups before `start` are not read."""
        end = self.rows if limit is None else min(limit, self.rows)
        selected = self.schema.names if columns is None else list(columns)
        schema = pa.schema([self.schema.field(name) for name in selected])
        first = 0  # ordinal of the next file's first row
        for file, rows in zip(self._files, self._rows, strict=True):
            if first >= end:
                return
            if first + rows > start:
                for batch in _read(file, selected, start - first, end - first):
                    yield as_schema(batch, schema)
            first += rows


def _look(file: InputFile) -> Look:
    with _open(file) as opened:
        schema = opened.schema_arrow.remove_metadata()
        return Look(schema, opened.metadata.num_rows)


def _read(file: InputFile, columns: list[str], start: int, end: int) -> Iterator[pa.RecordBatch]:
    """The rows of one file from `start` up to `end`, in lots."""
    first = 0
    with _open(file) as opened:
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


def _open(file: InputFile) -> pq.ParquetFile:
    try:
        source = file.open() if file.system else file.path
        # pre_buffer would hold the whole file's column chunks in memory.
        return pq.ParquetFile(source, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise InvalidInput(
            f"{file} cannot be read as Parquet: {str(error).splitlines()[0]}",
            hint="Check the path, its permissions, and that the file was written to its end.",
        ) from error
