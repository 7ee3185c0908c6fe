"""From input and results to the output file: a streaming join in input order, then one rename.

Memory does not grow with the rows. Types that the schema leaves open are settled in a first pass
over the results, so that no batch can disagree with another.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from domyn_swarm.batch.dataset import Dataset
from domyn_swarm.batch.index import RowIndex
from domyn_swarm.batch.row_keys import Digests, RowKeys, agree
from domyn_swarm.batch.rows import RowError, RowValue
from domyn_swarm.batch.schema import ERROR_COLUMN, ERROR_TYPE, OutputSchema, fit, type_of, unify
from domyn_swarm.errors import InvalidInput, JobError, OutputExists

OutputMode = Literal["append", "replace", "io_only"]
_IDENTITY_KEY = b"domyn_swarm.identity"
_ROW_GROUP_ROWS = 64 * 1024

error_decoder = msgspec.json.Decoder(RowError)


class ResultsMissing(Exception):
    """Some rows have no readable result: a damaged file. They have to be asked again."""

    def __init__(self, ordinals: set[int]) -> None:
        super().__init__(f"{len(ordinals)} results cannot be read")
        self.ordinals = ordinals


@dataclass(frozen=True)
class OutputPlan:
    """Which columns the output has, and where it goes."""

    path: Path
    mode: OutputMode
    keys: RowKeys
    schema: OutputSchema
    identity: str

    def kept_columns(self, dataset: Dataset) -> list[str]:
        """The input columns that the output keeps, in the input's order."""
        inputs = set(self.keys.input_columns)
        names = dataset.schema.names
        if self.mode == "append":
            return list(names)
        if self.mode == "replace":
            return [name for name in names if name not in inputs]
        return [name for name in names if name in inputs or name == self.keys.id_column]

    def check(self, dataset: Dataset) -> None:
        """Refuse an output that cannot be written, before anything is asked.

        Raises:
            InvalidInput: an output column has the name of a kept input column, or the path's
                kind is not supported.
            OutputExists: something this job did not write lies at the path.
        """
        if self.path.suffix != ".parquet":
            raise InvalidInput(
                f"The output {self.path} is not a .parquet file.",
                hint="Give --output a path that ends in .parquet.",
            )
        taken = {*self.kept_columns(dataset), ERROR_COLUMN} & {*self.schema.names}
        taken |= {ERROR_COLUMN} & {*self.kept_columns(dataset)}
        if taken:
            raise InvalidInput(
                f"The output columns {sorted(taken)} are already in the input.",
                hint="Choose other names with --output-column, or --output-mode replace.",
            )
        if self.path.exists() and written_identity(self.path) != self.identity:
            raise OutputExists(
                f"{self.path} exists and holds something else than this job's output.",
                hint="Move it away or choose another --output.",
            )


def written_identity(path: Path) -> str | None:
    """The identity of the job that wrote an output file; None when it is none of ours."""
    try:
        metadata = pq.read_metadata(path).metadata or {}
    except (pa.ArrowException, OSError):
        return None
    found = metadata.get(_IDENTITY_KEY)
    return None if found is None else found.decode()


