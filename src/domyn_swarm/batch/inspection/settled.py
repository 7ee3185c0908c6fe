"""The content of a checkpoint for an input, finished or not: its answers so far, and its
failures.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa

from domyn_swarm.batch.checkpoint.index import RowIndex, open_index
from domyn_swarm.batch.checkpoint.segments import has_void
from domyn_swarm.batch.column_values import python_values, rows_at
from domyn_swarm.batch.durable_files import written_whole
from domyn_swarm.batch.input.row_keys import RowKeys
from domyn_swarm.batch.input.text_dataset import open_columns
from domyn_swarm.batch.outcomes.row_outcomes import ERROR_COLUMN, RowError, RowValue
from domyn_swarm.batch.outcomes.tally import failure_signature
from domyn_swarm.batch.outcomes.verdicts import Reading, error_of, outcome_of, verdict_of
from domyn_swarm.batch.output.open_types import OpenTypes, for_parquet, typed
from domyn_swarm.batch.output.ordered_results import ordered_results
from domyn_swarm.batch.output.output_schema import ERROR_TYPE
from domyn_swarm.batch.output.part_writer import PartWriter
from domyn_swarm.batch.output.row_join import error_decoder, joined
from domyn_swarm.batch.run.engine import BatchPlan
from domyn_swarm.errors import JobError
from domyn_swarm.model import FailureGroup, ReplyVerdict

_INPUT_CHARACTERS = 200


@dataclass(frozen=True)
class BadRow:
    """One row that failed, or whose answer is not complete, with its batch of the input."""

    ordinal: int
    verdict: ReplyVerdict
    error: RowError  # for an answer that counts: in what way it is not complete
    kept: bool  # the answer counts
    batch: pa.RecordBatch
    at: int  # position in the batch


@contextlib.contextmanager
def opened_index(plan: BatchPlan, reading: Reading | None = None) -> Iterator[RowIndex]:
    """The settled rows of a job now, whether or not it runs.

    Args:
        plan: the job's.
        reading: how results are read, if not as they count.

    Raises:
        JobError: the job has no checkpoint.
    """
    if not plan.folder.is_dir():
        raise JobError(
            f"There is no checkpoint at {plan.folder}.",
            hint="The job has not begun, ran with --no-checkpointing, or its checkpoint was "
            "removed.",
        )
    keys = plan.output.keys
    index = open_index(plan.place.readable(keys), keys, reading or Reading(plan.accept))
    try:
        yield index
    finally:
        index.frames.close()


def settled_batches(
    plan: BatchPlan, reading: Reading | None = None
) -> Iterator[tuple[pa.RecordBatch, list[RowValue | None]]]:
    """Every input batch with each row's result so far, None if it has none yet.

    Args:
        plan: the job's.
        reading: how results are read, if not as they count.

    Raises:
        JobError: the job has no checkpoint.
    """
    keys = plan.output.keys
    columns = list(dict.fromkeys([*plan.dataset.schema.names, *keys.columns]))
    with opened_index(plan, reading) as index:
        results = ordered_results(plan.dataset, keys, index, plan.limit)
        yield from joined(plan.dataset, columns, results, plan.limit)


class SettledRow(NamedTuple):
    """One row that has a result."""

    ordinal: int
    columns: dict[str, Any]  # its id, and the columns that the job reads, as JSON
    value: RowValue


def settled_rows(plan: BatchPlan) -> Iterator[SettledRow]:
    """The rows that have a result, in input order, including errors of a run whose errors do not
    count. Raises as `settled_batches`.
    """
    keys, start = plan.output.keys, 0
    for batch, values in settled_batches(plan, _with_void(plan)):
        items = keys.items(batch)
        if len(keys.input_columns) == 1:
            items = [{keys.input_columns[0]: item} for item in items]
        ids = [None] * len(items)
        if keys.id_column is not None:
            ids = python_values(batch.column(keys.id_column))
        for at, value in enumerate(values):
            if value is not None:
                named = {} if keys.id_column is None else {keys.id_column: ids[at]}
                columns = json.loads(json.dumps({**named, **items[at]}, default=str))
                yield SettledRow(start + at, columns, value)
        start += batch.num_rows


def bad_rows(plan: BatchPlan) -> Iterator[BadRow]:
    """The rows with an error, and those whose answers are not complete, in input order. They
    include errors of a run that gave up: any other run sends these rows again, and its user wants
    to see them. Raises as `settled_batches`.
    """
    start = 0
    for batch, values in settled_batches(plan, _with_void(plan)):
        for at, value in enumerate(values):
            if value is None or not (value.error or value.code):
                continue
            failure = value.error
            error = (
                error_decoder.decode(failure) if failure else error_of(value.code, value.attempts)
            )
            verdict = verdict_of(outcome_of(value))
            yield BadRow(start + at, verdict, error, not failure, batch, at)
        start += batch.num_rows


def group_failures(plan: BatchPlan) -> list[FailureGroup]:
    """The failed rows by signature, the most frequent first, and then answers that count although
    they are not complete. Raises as `settled_batches`.
    """
    groups: dict[tuple[bool, str], FailureGroup] = {}
    for row in bad_rows(plan):
        key = row.kept, failure_signature(row.error.type, row.error.message)
        known = groups.get(key)
        groups[key] = (
            known.model_copy(update={"rows": known.rows + 1})
            if known is not None
            else FailureGroup(
                signature=key[1],
                verdict=row.verdict,
                kept=row.kept,
                rows=1,
                status=row.error.status,
                example_row=row.ordinal,
                example_id=_id_of(plan.output.keys, row),
                example_input=_input_of(plan.output.keys, row),
                example_message=row.error.message,
            )
        )
    return sorted(groups.values(), key=lambda one: (one.kept, -one.rows, one.example_row))


def ids_of(plan: BatchPlan, ordinals: Collection[int]) -> dict[int, str]:
    """The ids of rows by their positions in the input; empty without an id column."""
    column, start, found = plan.output.keys.id_column, 0, dict[int, str]()
    if column is None or not ordinals:
        return found
    for batch in plan.dataset.batches([column], limit=plan.limit):
        here = [one for one in ordinals if start <= one < start + batch.num_rows]
        values = rows_at(batch.column(column), [one - start for one in here])
        found.update(zip(here, map(str, python_values(values)), strict=True))
        start += batch.num_rows
        if start > max(ordinals):
            break
    return found


def _id_of(keys: RowKeys, row: BadRow) -> str | None:
    if keys.id_column is None:
        return None
    [value] = python_values(row.batch.column(keys.id_column).slice(row.at, 1))
    return str(value)


def _input_of(keys: RowKeys, row: BadRow) -> str:
    """The beginning of the row's input to the job; as JSON if it is not text."""
    [item] = keys.items(row.batch.slice(row.at, 1))
    text = item if isinstance(item, str) else msgspec.json.encode(item, enc_hook=str).decode()
    return text[:_INPUT_CHARACTERS]


