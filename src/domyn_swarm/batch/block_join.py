"""One block of an input joined with its results, wherever the block lies.

Blocks are consecutive parts of the input. What each holds is found first, so that all of them get
the same columns; then each is joined alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from domyn_swarm.batch.arrow_types import unify
from domyn_swarm.batch.engine import BatchPlan
from domyn_swarm.batch.index import FrameFiles, Matches, RowIndex
from domyn_swarm.batch.inspection import opened_index
from domyn_swarm.batch.publish import output_fields
from domyn_swarm.batch.results import settled_rows, survey
from domyn_swarm.batch.row_keys import Digests
from domyn_swarm.batch.table_dataset import TableDataset
from domyn_swarm.errors import JobError


@dataclass(frozen=True)
class BlockFacts:
    """What one block's results are like."""

    types: dict[str, pa.DataType]  # of the answers
    rows: int  # that are settled
    rows_failed: int  # of them


class _ShiftedIndex:
    """An index of the whole input, asked for a block of it."""

    def __init__(self, index: RowIndex, first: int) -> None:
        self.frames: FrameFiles = index.frames
        self._index = index
        self._first = first

    def match(self, first_ordinal: int, digests: Digests) -> Matches:
        """See `RowIndex`."""
        return self._index.match(self._first + first_ordinal, digests)


def block_facts(plan: BatchPlan, block: pa.Table, first: int) -> BlockFacts:
    """Look at the results of the rows `first, first + 1, …`, which the block holds."""
    with opened_index(plan) as index:
        rows, shifted = TableDataset(block), _ShiftedIndex(index, first)
        return BlockFacts(*survey(rows, plan.output, shifted, None))


def common_schema(plan: BatchPlan, facts: Sequence[BlockFacts]) -> pa.Schema:
    """The columns of all blocks; with one for errors where any row has one.

    Raises:
        JobError: some rows have no result.
    """
    missing = plan.rows - sum(one.rows for one in facts)
    if missing:
        raise JobError(
            f"{missing} results cannot be read again.",
            hint="Run it once more: only those rows are asked.",
        )
    types = {name: kind or pa.null() for name, kind in plan.output.schema.arrow.items()}
    for one in facts:
        types = {name: unify(known, one.types[name]) for name, known in types.items()}
    failed = any(one.rows_failed for one in facts)
    return pa.schema(output_fields(plan.dataset, plan.output, types, errors=failed))


def join_block(plan: BatchPlan, block: pa.Table, first: int, schema: pa.Schema) -> pa.Table:
    """The block's rows with their results."""
    with opened_index(plan) as index:
        shifted = _ShiftedIndex(index, first)
        batches = settled_rows(TableDataset(block), plan.output, shifted, None, schema)
        return pa.Table.from_batches(batches, schema)
