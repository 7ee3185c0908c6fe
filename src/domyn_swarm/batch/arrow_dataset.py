"""Arrow IPC files and streams (`.arrow`, `.feather`), a record batch at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from domyn_swarm.batch.input_facts import InputFacts, Look
from domyn_swarm.batch.input_files import InputFile
from domyn_swarm.batch.lots import lots
from domyn_swarm.batch.shard_schemas import as_schema, common_schema
from domyn_swarm.errors import InvalidInput

_MAGIC = b"ARROW1"  # of files; streams begin with a message


class ArrowDataset:
    """See `batch.dataset.Dataset`."""

    def __init__(self, files: Sequence[InputFile], facts: InputFacts | None = None) -> None:
        """Look at every file that is not known.

        Raises:
            InvalidInput: one cannot be read, or has other columns; it is named.
        """
        self._files = files
        looks = (facts or InputFacts()).looks(files, _look, side_by_side=len(files) > 1)
        self._rows = [look.rows for look in looks]
        self.rows = sum(self._rows)
        schemas = [look.schema for look in looks]
        self.schema = common_schema(list(zip(files, schemas, strict=True)))

    def batches(
        self, columns: Sequence[str] | None = None, *, start: int = 0, limit: int | None = None
    ) -> Iterator[pa.RecordBatch]:
        """See `Dataset.batches`. Files before `start` are not read."""
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
                        yield as_schema(batch, schema)
                    at += block.num_rows
                    if at >= end:
                        return
            first += rows


def _look(file: InputFile) -> Look:
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
        raise InvalidInput(
            f"{file} cannot be read as Arrow: {str(error).splitlines()[0]}",
            hint="Check the path, its permissions, and that the file was written to its end.",
        ) from error
