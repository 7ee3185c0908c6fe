"""The ends of a run in this process: what a frame becomes, and what answers become."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from domyn_swarm.batch.dataset import Dataset
from domyn_swarm.batch.engine import BatchPlan
from domyn_swarm.batch.input_files import InputFile
from domyn_swarm.batch.json_values import as_text, without_json
from domyn_swarm.batch.opening import LineFiles, open_dataset
from domyn_swarm.batch.parquet_dataset import ParquetDataset
from domyn_swarm.batch.reading import InputReading
from domyn_swarm.batch.results import settled_results
from domyn_swarm.batch.spool import spooled
from domyn_swarm.batch.table_dataset import TableDataset
from domyn_swarm.batch.work import WorkerPlan
from domyn_swarm.data.base import DataBackend
from domyn_swarm.data.registry import backend_named, backend_of
from domyn_swarm.errors import ConfigError, JobError
from domyn_swarm.jobs.spec import JobSpec

if TYPE_CHECKING:
    import pyarrow as pa

_RESULTS = "results.parquet"  # of a lazy frame, in the job's checkpoint


class FrameEnds(Protocol):
    """Rows in, workers for them, and what the caller gets for the results."""

    @property
    def name(self) -> str:
        """What stands for the input's path."""

    @property
    def dataset(self) -> Dataset:
        """The rows."""

    @property
    def elsewhere(self) -> bool:
        """Whether the rows are worked on by processes of other machines."""

    def workers(self, spec: JobSpec) -> contextlib.AbstractAsyncContextManager[WorkerPlan | None]:
        """Who works on the rows; None: this process."""

    def collect(self, spec: JobSpec, plan: BatchPlan, kept: Path | None) -> Any:  # noqa: ANN401 - a frame
        """A frame of the results. A lazy one may read them from the folder, where there is one.

        Raises:
            JobError: some results cannot be read.
        """


@dataclass(frozen=True)
class LocalEnds:
    """Rows of this process."""

    name: str
    dataset: Dataset
    build: Callable[[pa.Schema, Iterator[pa.RecordBatch], Path | None], Any]
    elsewhere: bool = False

    @contextlib.asynccontextmanager
    async def workers(self, spec: JobSpec) -> AsyncIterator[None]:  # noqa: ARG002
        """See `FrameEnds`."""
        yield None

    def collect(self, spec: JobSpec, plan: BatchPlan, kept: Path | None) -> Any:  # noqa: ANN401, ARG002 - a frame
        """See `FrameEnds`."""
        with settled_results(plan, errors=False) as results:
            if results.rows < results.rows_total:
                raise JobError(
                    f"{results.rows_total - results.rows} results cannot be read again.",
                    hint="Run it once more: only those rows are asked.",
                )
            return self.build(results.schema, results.batches(), kept)


@contextlib.contextmanager
def ends_of(
    data: Any,  # noqa: ANN401 - a frame or a path
    limit: int | None,
    lines: LineFiles | None = None,
    reading: InputReading | None = None,
) -> Iterator[FrameEnds]:
    """A frame of any supported kind; files at a path come back as an Arrow table.

    Args:
        data: the frame or path.
        limit: no more rows than these are wanted of it.
        lines: how the job reads JSON Lines.
        reading: how files are to be read.

    Raises:
        ConfigError: it is neither.
        InvalidInput: a column's type, or the files, cannot be read.
    """
    if isinstance(data, str | Path):
        arrow = backend_named("arrow")
        source = str(data) if "://" in str(data) else str(Path(data).expanduser())
        dataset = open_dataset(source, lines, reading)
        yield LocalEnds(source, dataset, lambda schema, rows, _: arrow.build(schema, rows))
        return
    if reading not in (None, InputReading()):
        raise ConfigError(
            "encoding, delimiter, types and recursive are for files, and these are no files.",
            hint="Leave them out, or give the path of the files.",
        )
    backend: DataBackend[Any] = backend_of(data)
    frame = data if limit is None else backend.part(data, None, 0, limit)
    if backend.name == "ray":
        from domyn_swarm.jobs.ray.ends import RayEnds

        yield RayEnds(frame)
        return
    with contextlib.ExitStack() as stack:
        yield _local_ends(backend, frame, stack)


def _local_ends(backend: DataBackend[Any], frame: Any, stack: contextlib.ExitStack) -> LocalEnds:  # noqa: ANN401
    def build(schema: pa.Schema, batches: Iterator[pa.RecordBatch], folder: Path | None) -> Any:  # noqa: ANN401
        if backend.name != "arrow":  # the others have no type for JSON
            schema, batches = without_json(schema), map(as_text, batches)
        if backend.lazy and folder is not None:
            results = spooled(schema, batches, folder / _RESULTS)
            return backend.read([str(results)], "parquet", {})
        return backend.build(schema, batches, frame)

    schema = backend.schema(frame)
    rows: Dataset
    if backend.lazy:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="domyn-swarm-"))
        spool = spooled(schema, backend.batches(frame), Path(folder) / "rows.parquet")
        rows = ParquetDataset([InputFile(str(spool))])
    else:
        rows = TableDataset.of(schema, backend.batches(frame))
    return LocalEnds(f"<{backend.name}>", rows, build)
