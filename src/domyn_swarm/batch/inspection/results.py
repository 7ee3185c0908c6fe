"""A job's results, read or exported: all of a written output, or the rows settled so far."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from typing_extensions import override

from domyn_swarm.batch.checkpoint.index import FrameFiles, Matches, RowIndex
from domyn_swarm.batch.column_values import as_text, without_json
from domyn_swarm.batch.durable_files import written_whole
from domyn_swarm.batch.input.dataset import Dataset, TableDataset
from domyn_swarm.batch.input.input_files import InputFile
from domyn_swarm.batch.input.opening import dataset_of
from domyn_swarm.batch.input.row_keys import Digests
from domyn_swarm.batch.input.text_dataset import open_columns
from domyn_swarm.batch.inspection.settled import opened_index
from domyn_swarm.batch.outcomes.row_outcomes import ERROR_COLUMN
from domyn_swarm.batch.output.manifest import Manifest
from domyn_swarm.batch.output.open_types import OpenTypes, for_parquet, typed
from domyn_swarm.batch.output.output_files import KIND_OF_SUFFIX, Place, opener_of
from domyn_swarm.batch.output.part_writer import PartWriter
from domyn_swarm.batch.output.row_join import OutputRows, Survey, answer_schema
from domyn_swarm.batch.run.engine import BatchPlan
from domyn_swarm.errors import ConfigError, JobError, quantity


def check_export(path: Path, taken: Sequence[Path] = ()) -> None:
    """Refuse a file of a kind that cannot be written, and one that would replace the job's own.

    Raises:
        ConfigError: names the kinds, or the owner of the path.
    """
    if path.suffix.lower() not in KIND_OF_SUFFIX:
        raise ConfigError(
            f"{path} cannot be written: its name says no kind of file.",
            hint=f"Give a name that ends in one of {', '.join(KIND_OF_SUFFIX)}.",
        )
    for one in taken:
        if path.resolve().is_relative_to(one.resolve()):
            raise ConfigError(
                f"{path} belongs to the job's own input or output, {one}.",
                hint="Export to another place.",
            )


def export(results: Results, path: Path) -> None:
    """Write results to a file by its suffix (see `check_export`); an existing file is replaced.

    Types that Parquet does not support are written as JSON text, so no type makes it fail.

    Raises:
        JobError: it cannot be written; no part of it is left.
    """
    kind = KIND_OF_SUFFIX[path.suffix.lower()]
    schema = for_parquet(results.schema)[0] if kind == "parquet" else results.raw
    # Without the metadata that marks a file as a job's output: an export may not be replaced by
    # one.
    schema = schema.remove_metadata()
    with (
        written_whole(path) as temporary,
        PartWriter(
            path.parent, schema, lambda _: temporary.name, open_sink=opener_of(kind)
        ) as writer,
    ):
        for batch in results.untyped():
            writer.write(typed(batch.replace_schema_metadata(None), schema))
        writer.finish()


class _ShiftedIndex(RowIndex):
    """An index of the whole input, shifted to a block of it."""

    in_order = False  # within the block

    def __init__(self, index: RowIndex, first: int) -> None:
        self.frames: FrameFiles = index.frames
        self._index = index
        self._first = first

    @override
    def match(self, first_ordinal: int, digests: Digests) -> Matches:
        return self._index.match(self._first + first_ordinal, digests)


def block_facts(plan: BatchPlan, block: pa.Table, first: int) -> Survey:
    """A survey of the results of the rows `first, first + 1, …`, which the block holds."""
    with opened_index(plan) as index:
        return _rows(plan, TableDataset(block), _ShiftedIndex(index, first)).survey()


def _rows(plan: BatchPlan, dataset: Dataset, index: RowIndex) -> OutputRows:
    kept = plan.output.kept_columns(dataset)
    return OutputRows(dataset, plan.output.keys, kept, plan.output.schema, index, None)


def common_schema(plan: BatchPlan, facts: Sequence[Survey]) -> pa.Schema:
    """The columns of all blocks; with an error column if any row has an error.

    Raises:
        JobError: some rows have no result.
    """
    missing = plan.rows - sum(one.rows for one in facts)
    if missing:
        raise JobError(
            f"{quantity(missing, 'result')} cannot be read again.",
            hint="Run it again: only those rows are sent.",
        )
    failed = any(one.rows_failed for one in facts)
    kept = plan.output.kept_columns(plan.dataset).fields
    raw = answer_schema(kept, plan.output.schema, errors=failed)
    types = OpenTypes([name for name, kind in plan.output.schema.arrow.items() if kind is None])
    for one in facts:
        types.merge(one.types)
    return types.settled(raw)


def join_block(plan: BatchPlan, block: pa.Table, first: int, schema: pa.Schema) -> pa.Table:
    """The block's rows with their results, in the types of a schema; JSON as text."""
    with opened_index(plan) as index:
        rows = _rows(plan, TableDataset(block), _ShiftedIndex(index, first))
        raw = rows.schema(errors=ERROR_COLUMN in schema.names)
        batches = [as_text(typed(batch, schema)) for batch in settled_batches(rows, raw)]
        return pa.Table.from_batches(batches, without_json(schema))


@dataclass(frozen=True)
class Results:
    """Rows in input order with the columns of the output, readable for as long as they are open.

    In `untyped` rows, columns whose types depend on their values are JSON.
    """

    rows: int
    rows_failed: int  # of these rows
    rows_total: int  # rows of the job
    raw: pa.Schema
    untyped: Callable[[], Iterator[pa.RecordBatch]]  # may be called more than once
    look: Callable[[], OpenTypes]  # reads the values of all rows

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
    """A published output; JSON has the types of its values, CSV is text.

    Raises:
        InvalidInput: a file of it is missing or damaged.
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
    if files[0].kind == "jsonl" and not manifest.rows:  # without rows no line names the columns
        names = [(column.name, pa.null()) for column in manifest.columns]
        return TableDataset(pa.schema(names).empty_table())
    return dataset_of(files)


@contextlib.contextmanager
def settled_results(plan: BatchPlan, *, errors: bool = True) -> Iterator[Results]:
    """The rows that have an answer or an error by now, whether or not the job runs.

    Later answers are not included. Without `errors` there is an error column only if some row has
    an error, as in an output.

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
