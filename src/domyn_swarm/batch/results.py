"""What a job came to, to be read: all of a written output, or what is settled so far.

A batch at a time: nothing here holds more than one, but for `Results.table`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from domyn_swarm.batch.arrow_arrays import indices
from domyn_swarm.batch.dataset import Dataset
from domyn_swarm.batch.engine import BatchPlan
from domyn_swarm.batch.index import RowIndex
from domyn_swarm.batch.input_files import InputFile
from domyn_swarm.batch.inspection import opened_index
from domyn_swarm.batch.manifest import Manifest
from domyn_swarm.batch.opening import dataset_of
from domyn_swarm.batch.output_files import Place
from domyn_swarm.batch.publish import OutputPlan, joined, output_columns, output_fields, widen
from domyn_swarm.batch.table_dataset import TableDataset


@dataclass(frozen=True)
class Results:
    """Rows in input order with the columns of the output, readable for as long as they are open."""

    schema: pa.Schema
    rows: int
    rows_failed: int  # of them
    rows_total: int  # that the job is about
    batches: Callable[[], Iterator[pa.RecordBatch]]  # may be called more than once

    def table(self, most_rows: int | None = None) -> pa.Table:
        """The first rows, or all, in memory."""
        left = self.rows if most_rows is None else most_rows
        chosen: list[pa.RecordBatch] = []
        for batch in self.batches() if left else ():
            chosen.append(batch.slice(0, left))
            left -= chosen[-1].num_rows
            if not left:
                break
        return pa.Table.from_batches(chosen, self.schema)


def written_results(manifest: Manifest, place: Place) -> Results:
    """An output that was published; the types of text are those that its values look like.

    Raises:
        InvalidInput: a file of it is gone or damaged.
    """
    written = _opened(manifest, place.files(manifest))
    return Results(
        schema=written.schema,
        rows=written.rows,
        rows_failed=manifest.rows_failed,
        rows_total=manifest.rows,
        batches=written.batches,
    )


def _opened(manifest: Manifest, files: Sequence[InputFile]) -> Dataset:
    if files[0].kind == "jsonl" and not manifest.rows:  # there is no line that names the columns
        names = [(column.name, pa.null()) for column in manifest.columns]
        return TableDataset(pa.schema(names).empty_table())
    return dataset_of(files)


@contextlib.contextmanager
def settled_results(plan: BatchPlan, *, errors: bool = True) -> Iterator[Results]:
    """The rows that have an answer or an error by now, whether or not the job runs.

    Answers that come in meanwhile are not seen. Without `errors` there is a column for them only
    where some row has one, as in an output.

    Raises:
        JobError: the job has no checkpoint.
    """
    with opened_index(plan) as index:
        types, rows, failed = survey(plan.dataset, plan.output, index, plan.limit)
        fields = output_fields(plan.dataset, plan.output, types, errors=errors or failed > 0)
        schema = pa.schema(fields)
        yield Results(
            schema=schema,
            rows=rows,
            rows_failed=failed,
            rows_total=plan.rows,
            batches=lambda: settled_rows(plan.dataset, plan.output, index, plan.limit, schema),
        )


def survey(
    dataset: Dataset, plan: OutputPlan, index: RowIndex, limit: int | None
) -> tuple[dict[str, pa.DataType], int, int]:
    """The answers' types so far, how many rows are settled, and how many of them failed."""
    types = {name: pa.null() if kind is None else kind for name, kind in plan.schema.arrow.items()}
    found = {name: pa.null() for name, kind in plan.schema.arrow.items() if kind is None}
    rows = failed = 0
    for _, values in joined(dataset, plan.keys.columns, plan.keys, index, limit):
        settled = [value for value in values if value is not None]
        rows += len(settled)
        failed += sum(bool(value.error) for value in settled)
        for value in settled if found else ():
            if not value.error:
                widen(found, value)
    return types | found, rows, failed


def settled_rows(
    dataset: Dataset, plan: OutputPlan, index: RowIndex, limit: int | None, schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    """The rows that have a result, in input order, with the columns of `schema`."""
    kept = plan.kept_columns(dataset)
    columns = list(dict.fromkeys([*kept, *plan.keys.columns]))
    for batch, values in joined(dataset, columns, plan.keys, index, limit):
        chosen = np.flatnonzero([value is not None for value in values])
        if not len(chosen):
            continue
        inputs = batch.select(kept).take(indices(chosen)).columns if kept else []
        outputs = output_columns([values[at] for at in chosen], plan.schema, schema)
        yield pa.RecordBatch.from_arrays([*inputs, *outputs], schema=schema)
