"""The ends of a run in this process: what a frame becomes, and what answers become."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from domyn_swarm.batch.dataset import Dataset, ParquetDataset, open_dataset
from domyn_swarm.batch.spool import spooled
from domyn_swarm.batch.table_dataset import TableDataset
from domyn_swarm.data.base import DataBackend
from domyn_swarm.data.registry import backend_named, backend_of

if TYPE_CHECKING:
    import pyarrow as pa

_RESULTS = "results.parquet"  # of a lazy frame, in the job's checkpoint


@dataclass(frozen=True)
class FrameEnds:
    """Rows in, and how results become what the caller gets."""

    name: str
    dataset: Dataset
    build: Callable[[pa.Schema, Iterator[pa.RecordBatch], Path | None], Any]
    """A frame of the results; a lazy one reads them from the folder, where there is one."""


@contextlib.contextmanager
def ends_of(data: Any, limit: int | None) -> Iterator[FrameEnds]:  # noqa: ANN401 - a frame or a path
    """A frame of any supported kind; files at a path come back as an Arrow table.

    Args:
        data: the frame or path.
        limit: no more rows than these are wanted of it.

    Raises:
        ConfigError: it is neither.
        InvalidInput: a column's type, or the files, cannot be read.
    """
    if isinstance(data, str | Path):
        arrow = backend_named("arrow")
        dataset = open_dataset(str(data))
        yield FrameEnds(str(data), dataset, lambda schema, rows, _: arrow.build(schema, rows))
        return
    backend: DataBackend[Any] = backend_of(data)
    frame = data if limit is None else backend.part(data, None, 0, limit)

    def build(schema: pa.Schema, batches: Iterator[pa.RecordBatch], folder: Path | None) -> Any:  # noqa: ANN401 - a frame
        if backend.lazy and folder is not None:
            results = spooled(schema, batches, folder / _RESULTS)
            return backend.read([str(results)], "parquet", {})
        return backend.build(schema, batches, frame)

    schema = backend.schema(frame)
    with contextlib.ExitStack() as stack:
        rows: Dataset
        if backend.lazy:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="domyn-swarm-"))
            spool = spooled(schema, backend.batches(frame), Path(folder) / "rows.parquet")
            rows = ParquetDataset([spool])
        else:
            rows = TableDataset.of(schema, backend.batches(frame))
        yield FrameEnds(f"<{backend.name}>", rows, build)