class Unsettled(NamedTuple):
    """The rows that a resume sends."""

    rows: int
    failed: int  # of them: sent, and failed in a run that gave up


def count_unsettled(plan: BatchPlan) -> Unsettled:
    """The number of rows without a result that counts.

    Raises:
        JobError: the job has no checkpoint.
    """
    settled = _rows_found(plan, Reading(plan.accept))
    if settled == plan.rows or not has_void(plan.folder):
        return Unsettled(plan.rows - settled, 0)
    return Unsettled(plan.rows - settled, _rows_found(plan, _with_void(plan)) - settled)


def _with_void(plan: BatchPlan) -> Reading:
    return Reading(plan.accept, void_counts=True)


def _rows_found(plan: BatchPlan, reading: Reading) -> int:
    start = rows = 0
    with opened_index(plan, reading) as index:
        for batch in plan.dataset.batches(plan.output.keys.columns, limit=plan.limit):
            rows += int(index.match(start, plan.output.keys.digests(batch, start)).found.sum())
            start += batch.num_rows
    return rows


def asks_again(plan: BatchPlan) -> bool:
    """Whether the input has a row that the plan sends again.

    Raises:
        JobError: the job has no checkpoint.
    """
    reading = Reading(plan.accept, plan.again)
    start = 0
    with opened_index(plan, reading.as_asked) as index:
        for batch in plan.dataset.batches(plan.output.keys.columns, limit=plan.limit):
            found = index.match(start, plan.output.keys.digests(batch, start))
            if reading.asked_again[found.outcome[found.found]].any():
                return True
            start += batch.num_rows
    return False


def _failed_rows(plan: BatchPlan) -> Iterator[BadRow]:
    return (row for row in bad_rows(plan) if not row.kept)


def export_failures(plan: BatchPlan, path: Path) -> int:
    """Write the failed rows with all their columns and their errors as Parquet; returns their
    number.

    Raises:
        JobError: the job has no checkpoint, or the file cannot be written; none is left.
    """
    names = plan.dataset.schema.names
    raw = plan.dataset.schema.append(pa.field(ERROR_COLUMN, ERROR_TYPE))
    types = OpenTypes(open_columns(plan.dataset))
    for row in _failed_rows(plan) if types.names else ():
        types.look(row.batch.slice(row.at, 1))
    schema, _ = for_parquet(types.settled(raw))
    rows = 0
    with (
        written_whole(path) as temporary,
        PartWriter(path.parent, schema, lambda _: temporary.name) as writer,
    ):
        for row in _failed_rows(plan):
            inputs = rows_at(row.batch.select(names), [row.at])  # a slice keeps the batch
            error = pa.array([msgspec.structs.asdict(row.error)], ERROR_TYPE)
            whole = pa.RecordBatch.from_arrays([*inputs.columns, error], schema=raw)
            writer.write(typed(whole, schema))
            rows += 1
        writer.finish()
    return rows
