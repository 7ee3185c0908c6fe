"""What a job came to, to be read: all of a written output, or what is settled so far.

A batch at a time: nothing here holds more than one, but for `Results.table`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from domyn_swarm.batch.dataset import Dataset
from domyn_swarm.batch.engine import BatchPlan
from domyn_swarm.batch.input_files import InputFile
from domyn_swarm.batch.inspection import opened_index
from domyn_swarm.batch.manifest import Manifest
from domyn_swarm.batch.open_types import OpenTypes, typed
from domyn_swarm.batch.opening import dataset_of
from domyn_swarm.batch.output_files import Place
from domyn_swarm.batch.output_rows import OutputRows
from domyn_swarm.batch.table_dataset import TableDataset
from domyn_swarm.batch.text_dataset import open_columns


@dataclass(frozen=True)
class Results:
    """Rows in input order with the columns of the output, readable for as long as they are open.

    In `untyped` rows, columns whose types only their values tell are JSON.
    """

    rows: int
    rows_failed: int  # of them
    rows_total: int  # that the job is about
    raw: pa.Schema
    untyped: Callable[[], Iterator[pa.RecordBatch]]  # may be called more than once
    look: Callable[[], OpenTypes]  # at the values of all rows

    @functools.cached_property
    def schema(self) -> pa.Schema:
        """The columns with their types."""
        return self.look().settled(self.raw)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows, with the columns of `schema`."""
        for batch in self.untyped():
            yield typed(batch, self.schema)

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
    """An output that was published; JSON has the types that its values have, CSV is text.

    Raises:
        InvalidInput: a file of it is gone or damaged.
    """
    written = _opened(manifest, place.files(manifest))

    def look() -> OpenTypes:
        types = OpenTypes(open_columns(written))
        for batch in written.batches(types.names) if types.names else ():
            types.look(batch)
        return types

    return Results(
        rows=written.rows,
        rows_failed=manifest.rows_failed,
        rows_total=manifest.rows,
        raw=written.schema,
        untyped=written.batches,
        look=look,
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
        rows = OutputRows(
            plan.dataset,
            plan.output.keys,
            plan.output.kept_columns(plan.dataset),
            plan.output.schema,
            index,
            plan.limit,
        )
        found = rows.survey()
        raw = rows.schema(errors=errors or found.rows_failed > 0)
        yield Results(
            rows=found.rows,
            rows_failed=found.rows_failed,
            rows_total=plan.rows,
            raw=raw,
            untyped=lambda: settled_batches(rows, raw),
            look=lambda: found.types,
        )


def settled_batches(rows: OutputRows, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The rows that have a result, in batches that have some."""
    for batch, _ in rows.with_results(schema):
        if batch.num_rows:
            yield batch
