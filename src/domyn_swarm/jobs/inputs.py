"""Opens a job's input with the job's data backend."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from domyn_swarm.batch.input.dataset import Dataset, TableDataset
from domyn_swarm.batch.input.file_facts import InputFacts
from domyn_swarm.batch.input.input_files import files_of
from domyn_swarm.batch.input.opening import LineFiles, open_dataset
from domyn_swarm.batch.output.part_writer import WriteFile
from domyn_swarm.data.data_backend import KINDS, DataBackend
from domyn_swarm.data.registry import backend_named
from domyn_swarm.errors import ConfigError, InvalidInput
from domyn_swarm.jobs.worker_spec import JobSpec

if TYPE_CHECKING:
    import pyarrow as pa


class ScanDataset(Dataset):
    """Rows of files that a library reads anew for each pass, never all in memory."""

    def __init__(self, backend: DataBackend[Any], frame: Any) -> None:  # noqa: ANN401 - a frame
        self._backend = backend
        self._frame = frame
        self.schema = backend.schema(frame)
        self.rows = backend.rows(frame)

    @override
    def batches(
        self, columns: Sequence[str] | None = None, *, start: int = 0, limit: int | None = None
    ) -> Iterator[pa.RecordBatch]:
        end = self.rows if limit is None else min(limit, self.rows)
        if end > start:
            wanted = self._backend.part(self._frame, columns, start, end - start)
            yield from self._backend.batches(wanted)


def writer_of(spec: JobSpec) -> WriteFile | None:
    """The library's writer for files of the output, if it was given options.

    Raises:
        ConfigError: the options do not apply.
    """
    options = spec.backend_write_kwargs
    if not options:
        return None
    if spec.data_backend is None:
        raise ConfigError(
            "--backend-write-kwargs are for a library that writes the output.",
            hint="Name it: --data-backend pandas, polars, arrow or ray.",
        )
    if not (spec.shard_output or spec.output.lower().endswith(".parquet")):
        raise ConfigError(
            f"--backend-write-kwargs are for Parquet, and {spec.output} is none.",
            hint="Name the output .parquet, or take them out.",
        )
    # Ray hands the options of its writer to Arrow's, and results are written where the job runs.
    backend = backend_named("arrow" if spec.data_backend == "ray" else spec.data_backend)

    def write(rows: pa.Table, path: Path) -> None:
        backend.write(backend.build(rows.schema, rows.to_batches()), str(path), options)

    return write


def open_input(
    spec: JobSpec, lines: LineFiles | None = None, facts: InputFacts | None = None
) -> Dataset:
    """The job's rows, as this machine reads them: Ray has to read the same rows.

    Args:
        spec: the job.
        lines: the job's form of JSON Lines, if no other library reads them.
        facts: recorded facts of the files; new ones are added.

    Raises:
        ConfigError: options do not apply, or the address is invalid.
        InvalidInput: the input cannot be read with them.
    """
    if spec.ray_address and spec.data_backend != "ray":
        raise ConfigError(
            "--ray-address is for --data-backend ray.", hint="Give both, or take it out."
        )
    if spec.data_backend is None:
        if spec.backend_read_kwargs:
            raise ConfigError(
                "--backend-read-kwargs are for a library that reads the input.",
                hint="Name it: --data-backend pandas, polars, arrow or ray.",
            )
        return open_dataset(spec.input, lines, spec, facts)
    if spec.encoding != "utf-8" or spec.delimiter is not None or spec.types:
        raise ConfigError(
            "--encoding, --delimiter and --types are for files that no library reads.",
            hint=f"Give {spec.data_backend} its own with --backend-read-kwargs, or leave "
            "--data-backend out.",
        )
    if spec.data_backend == "ray":
        backend_named("ray")
        check_ray_address(spec.ray_address or "")
        return open_dataset(spec.input, reading=spec, facts=facts)
    backend = backend_named(spec.data_backend)
    files = files_of(spec.input, recursive=spec.recursive)
    if files[0].kind not in KINDS or files[0].packing:
        raise InvalidInput(
            f"{files[0]} cannot be read with --data-backend.",
            hint="Leave --data-backend out: the file is read without it.",
        )
    names = [str(file) for file in files]
    frame = backend.read(names, files[0].kind, spec.backend_read_kwargs)
    if backend.lazy:
        return ScanDataset(backend, frame)
    return TableDataset.of(backend.schema(frame), backend.batches(frame))


def check_ray_address(address: str) -> None:
    """Refuse the address of a port for Ray's client.

    Raises:
        ConfigError: it is one.
    """
    if address.startswith("ray://"):
        raise ConfigError(
            f"{address}: datasets do not go over the protocol of Ray's client.",
            hint="Run the job on a machine of the cluster: --ray-address auto, or host:port.",
        )
