"""Files of rows in a folder, from batches of any size, in the form of the output."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import pyarrow as pa
import pyarrow.parquet as pq
from typing_extensions import override

from domyn_swarm.batch.column_values import as_text, without_json
from domyn_swarm.batch.output.manifest import OutputFile, modified_at
from domyn_swarm.batch.output.text_forms import TextForm
from domyn_swarm.errors import InvalidInput

_GROUP_ROWS = 64 * 1024
_GROUP_BYTES = 16 * 1024 * 1024  # the size in memory at which it is written


class FileSink(Protocol):
    """One file that is being written."""

    def write(self, rows: pa.Table) -> None:
        """Append rows, at least one."""

    def close(self) -> None:
        """Write the rest and close the file."""

    def abandon(self) -> None:
        """Close the file, which is incomplete and will be removed."""


OpenSink = Callable[[Path, pa.Schema], FileSink]
WriteFile = Callable[[pa.Table, Path], None]


class ParquetSink(FileSink):
    """Parquet with full row groups; includes the schema's metadata."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")

    @override
    def write(self, rows: pa.Table) -> None:
        self._writer.write_table(rows, row_group_size=_GROUP_ROWS)

    @override
    def close(self) -> None:
        self._writer.close()

    @override
    def abandon(self) -> None:
        self._writer.close()


class TextSink(FileSink):
    """JSON Lines or CSV."""

    def __init__(self, form: TextForm, path: Path, schema: pa.Schema) -> None:
        self._form = form
        self._file = path.open("wb")
        self._file.write(form.head(schema))

    @override
    def write(self, rows: pa.Table) -> None:
        for batch in rows.to_batches():
            self._file.write(self._form.body(batch))

    @override
    def close(self) -> None:
        self._file.close()

    @override
    def abandon(self) -> None:
        self._file.close()


class LibrarySink(FileSink):
    """A file that a library writes from a frame, which is in memory as a whole."""

    def __init__(self, write: WriteFile, path: Path, schema: pa.Schema) -> None:
        self._write = write
        self._path = path
        self._schema = without_json(schema)
        self._parts: list[pa.RecordBatch] = []

    @override
    def write(self, rows: pa.Table) -> None:
        self._parts += [as_text(batch) for batch in rows.to_batches()]

    @override
    def close(self) -> None:
        parts, self._parts = self._parts, []
        self._write(pa.Table.from_batches(parts, self._schema), self._path)
        if not self._path.is_file():
            raise InvalidInput(
                "--backend-write-kwargs: that library then writes no single file.",
                hint="Leave out what makes it write a folder; --shard-output makes one.",
            )

    @override
    def abandon(self) -> None:
        self._parts.clear()


class PartWriter:
    """Files in a folder, at least one; at most a row group is held in memory."""

    def __init__(
        self,
        folder: Path,
        schema: pa.Schema,
        name_of: Callable[[int], str],
        file_rows: int | None = None,
        open_sink: OpenSink = ParquetSink,
    ) -> None:
        """Write `name_of(0)`, `name_of(1)`, … of `file_rows` rows each; None: one file."""
        self.files: list[OutputFile] = []
        self.schema = schema
        self._folder = folder
        self._name_of = name_of
        self._most_rows = file_rows
        self._open_sink = open_sink
        self._sink: FileSink | None = None
        self._written = 0  # rows in the open file
        self._buffer: list[pa.RecordBatch] = []
        self._buffered_rows = self._buffered_bytes = 0

    def write(self, batch: pa.RecordBatch) -> None:
        """Append rows of the writer's schema."""
        while batch.num_rows:
            room = _GROUP_ROWS - self._buffered_rows
            if self._most_rows is not None:
                room = min(room, self._most_rows - self._written - self._buffered_rows)
            piece, batch = batch.slice(0, room), batch.slice(room)
            self._buffer.append(piece)
            self._buffered_rows += piece.num_rows
            self._buffered_bytes += piece.nbytes
            if self._buffered_rows >= _GROUP_ROWS or self._buffered_bytes >= _GROUP_BYTES:
                self._flush()
            if self._written + self._buffered_rows == self._most_rows:
                self._close_file()

    def finish(self) -> list[OutputFile]:
        """Write the rest; returns the files, in order."""
        if self._buffer or self._sink is not None or not self.files:
            self._close_file()
        return self.files

    def _open(self) -> FileSink:
        if self._sink is None:
            path = self._folder / self._name_of(len(self.files))
            self._sink = self._open_sink(path, self.schema)
        return self._sink

    def _flush(self) -> None:
        self._open().write(pa.Table.from_batches(self._buffer, self.schema))
        self._written += self._buffered_rows
        self._buffer, self._buffered_rows, self._buffered_bytes = [], 0, 0

    def _close_file(self) -> None:
        if self._buffer:
            self._flush()
        self._open().close()
        self._sink = None
        path = self._folder / self._name_of(len(self.files))
        with path.open("rb") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self.files.append(
            OutputFile(
                name=path.name,
                rows=self._written,
                bytes=path.stat().st_size,
                sha256=digest,
                modified_at=modified_at(path),
            )
        )
        self._written = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._sink is not None:  # abandoned: the folder is removed anyway
            with contextlib.suppress(OSError):
                self._sink.abandon()
