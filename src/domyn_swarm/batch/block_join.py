"""One block of an input joined with its results, wherever the block lies.

Blocks are consecutive parts of the input. What each holds is found first, so that all of them get
the same columns; then each is joined alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from domyn_swarm.batch.dataset import Dataset
from domyn_swarm.batch.engine import BatchPlan
from domyn_swarm.batch.index import FrameFiles, Matches, RowIndex
from domyn_swarm.batch.inspection import opened_index
from domyn_swarm.batch.json_values import as_text, without_json
from domyn_swarm.batch.open_types import OpenTypes, typed
from domyn_swarm.batch.output_rows import OutputRows, Survey, answer_schema
from domyn_swarm.batch.results import settled_batches
from domyn_swarm.batch.row_keys import Digests
from domyn_swarm.batch.schema import ERROR_COLUMN
from domyn_swarm.batch.table_dataset import TableDataset
from domyn_swarm.errors import JobError


class _ShiftedIndex:
    """An index of the whole input, asked for a block of it."""

    in_order = False  # of the block

    def __init__(self, index: RowIndex, first: int) -> None:
        self.frames: FrameFiles = index.frames
        self._index = index
        self._first = first

    def match(self, first_ordinal: int, digests: Digests) -> Matches:
        """See `RowIndex`."""
        return self._index.match(self._first + first_ordinal, digests)


def block_facts(plan: BatchPlan, block: pa.Table, first: int) -> Survey:
    """Look at the results of the rows `first, first + 1, …`, which the block holds."""
    with opened_index(plan) as index:
        return _rows(plan, TableDataset(block), _ShiftedIndex(index, first)).survey()


def _rows(plan: BatchPlan, dataset: Dataset, index: RowIndex) -> OutputRows:
    kept = plan.output.kept_columns(dataset)
    return OutputRows(dataset, plan.output.keys, kept, plan.output.schema, index, None)


def common_schema(plan: BatchPlan, facts: Sequence[Survey]) -> pa.Schema:
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
    failed = any(one.rows_failed for one in facts)
    kept = plan.output.kept_columns(plan.dataset).fields
    raw = answer_schema(kept, plan.output.schema, errors=failed)
    types = OpenTypes([name for name, kind in plan.output.schema.arrow.items() if kind is None])
    for one in facts:
        types.merge(one.types)
    return types.settled(raw)


def join_block(plan: BatchPlan, block: pa.Table, first: int, schema: pa.Schema) -> pa.Table:
    """The block's rows with their results, in the types of a schema; text for JSON."""
    with opened_index(plan) as index:
        rows = _rows(plan, TableDataset(block), _ShiftedIndex(index, first))
        raw = rows.schema(errors=ERROR_COLUMN in schema.names)
        batches = [as_text(typed(batch, schema)) for batch in settled_batches(rows, raw)]
        return pa.Table.from_batches(batches, without_json(schema))