def publish(dataset: Dataset, plan: OutputPlan, index: RowIndex, limit: int | None) -> int:
    """Write the output; return how many rows carry an error.

    The file appears whole or not at all.

    Raises:
        ResultsMissing: rows without a readable result; nothing was written.
        JobError: the output cannot be written.
    """
    types, failed = _settle_types(dataset, plan, index, limit)
    fields = [dataset.schema.field(name) for name in plan.kept_columns(dataset)]
    fields += [pa.field(name, kind) for name, kind in types.items()]
    if failed:
        fields.append(pa.field(ERROR_COLUMN, ERROR_TYPE))
    schema = pa.schema(fields, metadata={_IDENTITY_KEY: plan.identity.encode()})
    temporary = plan.path.with_name(f".{plan.path.name}.{os.getpid()}.partial")
    try:
        plan.path.parent.mkdir(parents=True, exist_ok=True)
        with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            _write_rows(writer, dataset, plan, index, limit)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(plan.path)
    except OSError as error:
        raise JobError(
            f"Cannot write the output {plan.path}: {error.strerror or error}.",
            hint="Mend that and submit the same job again: no row will be asked twice.",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return failed


def _write_rows(
    writer: pq.ParquetWriter,
    dataset: Dataset,
    plan: OutputPlan,
    index: RowIndex,
    limit: int | None,
) -> None:
    """Every input row with its answer; raises `ResultsMissing` when some have none."""
    kept = plan.kept_columns(dataset)
    columns = list(dict.fromkeys([*kept, *plan.keys.columns]))
    missing: set[int] = set()
    start = 0
    for batch, values in joined(dataset, columns, plan.keys, index, limit):
        missing.update(start + at for at, value in enumerate(values) if value is None)
        start += batch.num_rows
        if not missing:
            inputs = [batch.column(name) for name in kept]
            outputs = _output_columns(values, plan.schema, writer.schema)
            table = pa.Table.from_arrays([*inputs, *outputs], schema=writer.schema)
            writer.write_table(table, row_group_size=_ROW_GROUP_ROWS)
    if missing:
        raise ResultsMissing(missing)


def _settle_types(
    dataset: Dataset, plan: OutputPlan, index: RowIndex, limit: int | None
) -> tuple[dict[str, pa.DataType], int]:
    """The output columns' types, and how many rows failed.

    Values are read only where a type is open.
    """
    types = {name: kind for name, kind in plan.schema.arrow.items() if kind is not None}
    if len(types) == len(plan.schema.names):
        return types, _count_failures(dataset, plan.keys, index, limit)
    found = {name: pa.null() for name in plan.schema.names if name not in types}
    failed = 0
    for _, values in joined(dataset, plan.keys.columns, plan.keys, index, limit):
        for value in values:
            if value is not None and value.error:
                failed += 1
            elif value is not None:
                decoded = msgspec.json.decode(value.output)
                for name, known in found.items():
                    found[name] = unify(known, type_of(decoded.get(name)))
    return {name: types.get(name) or found[name] for name in plan.schema.names}, failed


def _count_failures(dataset: Dataset, keys: RowKeys, index: RowIndex, limit: int | None) -> int:
    failed = start = 0
    for batch in dataset.batches(keys.columns, limit=limit):
        matches = index.match(start, keys.digests(batch, start))
        failed += int((matches.found & matches.failed).sum())
        start += batch.num_rows
    return failed


def joined(
    dataset: Dataset,
    columns: Sequence[str],
    keys: RowKeys,
    index: RowIndex,
    limit: int | None,
) -> Iterator[tuple[pa.RecordBatch, list[RowValue | None]]]:
    """Input batches of `columns` (the keys' among them) with each row's result.

    None where there is no readable one.
    """
    start = 0
    for batch in dataset.batches(columns, limit=limit):
        yield batch, _results(index, start, keys.digests(batch, start))
        start += batch.num_rows


def _results(index: RowIndex, start: int, digests: Digests) -> list[RowValue | None]:
    matches = index.match(start, digests)
    values: list[RowValue | None] = [None] * len(digests)
    for frame in np.unique(matches.frame[matches.found]).tolist():
        keys = index.frames.keys(frame)
        if keys is None:
            continue  # damaged
        here = np.flatnonzero(matches.frame == frame)
        rows = matches.row[here]
        same = agree(keys.digests[rows], digests[here])  # or another row whose key is alike
        for at, row in zip(here[same].tolist(), rows[same].tolist(), strict=True):
            values[at] = index.frames.value(frame, row)
    return values


def _output_columns(
    values: Sequence[RowValue | None], schema: OutputSchema, arrow: pa.Schema
) -> list[pa.Array]:
    """The output columns behind the input's: the schema's, then the errors where there are any."""
    rows: list[dict[str, Any]] = [
        msgspec.json.decode(value.output) if value is not None and value.output else {}
        for value in values
    ]
    kinds = {name: arrow.field(name).type for name in schema.names}
    arrays = [
        pa.array([fit(row.get(name), kind) for row in rows], kind) for name, kind in kinds.items()
    ]
    if ERROR_COLUMN in arrow.names:
        errors = [
            msgspec.structs.asdict(error_decoder.decode(value.error))
            if value is not None and value.error
            else None
            for value in values
        ]
        arrays.append(pa.array(errors, ERROR_TYPE))
    return arrays
