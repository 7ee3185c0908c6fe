"""Blocks of a Ray Dataset as a job's rows, and its results as blocks of another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from domyn_swarm.batch.block_join import block_facts, common_schema, join_block
from domyn_swarm.batch.engine import BatchPlan
from domyn_swarm.batch.json_values import without_json
from domyn_swarm.batch.output_rows import Survey
from domyn_swarm.batch.table_dataset import TableDataset
from domyn_swarm.data.ray_backend import RayBlocks, got
from domyn_swarm.jobs.preparation import load_plan
from domyn_swarm.jobs.spec import JobSpec

if TYPE_CHECKING:
    import pyarrow as pa


class RayDataset:
    """See `batch.dataset.Dataset`."""

    def __init__(self, blocks: RayBlocks) -> None:
        self.blocks = blocks
        self.schema = blocks.schema
        self.rows = blocks.rows

    def batches(
        self, columns: Sequence[str] | None = None, *, start: int = 0, limit: int | None = None
    ) -> Iterator[pa.RecordBatch]:
        """See `Dataset.batches`."""
        end = self.rows if limit is None else min(limit, self.rows)
        yield from self.blocks.batches(columns, start, end)


def joined_blocks(spec: JobSpec, plan: BatchPlan, blocks: RayBlocks) -> Any:  # noqa: ANN401 - ray.data.Dataset
    """A Ray Dataset of the rows with their results: each block is joined where it lies.

    Raises:
        JobError: some rows have no result.
        PlatformError: the cluster lost some of them.
    """
    import ray
    import ray.data

    told = spec.model_dump_json()
    look = ray.remote(num_cpus=1)(_facts)
    facts = got([look.remote(told, one.ref, one.first) for one in blocks.blocks])
    schema = common_schema(plan, facts)
    join = ray.remote(num_cpus=1)(_joined)
    refs = [join.remote(told, one.ref, one.first, schema) for one in blocks.blocks]
    return ray.data.from_arrow_refs(refs or [ray.put(without_json(schema).empty_table())])


def _facts(spec_json: str, block: pa.Table, first: int) -> Survey:
    return block_facts(_plan(spec_json, block), block, first)


def _joined(spec_json: str, block: pa.Table, first: int, schema: pa.Schema) -> pa.Table:
    return join_block(_plan(spec_json, block), block, first, schema)


def _plan(spec_json: str, block: pa.Table) -> BatchPlan:
    prepared = load_plan(JobSpec.model_validate_json(spec_json), TableDataset(block))
    return replace(prepared.plan, limit=None)
