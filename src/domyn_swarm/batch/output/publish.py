"""Writes the output's files from input and results: a streaming join in input order, then a rename.

Memory does not grow with the rows. If a file has types, open types are settled in a first pass over
the rows, so that all batches agree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from domyn_swarm.batch.checkpoint.index import RowIndex
from domyn_swarm.batch.column_values import is_json
from domyn_swarm.batch.durable_files import write_synced
from domyn_swarm.batch.input.dataset import Dataset
from domyn_swarm.batch.outcomes.verdicts import outcome_of, verdict_of
from domyn_swarm.batch.output.manifest import (
    ColumnFacts,
    InputFacts,
    Manifest,
    RowCounts,
    TokenCounts,
    versions,
)
from domyn_swarm.batch.output.open_types import OpenTypes, typed
from domyn_swarm.batch.output.output_files import IDENTITY_KEY, SHARD_ROWS, shard_name
from domyn_swarm.batch.output.output_plan import OutputPlan
from domyn_swarm.batch.output.part_writer import PartWriter
from domyn_swarm.batch.output.row_join import OutputRows, without_answer
from domyn_swarm.errors import CheckpointLost, JobError, SwarmError, quantity
from domyn_swarm.logs import get_logger
from domyn_swarm.model import ReplyVerdict, utc_now

_log = get_logger(__name__)


class ResultsMissing(Exception):
    """Some rows have no readable result: a file is damaged. They have to be sent again."""

    def __init__(self, ordinals: set[int]) -> None:
        super().__init__(f"{quantity(len(ordinals), 'result')} cannot be read")
        self.ordinals = ordinals


def publish(
    dataset: Dataset,
    plan: OutputPlan,
    index: RowIndex,
    limit: int | None,
    check_held: Callable[[], None] = lambda: None,
) -> RowCounts:
    """Write the output and its manifest; returns the outcomes of its rows.

    The output appears whole or not at all. Immediately before that, `check_held` raises if this
    driver has lost its job.

    Raises:
        ResultsMissing: rows without a readable result; nothing was written.
        CheckpointLost: another driver continues; nothing was written.
        JobError: the output cannot be written, or another program has created a file at the path.
    """
    try:
        return _publish(dataset, plan, index, limit, check_held)
    except (ResultsMissing, CheckpointLost):
        raise
    except Exception as error:  # a library's, about a value or a disk: all answers are kept
        _log.debug("publishing failed", exc_info=error)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, SwarmError):
            reason = error.message
        elif isinstance(error, OSError):
            reason = f"{error.strerror or error}."
        raise JobError(
            f"Cannot write the output {plan.target}: {reason}",
            hint="Fix this and submit the same job again; finished rows are not sent again. "
            "`domyn-swarm job results JOB --partial --export FILE` writes what is there.",
        ) from error


def _publish(
    dataset: Dataset,
    plan: OutputPlan,
    index: RowIndex,
    limit: int | None,
    check_held: Callable[[], None],
) -> RowCounts:
    rows = plan.rows(dataset, index, limit)
    failed, types = _surveyed(rows, plan)
    raw = rows.schema(errors=failed > 0)
    schema, reasons = plan.typed_schema(raw, types)
    for name, why in reasons.items():
        kind = "JSON text" if is_json(schema.field(name).type) else "text"
        _log.warning("the column %r is written as %s: %s", name, kind, why)
    schema = schema.with_metadata({IDENTITY_KEY: plan.job.identity.encode()})
    place = plan.place
    name, manifest_name = place.names
    name_of = shard_name if plan.sharded else lambda _: name
    with place.stage() as stage:
        rows_per_file = SHARD_ROWS if plan.sharded else None
        sink = plan.open_sink(dataset)
        with PartWriter(stage, schema, name_of, rows_per_file, sink) as writer:
            counts = _write_rows(writer, rows, raw, plan.schema.names)
            files = writer.finish()
        manifest = Manifest(
            **counts.as_fields(),
            job=plan.job,
            input=InputFacts(path=plan.input_path, rows=dataset.rows),
            limit=limit,
            output_mode=plan.mode,
            columns=_columns(rows, _as_read(stage / files[0].name, schema), reasons),
            files=tuple(files),
            versions=versions(),
            created_at=utc_now(),
        )
        write_synced(stage / manifest_name, manifest.model_dump_json(indent=2) + "\n")
        check_held()
        place.put(stage)
    return counts


def _surveyed(rows: OutputRows, plan: OutputPlan) -> tuple[int, OpenTypes]:
    """The number of failed rows, and the shapes of open types; values are read only for these."""
    types = rows.open_types()
    if plan.has_types and types.names:
        found = rows.survey()
        return found.rows_failed, found.types
    return rows.count_failed(), types


def _as_read(path: Path, schema: pa.Schema) -> pa.Schema:
    """The columns as readers get them: Parquet does not support all of Arrow's types."""
    return pq.read_schema(path) if path.suffix.lower() == ".parquet" else schema


def _columns(
    rows: OutputRows, schema: pa.Schema, reasons: dict[str, str]
) -> tuple[ColumnFacts, ...]:
    """As `columns_of`, with each of the input's columns if rows keep their form."""
    facts = columns_of(schema, reasons)
    if rows.kept.columns == rows.kept.names:
        return facts
    kept = tuple(ColumnFacts(name=name, type="json") for name in rows.kept.names)
    return kept + facts[len(rows.kept.columns) :]


def columns_of(schema: pa.Schema, reasons: dict[str, str] | None = None) -> tuple[ColumnFacts, ...]:
    """Names and types in the form of a manifest."""
    notes = reasons or {}
    return tuple(
        ColumnFacts(
            name=field.name,
            type="json" if is_json(field.type) else str(field.type),
            note=notes.get(field.name),
        )
        for field in schema
    )


def _write_rows(
    writer: PartWriter, rows: OutputRows, raw: pa.Schema, answers: list[str]
) -> RowCounts:
    """Every input row with its answer; raises `ResultsMissing` if some have none."""
    missing: set[int] = set()
    start = failed = empty = prompt = completion = 0
    verdicts: Counter[ReplyVerdict] = Counter()
    for batch, values in rows.with_results(raw):
        missing.update(start + at for at, value in enumerate(values) if value is None)
        start += len(values)
        if missing:
            continue
        writer.write(typed(batch, writer.schema))
        verdicts.update(verdict_of(outcome_of(value)) for value in values if value is not None)
        errors = sum(bool(value.error) for value in values if value is not None)
        failed += errors
        empty += int(without_answer(batch, answers).sum()) - errors
        prompt += sum(value.prompt_tokens for value in values if value is not None)
        completion += sum(value.completion_tokens for value in values if value is not None)
    if missing:
        raise ResultsMissing(missing)
    tokens = TokenCounts(prompt=prompt, completion=completion)
    return RowCounts(
        rows=start, rows_failed=failed, rows_empty=empty, verdicts=dict(verdicts), tokens=tokens
    )
