"""Blocks of a Ray Dataset as a job's rows, and its results as blocks of another."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from domyn_swarm.batch.column_values import without_json
from domyn_swarm.batch.input.dataset import Dataset, TableDataset
from domyn_swarm.batch.input.input_files import files_of
from domyn_swarm.batch.inspection.results import block_facts, common_schema, join_block
from domyn_swarm.batch.output.row_join import Survey
from domyn_swarm.batch.run.engine import BatchPlan
from domyn_swarm.batch.run.worker_processes import WorkerPlan
from domyn_swarm.data.ray_backend import RayBackend, RayBlocks, blocks_of, got
from domyn_swarm.errors import InvalidInput
from domyn_swarm.jobs.preparation import load_plan
from domyn_swarm.jobs.ray.ray_cluster import connected
from domyn_swarm.jobs.ray.workers import ray_workers
from domyn_swarm.jobs.worker_spec import JobSpec

if TYPE_CHECKING:
    import pyarrow as pa


class RayDataset(Dataset):
    """The blocks of a Ray dataset, in their order."""

    def __init__(self, blocks: RayBlocks) -> None:
        self.blocks = blocks
        self.schema = blocks.schema
        self.rows = blocks.rows

    @override
    def batches(
        self, columns: Sequence[str] | None = None, *, start: int = 0, limit: int | None = None
    ) -> Iterator[pa.RecordBatch]:
        end = self.rows if limit is None else min(limit, self.rows)
        yield from self.blocks.batches(columns, start, end)


def joined_blocks(spec: JobSpec, plan: BatchPlan, blocks: RayBlocks) -> Any:  # noqa: ANN401 - ray.data.Dataset
    """A Ray Dataset of the rows with their results: each block is joined on its node.

    Raises:
        JobError: some rows have no result.
        PlatformError: the cluster lost some of them.
    """
    import ray
    import ray.data

    spec_json = spec.model_dump_json()
    look = ray.remote(num_cpus=1)(_facts)
    facts = got([look.remote(spec_json, one.ref, one.first) for one in blocks.blocks])
    schema = common_schema(plan, facts)
    join = ray.remote(num_cpus=1)(_joined)
    refs = [join.remote(spec_json, one.ref, one.first, schema) for one in blocks.blocks]
    return ray.data.from_arrow_refs(refs or [ray.put(without_json(schema).empty_table())])


def _facts(spec_json: str, block: pa.Table, first: int) -> Survey:
    return block_facts(_plan(spec_json, block), block, first)


def _joined(spec_json: str, block: pa.Table, first: int, schema: pa.Schema) -> pa.Table:
    return join_block(_plan(spec_json, block), block, first, schema)


def _plan(spec_json: str, block: pa.Table) -> BatchPlan:
    prepared = load_plan(JobSpec.model_validate_json(spec_json), TableDataset(block))
    return replace(prepared.plan, limit=None)


class RayEnds:
    """The `FrameEnds` of a Ray dataset."""

    name = "<ray>"
    elsewhere = True

    def __init__(self, frame: Any) -> None:  # noqa: ANN401 - ray.data.Dataset
        self._blocks = blocks_of(frame)
        self.dataset = RayDataset(self._blocks)

    def workers(self, spec: JobSpec) -> contextlib.AbstractAsyncContextManager[WorkerPlan | None]:
        """Actors, at most one per node."""
        return ray_workers(spec)

    def collect(self, spec: JobSpec, plan: BatchPlan, kept: Path | None) -> Any:  # noqa: ANN401, ARG002 - a Dataset
        """A Ray dataset of the results, joined on the cluster."""
        return joined_blocks(spec, plan, self._blocks)


@contextlib.asynccontextmanager
async def over_cluster(spec: JobSpec, plan: BatchPlan) -> AsyncIterator[BatchPlan]:
    """The plan with the cluster's blocks for rows and its actors for workers.

    Raises:
        PlatformError: there is no cluster at the address.
        InvalidInput: Ray reads other rows than those that were checked.
    """
    with connected(spec.ray_address):
        files = files_of(spec.input, recursive=spec.recursive)
        names = [str(file) for file in files]
        frame = RayBackend().read(names, files[0].kind, spec.backend_read_kwargs)
        blocks = await asyncio.to_thread(blocks_of, frame)
        dataset = RayDataset(blocks) if blocks.rows else plan.dataset  # Ray drops the columns
        if blocks.rows != plan.dataset.rows or not set(plan.output.keys.columns) <= set(
            dataset.schema.names
        ):
            raise InvalidInput(
                f"Ray reads {blocks.rows} rows ({', '.join(blocks.schema.names)}) of {spec.input}, "
                f"which holds {plan.dataset.rows}.",
                hint="--backend-read-kwargs may not change which rows there are.",
            )
        async with ray_workers(spec) as workers:
            yield replace(plan, dataset=dataset, workers=workers)
