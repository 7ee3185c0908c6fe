"""What a checkpoint holds of an input, finished or not: its answers so far, and its failures."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pyarrow as pa

from domyn_swarm.batch.arrow_arrays import indices
from domyn_swarm.batch.engine import BatchPlan
from domyn_swarm.batch.index import RowIndex, open_index
from domyn_swarm.batch.open_types import OpenTypes, for_parquet, typed
from domyn_swarm.batch.output_files import written_whole
from domyn_swarm.batch.output_rows import error_decoder, joined
from domyn_swarm.batch.part_writer import PartWriter
from domyn_swarm.batch.rows import RowError, RowValue
from domyn_swarm.batch.schema import ERROR_COLUMN, ERROR_TYPE
from domyn_swarm.batch.tally import failure_signature
from domyn_swarm.batch.text_dataset import open_columns
from domyn_swarm.errors import JobError
from domyn_swarm.model import FailureGroup


@dataclass(frozen=True)
class FailedRow:
    """One row that was given up, with its batch of the input."""

    ordinal: int
    error: RowError
    batch: pa.RecordBatch
    at: int  # in the batch


@contextlib.contextmanager
def opened_index(plan: BatchPlan) -> Iterator[RowIndex]:
    """What is settled of a job now, whether or not it runs.

    Raises:
        JobError: the job has no checkpoint.
    """
    folder = plan.checkpoint_root / plan.identity.digest
    if not folder.is_dir():
        raise JobError(
            f"There is no checkpoint at {folder}.",
            hint="The job has not begun, ran with --no-checkpointing, or its checkpoint was "
            "removed.",
        )
    index = open_index(folder, plan.output.keys)
    try:
        yield index
    finally:
        index.frames.close()


def settled_batches(plan: BatchPlan) -> Iterator[tuple[pa.RecordBatch, list[RowValue | None]]]:
    """Every input batch with each row's result so far, None where there is none yet.

    Raises:
        JobError: the job has no checkpoint.
    """
    keys = plan.output.keys
    columns = list(dict.fromkeys([*plan.dataset.schema.names, *keys.columns]))
    with opened_index(plan) as index:
        yield from joined(plan.dataset, columns, keys, index, plan.limit)


def failed_rows(plan: BatchPlan) -> Iterator[FailedRow]:
    """The rows that carry an error, in input order. Raises as `settled_batches`."""
    start = 0
    for batch, values in settled_batches(plan):
        for at, value in enumerate(values):
            if value is not None and value.error:
                yield FailedRow(start + at, error_decoder.decode(value.error), batch, at)
        start += batch.num_rows


def group_failures(plan: BatchPlan) -> list[FailureGroup]:
    """The failed rows by signature, the commonest first. Raises as `settled_batches`."""
    groups: dict[str, FailureGroup] = {}
    for row in failed_rows(plan):
        signature = failure_signature(row.error.type, row.error.message)
        known = groups.get(signature)
        groups[signature] = (
            known.model_copy(update={"rows": known.rows + 1})
            if known is not None
            else FailureGroup(
                signature=signature,
                rows=1,
                status=row.error.status,
                example_row=row.ordinal,
                example_message=row.error.message,
            )
        )
    return sorted(groups.values(), key=lambda group: (-group.rows, group.example_row))


def export_failures(plan: BatchPlan, path: Path) -> int:
    """Write the failed rows, whole, with their errors, as Parquet; return how many there are.

    Raises:
        JobError: the job has no checkpoint, or the file cannot be written; none is left.
    """
    names = plan.dataset.schema.names
    raw = plan.dataset.schema.append(pa.field(ERROR_COLUMN, ERROR_TYPE))
    types = OpenTypes(open_columns(plan.dataset))
    for row in failed_rows(plan) if types.names else ():
        types.look(row.batch.slice(row.at, 1))
    schema, _ = for_parquet(types.settled(raw))
    rows = 0
    with (
        written_whole(path) as temporary,
        PartWriter(path.parent, schema, lambda _: temporary.name) as writer,
    ):
        for row in failed_rows(plan):
            inputs = row.batch.select(names).take(indices([row.at]))  # a slice keeps the batch
            error = pa.array([msgspec.structs.asdict(row.error)], ERROR_TYPE)
            whole = pa.RecordBatch.from_arrays([*inputs.columns, error], schema=raw)
            writer.write(typed(whole, schema))
            rows += 1
        writer.finish()
    return rows
