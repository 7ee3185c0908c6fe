"""Parquet files, a row group at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from domyn_swarm.batch.input_files import InputFile
from domyn_swarm.batch.looking import looked_at
from domyn_swarm.batch.lots import lots, rows_of_a_lot
from domyn_swarm.batch.shard_schemas import as_schema, common_schema
from domyn_swarm.errors import InvalidInput

_EXACT = 1 << 53  # whole numbers up to here are fractions as well


class ParquetDataset:
    """One Parquet file, or several with the same columns (see `common_schema`), in their order."""

    def __init__(self, files: Sequence[InputFile | Path]) -> None:
        """Look at every footer, many side by side.

        Raises:
            InvalidInput: a file cannot be read, or has other columns.
        """
        self._files = files
        found = looked_at(files, _look)
        self._rows = [rows for _, rows, _ in found]
        self.rows = sum(self._rows)
        schemas = [(file, one[0]) for file, one in zip(files, found, strict=True)]
        self.schema = common_schema(schemas)
        large = {name for _, _, names in found for name in names}
        for file, schema in schemas:
            for field in schema:
                if field.name in large and pa.types.is_integer(field.type):
                    self._check_exact(file, field)

    def _check_exact(self, file: InputFile | Path, field: pa.Field) -> None:
        if pa.types.is_floating(self.schema.field(field.name).type):
            raise InvalidInput(
                f"The column {field.name!r} is {field.type} in {file} and fractions in another "
                "file, which have no place for all of its whole numbers.",
                hint="Give only files with one schema, or convert them first.",
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


def _look(file: InputFile | Path) -> tuple[pa.Schema, int, list[str]]:
    """Columns, rows, and which columns of whole numbers may have some that no fraction equals."""
    with _open(file) as opened:
        schema = opened.schema_arrow.remove_metadata()
        large = [
            field.name
            for field in schema
            if pa.types.is_integer(field.type)
            and field.type.bit_width == 64
            and not _is_small(opened.metadata, field.name)
        ]
        return schema, opened.metadata.num_rows, large


def _is_small(metadata: pq.FileMetaData, name: str) -> bool:
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        parts = (group.column(at) for at in range(group.num_columns))
        told = next(part.statistics for part in parts if part.path_in_schema == name)
        if told is None or not told.has_min_max:
            return False
        if not -_EXACT <= told.min <= told.max <= _EXACT:
            return False
    return True


def _read(
    file: InputFile | Path, columns: list[str], start: int, end: int
) -> Iterator[pa.RecordBatch]:
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
