"""Files of an output: written in a folder beside it, then moved into place whole.

One file is replaced by one rename. A folder of shards is swapped by two, the old one being put
aside in between: a crash right there leaves the old output beside its place and the next run puts
it back. Nothing that this job did not write is ever replaced or removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq

from domyn_swarm.batch.manifest import MANIFEST_NAME, OutputFile, manifest_path, read_manifest
from domyn_swarm.errors import JobError, OutputExists

SHARD_ROWS = 250_000
"""Rows in each shard of `--shard-output`; the last one has what is left."""

IDENTITY_KEY = b"domyn_swarm.identity"
_GROUP_ROWS = 64 * 1024
_GROUP_BYTES = 16 * 1024 * 1024  # what is held in memory before it becomes a row group
_SHARD_NAME = re.compile(r"^part-\d{5,}\.parquet$")


def shard_name(number: int) -> str:
    """The name of a shard; names sort as their rows do."""
    return f"part-{number:05d}.parquet"


class PartWriter:
    """Parquet files in a folder from batches of any size: full row groups, at least one file."""

    def __init__(
        self,
        folder: Path,
        schema: pa.Schema,
        name_of: Callable[[int], str],
        file_rows: int | None = None,
    ) -> None:
        """Write `name_of(0)`, `name_of(1)`, … of `file_rows` rows each; None: one file."""
        self.files: list[OutputFile] = []
        self.schema = schema
        self._folder = folder
        self._name_of = name_of
        self._most_rows = file_rows
        self._writer: pq.ParquetWriter | None = None
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
        """Write what is left; what was written, in order."""
        if self._buffer or self._writer is not None or not self.files:
            self._close_file()
        return self.files

    def _open(self) -> pq.ParquetWriter:
        if self._writer is None:
            path = self._folder / self._name_of(len(self.files))
            self._writer = pq.ParquetWriter(path, self.schema, compression="zstd")
        return self._writer

    def _flush(self) -> None:
        table = pa.Table.from_batches(self._buffer, self.schema)
        self._open().write_table(table, row_group_size=_GROUP_ROWS)
        self._written += self._buffered_rows
        self._buffer, self._buffered_rows, self._buffered_bytes = [], 0, 0

    def _close_file(self) -> None:
        if self._buffer:
            self._flush()
        self._open().close()
        self._writer = None
        path = self._folder / self._name_of(len(self.files))
        with path.open("rb") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = path.stat().st_size
        self.files.append(OutputFile(name=path.name, rows=self._written, bytes=size, sha256=digest))
        self._written = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._writer is not None:  # given up half-way: the folder goes anyway
            with contextlib.suppress(OSError):
                self._writer.close()


@dataclass(frozen=True)
class OutputPlace:
    """Where an output of one job identity goes: one file, or a folder of shards."""

    path: Path
    sharded: bool
    identity: str

    @property
    def manifest(self) -> Path:
        """Where its manifest lies."""
        return manifest_path(self.path, sharded=self.sharded)

    def check(self) -> None:
        """Refuse to replace anything that this job did not write.

        Raises:
            OutputExists: names what stands in the way.
        """
        found = self._foreign_shard() if self.sharded else self._foreign_file()
        if found is not None:
            raise OutputExists(
                f"{found} exists and is not this job's output.",
                hint="Move it away or choose another --output.",
            )

    def _foreign_file(self) -> Path | None:
        if self.path.exists() and written_identity(self.path) != self.identity:
            return self.path
        if self.manifest.exists() and read_manifest(self.manifest) is None:
            return self.manifest
        return None

    def _foreign_shard(self) -> Path | None:
        if not self.path.is_dir():
            return self.path if self.path.exists() else None
        return next((one for one in sorted(self.path.iterdir()) if not self._wrote(one)), None)

    def _wrote(self, path: Path) -> bool:
        if path.name == MANIFEST_NAME:
            manifest = read_manifest(path)
            return manifest is not None and manifest.job.identity == self.identity
        return bool(_SHARD_NAME.match(path.name)) and written_identity(path) == self.identity

    @contextlib.contextmanager
    def stage(self) -> Iterator[Path]:
        """A fresh folder beside the output to write its files in; gone afterwards.

        What a killed run of this job left is mended first.
        """
        parent, mine = self.path.parent, self._aside.name.removesuffix(".replaced")
        parent.mkdir(parents=True, exist_ok=True)
        for left in parent.iterdir():
            # No other driver of this identity is at work: the lease of its checkpoint says so.
            if left.name.startswith(f"{mine}.") and left.name.endswith(".partial"):
                shutil.rmtree(left)
        if self._aside.exists() and not self.path.exists():
            self._aside.rename(self.path)
        stage = parent / f"{mine}.{os.getpid()}.partial"
        stage.mkdir()
        try:
            yield stage
        finally:
            shutil.rmtree(stage, ignore_errors=True)

    @property
    def _aside(self) -> Path:
        """Where the old shards are for as long as it takes to rename the new ones."""
        return self.path.with_name(f".{self.path.name}.{self.identity}.replaced")

    def put(self, stage: Path) -> None:
        """Move what was written in the stage into place, the manifest last.

        Raises:
            OutputExists: something foreign has come to lie there meanwhile.
        """
        self.check()
        sync_folder(stage)
        if self.sharded:
            self._swap(stage)
        else:
            (stage / self.path.name).replace(self.path)
            (stage / self.manifest.name).replace(self.manifest)
        sync_folder(self.path.parent)

    def _swap(self, stage: Path) -> None:
        if not self.path.exists():
            stage.rename(self.path)
            return
        if self._aside.exists():  # a run was killed while it removed the shards it had replaced
            shutil.rmtree(self._aside)
        self.path.rename(self._aside)
        try:
            stage.rename(self.path)
        except BaseException:
            self._aside.rename(self.path)
            raise
        shutil.rmtree(self._aside)


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A file beside `path` that takes its place at the end, or is gone when there was an error.

    Raises:
        JobError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise JobError(f"Cannot write {path}: {error.strerror or error}.") from error
    finally:
        temporary.unlink(missing_ok=True)


def written_identity(path: Path) -> str | None:
    """The identity of the job that wrote a Parquet file; None when it is none of ours."""
    try:
        metadata = pq.read_metadata(path).metadata or {}
    except (pa.ArrowException, OSError):
        return None
    found = metadata.get(IDENTITY_KEY)
    return None if found is None else found.decode()


def write_synced(path: Path, text: str) -> None:
    """Write a file and have it survive a loss of power."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Have the names in a folder survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
