"""Ray Datasets, whose rows are in blocks on the nodes of a cluster."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from typing_extensions import override

from domyn_swarm.data.arrow_backend import cells_as_text
from domyn_swarm.data.data_backend import (
    BATCH_ROWS,
    READ_FLAG,
    WRITE_FLAG,
    DataBackend,
    check_options,
    failures_named,
    refuse_types,
)
from domyn_swarm.errors import ConfigError, InvalidInput, PlatformError, SwarmError
from domyn_swarm.logs import get_logger

if TYPE_CHECKING:
    import ray.data

_READERS = {"parquet": "read_parquet", "csv": "read_csv", "jsonl": "read_json"}
_BLOCK_ROWS = 64 * BATCH_ROWS
_LOG_WAIT_S = 60.0

_log = get_logger(__name__)


class RayBackend(DataBackend["ray.data.Dataset"]):
    """`ray.data.Dataset`."""

    name = "ray"
    lazy = True

    @override
    def accepts(self, data: object) -> bool:
        dataset = getattr(sys.modules.get("ray.data"), "Dataset", None)
        return dataset is not None and isinstance(data, dataset)

    @override
    def schema(self, frame: ray.data.Dataset) -> pa.Schema:
        return blocks_of(frame).schema

    @override
    def batches(self, frame: ray.data.Dataset) -> Iterator[pa.RecordBatch]:
        blocks = blocks_of(frame)
        yield from blocks.batches(None, 0, blocks.rows)

    @override
    def build(
        self,
        schema: pa.Schema,
        batches: Iterable[pa.RecordBatch],
        like: ray.data.Dataset | None = None,
    ) -> ray.data.Dataset:
        import ray.data

        tables, waiting, rows = [], [], 0
        for batch in batches:
            waiting.append(batch)
            rows += batch.num_rows
            if rows >= _BLOCK_ROWS:
                tables.append(ray.put(pa.Table.from_batches(waiting, schema)))
                waiting, rows = [], 0
        if waiting or not tables:
            tables.append(ray.put(pa.Table.from_batches(waiting, schema)))
        return ray.data.from_arrow_refs(tables)

    @override
    def rows(self, frame: ray.data.Dataset) -> int:
        return int(frame.count())

    @override
    def part(
        self, frame: ray.data.Dataset, columns: Sequence[str] | None, start: int, rows: int
    ) -> ray.data.Dataset:
        chosen = frame if columns is None else frame.select_columns(list(columns))
        head = chosen.limit(start + rows)
        return head.split_at_indices([start])[1] if start else head

    @override
    def read(self, files: Sequence[str], kind: str, options: dict[str, Any]) -> ray.data.Dataset:
        """The options are those of `ray.data.read_parquet` and its like."""
        import ray.data

        if kind not in _READERS:
            raise InvalidInput(
                f"Ray has no reader for .{kind} files.", hint="Convert them to Parquet."
            )
        reader = getattr(ray.data, _READERS[kind])
        check_options(reader, options, READ_FLAG)
        with failures_named("Ray cannot read", files, READ_FLAG):
            as_text = {"convert_options": cells_as_text()} if kind == "csv" else {}
            return reader(list(files), **{**as_text, **options})

    @override
    def write(self, frame: ray.data.Dataset, path: str, options: dict[str, Any]) -> None:
        """Writes a folder of files, with the options of `write_parquet`."""
        check_options(frame.write_parquet, options, WRITE_FLAG)
        with failures_named("Ray cannot write", [path], WRITE_FLAG):
            frame.write_parquet(path, **options)


@dataclass(frozen=True)
class RayBlock:
    """One block of rows, on any node."""

    ref: Any  # ray.ObjectRef[pa.Table]
    rows: int
    first: int  # the position of its first row in the dataset


class RayBlocks:
    """The blocks of a computed dataset, in a fixed order."""

    def __init__(self, blocks: Sequence[RayBlock], schema: pa.Schema) -> None:
        self.blocks = blocks
        self.schema = schema

    @cached_property
    def rows(self) -> int:
        """The number of rows."""
        return sum(block.rows for block in self.blocks)

    def batches(
        self, columns: Sequence[str] | None, start: int, stop: int
    ) -> Iterator[pa.RecordBatch]:
        """The rows in order. Only the given columns (None: all) are sent over the network.

        The next block is fetched while the caller processes the current one.
        """
        import ray

        names = self.schema.names if columns is None else list(columns)
        schema = pa.schema([self.schema.field(name) for name in names])
        blocks = [
            block
            for block in self.blocks
            if block.first < stop and block.first + block.rows > start
        ]
        fetch = ray.remote(num_cpus=0)(_columns_of)
        ahead: list[Any] = []
        for at, block in enumerate(blocks):
            following = blocks[at + len(ahead) : at + 2]
            ahead += [fetch.remote(later.ref, schema) for later in following]
            table = got(ahead.pop(0))
            inside = max(0, start - block.first)
            part = table.slice(inside, stop - block.first - inside)
            yield from part.to_batches(max_chunksize=BATCH_ROWS)


def got(refs: Any) -> Any:  # noqa: ANN401 - one reference or several
    """The values of references. Logs every `_LOG_WAIT_S` that it still waits.

    Raises:
        PlatformError: the cluster lost a value.
        SwarmError: the task that computes a value raised it.
    """
    import ray

    try:
        pending = refs if isinstance(refs, list) else [refs]
        while pending and ray.wait(pending, num_returns=len(pending), timeout=_LOG_WAIT_S)[1]:
            free = ray.available_resources().get("CPU", 0)
            _log.warning("waiting for rows of the Ray cluster; %g of its CPUs are free", free)
        return ray.get(refs)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, SwarmError):
            raise error.cause from error
        raise
    except ray.exceptions.RayError as error:
        raise PlatformError(
            f"The Ray cluster lost rows: {str(error).strip().splitlines()[0]}",
            hint="Run it again: finished rows are not sent again.",
        ) from error


def _columns_of(table: pa.Table, schema: pa.Schema) -> pa.Table:
    return table.select(schema.names).replace_schema_metadata(None).cast(schema)


def blocks_of(frame: ray.data.Dataset) -> RayBlocks:
    """Compute a dataset. Its rows stay on the cluster.

    Raises:
        InvalidInput: a column has no Arrow type, or different types in several blocks.
        ConfigError: this process uses Ray's client protocol instead of being part of the cluster.
    """
    import ray

    if ray.util.client.ray.is_connected():
        raise ConfigError(
            "Datasets cannot be used through Ray's client protocol (ray://).",
            hint='Run on a machine of the cluster: ray.init("auto").',
        )
    with failures_named("Ray cannot compute", ["the dataset"], READ_FLAG):
        with _in_order(frame):
            refs = frame.materialize().to_arrow_refs()
        inspect = ray.remote(num_cpus=0)(_rows_and_schema)
        facts = ray.get([inspect.remote(ref) for ref in refs])
    blocks, first = [], 0
    for ref, (rows, _) in zip(refs, facts, strict=True):
        if rows:  # a block that a filter emptied has no columns either
            blocks.append(RayBlock(ref, rows, first))
        first += rows
    schemas = [schema for rows, schema in facts if rows] or [
        schema for _, schema in facts if schema.names
    ]
    try:
        schema = pa.unify_schemas(schemas or [_planned_schema(frame)])
    except pa.ArrowException as error:
        raise InvalidInput(
            f"A column has different types in the dataset's blocks: {error}",
            hint="Cast it: ds.map_batches(..., batch_format='pyarrow').",
        ) from error
    refuse_types(schema, lambda kind: isinstance(kind, pa.BaseExtensionType), "Arrow")
    return RayBlocks(blocks, schema)


def _planned_schema(frame: ray.data.Dataset) -> pa.Schema:
    """The columns of a dataset without rows, as far as Ray's execution plan contains them."""
    planned = frame.schema(fetch_if_missing=False)
    columns = [] if planned is None else zip(planned.names, planned.types, strict=True)
    return pa.schema(
        (name, kind if isinstance(kind, pa.DataType) else pa.null()) for name, kind in columns
    )


@contextlib.contextmanager
def _in_order(frame: ray.data.Dataset) -> Iterator[None]:
    """Compute blocks in the order of their inputs, without progress bars."""
    context = frame.context  # the dataset's own copy of Ray's settings
    before = context.execution_options.preserve_order, context.enable_progress_bars
    context.execution_options.preserve_order, context.enable_progress_bars = True, False
    try:
        yield
    finally:
        context.execution_options.preserve_order, context.enable_progress_bars = before


def _rows_and_schema(table: pa.Table) -> tuple[int, pa.Schema]:
    return table.num_rows, table.schema.remove_metadata()
