"""The ends of a run in this process: what a frame becomes, and what answers become."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from domyn_swarm.batch.dataset import BATCH_ROWS, Dataset, TableDataset, open_dataset
from domyn_swarm.data.registry import backend_named, backend_of

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class FrameEnds:
    """Rows in, and how results become what the caller gets."""

    name: str
    dataset: Dataset
    build: Callable[[pa.Schema, Iterator[pa.RecordBatch]], Any]


@contextlib.contextmanager
def ends_of(data: Any, scratch: Path) -> Iterator[FrameEnds]:  # noqa: ANN401 - a frame or a path
    """A frame of any supported kind; files at a path come back as an Arrow table.

    Raises:
        ConfigError: it is neither.
        InvalidInput: a column's type, or the files, cannot be read.
    """
    del scratch
    if isinstance(data, str | Path):
        yield FrameEnds(str(data), open_dataset(str(data)), backend_named("arrow").build)
        return
    backend = backend_of(data)
    schema = backend.schema(data)
    dataset = TableDataset.of(schema, backend.batches(data, BATCH_ROWS))
    yield FrameEnds(f"<{backend.name}>", dataset, backend.build)
