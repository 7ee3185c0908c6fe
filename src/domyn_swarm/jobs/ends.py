"""The input and output ends of a run in this process: frames in and out, and the output of a job
that was submitted.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from domyn_swarm.batch.column_values import as_text, without_json
from domyn_swarm.batch.input.dataset import Dataset, ParquetDataset, TableDataset
from domyn_swarm.batch.input.input_files import InputFile
from domyn_swarm.batch.input.opening import LineFiles, open_dataset
from domyn_swarm.batch.input.reading import InputReading
from domyn_swarm.batch.input.spool import spooled
from domyn_swarm.batch.inspection.results import Results, settled_results, written_results
from domyn_swarm.batch.inspection.verification import OutputVerification, verify
from domyn_swarm.batch.output.manifest import Manifest
from domyn_swarm.batch.output.output_files import Writer
from domyn_swarm.batch.output.remote_output import place_of
from domyn_swarm.batch.run.engine import BatchPlan
from domyn_swarm.batch.run.worker_processes import WorkerPlan
from domyn_swarm.data.data_backend import DataBackend
from domyn_swarm.data.registry import backend_named, backend_of
from domyn_swarm.errors import ConfigError, JobError, quantity
from domyn_swarm.jobs.preparation import identity_of, load_work, make_plan
from domyn_swarm.jobs.worker_spec import JobSpec
from domyn_swarm.model import JobStatus
from domyn_swarm.paths import expanded

if TYPE_CHECKING:
    import pyarrow as pa


def verify_output(spec: JobSpec) -> OutputVerification:
    """Check a job's output against its manifest and its input.

    Raises:
        SwarmError: there is no manifest, or the job or its input cannot be read.
    """
    return verify(make_plan(spec).plan)


@contextlib.contextmanager
def opened_results(spec: JobSpec, status: JobStatus, *, partial: bool) -> Iterator[Results]:
    """A job's output, or with `partial` the rows that are settled so far.

    Args:
        spec: the job.
        status: its status. After its end its output may have been replaced by the same job under a
            later id.
        partial: read the checkpoint, not the output.

    Raises:
        JobError: the job has not published, its output is missing, or there is no checkpoint.
        SwarmError: the output or the checkpoint cannot be read.
    """
    if partial:
        with settled_results(make_plan(spec).plan) as results:
            yield results
        return
    finished = status in (JobStatus.SUCCEEDED, JobStatus.PARTIAL)
    place = place_of(spec.output, sharded=spec.shard_output, writer=Writer(""))
    manifest = place.manifest()
    if manifest is None or not _is_of(manifest, spec, finished=finished):
        what = (
            f"has no output at {spec.output} any more"
            if finished
            else "has not published its output"
        )
        raise JobError(
            f"The job {spec.job_id} {what}.",
            hint="--partial (in Python partial=True) reads what is settled from its checkpoint.",
        )
    yield written_results(manifest, place)


def _is_of(manifest: Manifest, spec: JobSpec, *, finished: bool) -> bool:
    if manifest.job.id == spec.job_id:
        return True
    if not finished or manifest.input.path != spec.input:
        return False
    job, _, _ = load_work(spec)
    return manifest.job.identity == identity_of(spec, job).digest


_RESULTS = "results.parquet"  # of a lazy frame, in the job's checkpoint


class FrameEnds(Protocol):
    """Rows in, workers for them, and a frame of the results."""

    @property
    def name(self) -> str:
        """Takes the place of the input's path."""

    @property
    def dataset(self) -> Dataset:
        """The rows."""

    @property
    def elsewhere(self) -> bool:
        """Whether the rows are processed on other machines."""

    def workers(self, spec: JobSpec) -> contextlib.AbstractAsyncContextManager[WorkerPlan | None]:
        """The workers that process the rows; None: this process."""

    def collect(self, spec: JobSpec, plan: BatchPlan, kept: Path | None) -> Any:  # noqa: ANN401 - a frame
        """A frame of the results. A lazy frame may read them from the folder, if there is one.

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
        """None: this process works on the rows."""
        yield None

    def collect(self, spec: JobSpec, plan: BatchPlan, kept: Path | None) -> Any:  # noqa: ANN401, ARG002 - a frame
        """A frame of the library that the input came from."""
        with settled_results(plan, errors=False) as results:
            if missing := results.rows_total - results.rows:
                raise JobError(
                    f"{quantity(missing, 'result')} cannot be read again.",
                    hint="Run it again: only those rows are sent.",
                )
            return self.build(results.schema, results.batches(), kept)


@contextlib.contextmanager
def ends_of(
    data: Any,  # noqa: ANN401 - a frame or a path
    limit: int | None,
    lines: LineFiles | None = None,
    reading: InputReading | None = None,
) -> Iterator[FrameEnds]:
    """A frame of any supported kind; files at a path are returned as an Arrow table.

    Args:
        data: the frame or path.
        limit: the most rows to read of it.
        lines: the job's form of JSON Lines.
        reading: the options for files.

    Raises:
        ConfigError: it is neither.
        InvalidInput: a column's type is not supported, or the files cannot be read.
    """
    if isinstance(data, str | Path):
        arrow = backend_named("arrow")
        source = str(data) if "://" in str(data) else str(expanded(data))
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
        from domyn_swarm.jobs.ray.ray_dataset import RayEnds

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
