"""Writes rows of a one-time stream to disk, so that they can be read again."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from domyn_swarm.batch.durable_files import written_whole

_GROUP_BYTES = 16 << 20  # memory used for writing


def spooled(schema: pa.Schema, batches: Iterable[pa.RecordBatch], path: Path) -> Path:
    """Write rows to a Parquet file as they arrive, whole or not at all; memory stays constant.

    Raises:
        InvalidInput: the rows cannot be read.
        JobError: they cannot be written.
    """
    with written_whole(path) as temporary:
        _write(schema, batches, temporary)
    return path


def _write(schema: pa.Schema, batches: Iterable[pa.RecordBatch], path: Path) -> None:
    waiting: list[pa.RecordBatch] = []
    size = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in batches:
            waiting.append(batch)
            size += batch.nbytes
            if size >= _GROUP_BYTES:
                writer.write_table(pa.Table.from_batches(waiting, schema))
                waiting, size = [], 0
        if waiting:
            writer.write_table(pa.Table.from_batches(waiting, schema))
