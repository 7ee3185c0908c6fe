"""From input and results to the output's files: a streaming join in input order, then a rename.

Memory does not grow with the rows. Types that the schema leaves open are settled in a first pass
over the results, so that no batch can disagree with another.
"""

from __future__ import annotations

import functools
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from domyn_swarm.batch.arrow_arrays import array, flags
from domyn_swarm.batch.arrow_types import fit, type_of, unify
from domyn_swarm.batch.dataset import Dataset
from domyn_swarm.batch.index import RowIndex
from domyn_swarm.batch.manifest import (
    ColumnFacts,
    InputFacts,
    JobFacts,
    Manifest,
    RowCounts,
    TokenCounts,
    versions,
)
from domyn_swarm.batch.output_files import (
    KIND_OF_SUFFIX,
    SHARD_ROWS,
    Place,
    opener_of,
    shard_name,
    write_synced,
)
from domyn_swarm.batch.part_writer import LibrarySink, OpenSink, PartWriter, WriteFile
from domyn_swarm.batch.remote_output import place_of
from domyn_swarm.batch.row_keys import Digests, RowKeys, agree
from domyn_swarm.batch.rows import RowError, RowValue
from domyn_swarm.batch.schema import ERROR_COLUMN, ERROR_TYPE, OutputSchema
from domyn_swarm.batch.text_forms import FORMS, TextForm
from domyn_swarm.batch.verdicts import outcome_of, verdict_of
from domyn_swarm.batch.written_files import IDENTITY_KEY
from domyn_swarm.errors import InvalidInput, JobError
from domyn_swarm.model import ReplyVerdict, utc_now

OutputMode = Literal["append", "replace", "io_only"]

error_decoder = msgspec.json.Decoder(RowError)


class ResultsMissing(Exception):
    """Some rows have no readable result: a damaged file. They have to be asked again."""

    def __init__(self, ordinals: set[int]) -> None:
        super().__init__(f"{len(ordinals)} results cannot be read")
        self.ordinals = ordinals


@dataclass(frozen=True)
class OutputPlan:
    """Which columns the output has, where it goes, and what its manifest says of the job."""

    target: str  # a path or URL
    mode: OutputMode
    keys: RowKeys
    schema: OutputSchema
    job: JobFacts
    input_path: str
    sharded: bool = False  # a folder of files instead of one
    write: WriteFile | None = None  # how a library writes each file; None: as usual
    lines: TextForm | None = None  # how the job writes JSON Lines; None: an object of the columns

    @property
    def place(self) -> Place:
        """Where the files lie."""
        return place_of(self.target, sharded=self.sharded, identity=self.job.identity)

    @property
    def kind(self) -> str:
        """What the files hold, by their name; nothing when that is not known."""
        suffix = PurePosixPath(self.target).suffix
        return "parquet" if self.sharded else KIND_OF_SUFFIX.get(suffix, "")

    @property
    def form(self) -> TextForm | None:
        """What the files' text looks like; None for Parquet."""
        lines = self.lines if self.kind == "jsonl" else None
        return lines or FORMS.get(self.kind)

    @property
    def open_sink(self) -> OpenSink:
        """What writes each file."""
        if self.write is None:
            return opener_of(self.kind, self.form)
        return functools.partial(LibrarySink, self.write)

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
                kind is not supported, or a library does not write such a file.
            OutputExists: something this job did not write lies at the path.
        """
        if not self.kind:
            raise InvalidInput(
                f"The output {self.target} is of no kind that can be written.",
                hint=f"Give --output a path that ends in one of {', '.join(KIND_OF_SUFFIX)}, or "
                "write a folder of shards with --shard-output.",
            )
        self.check_names(dataset)
        self.place.check()
        if self.write is not None:
            self._try_writing(self.write, dataset)

    def _try_writing(self, write: WriteFile, dataset: Dataset) -> None:
        """Write a file without rows, with what is known of the columns."""
        kept = [dataset.schema.field(name) for name in self.kept_columns(dataset)]
        with tempfile.TemporaryDirectory(prefix="domyn-swarm-") as folder:
            path = Path(folder) / "empty.parquet"
            write(pa.schema(kept).empty_table(), path)
            if not path.is_file():
                raise InvalidInput(
                    "--backend-write-kwargs: that library then writes no single file.",
                    hint="Leave out what makes it write a folder; --shard-output makes one.",
                )

    def check_names(self, dataset: Dataset) -> None:
        """Refuse columns that there would be twice.

        Raises:
            InvalidInput: an output column has the name of a kept input column.
        """
        taken = {*self.kept_columns(dataset), ERROR_COLUMN} & {*self.schema.names}
        taken |= {ERROR_COLUMN} & {*self.kept_columns(dataset)}
        if taken:
            raise InvalidInput(
                f"The output columns {sorted(taken)} are already in the input.",
                hint="Choose other names with --output-column, or --output-mode replace.",
            )


def publish(dataset: Dataset, plan: OutputPlan, index: RowIndex, limit: int | None) -> RowCounts:
    """Write the output and its manifest; return what its rows came to.

    The output appears whole or not at all.

    Raises:
        ResultsMissing: rows without a readable result; nothing was written.
        OutputExists: something this job did not write has come to lie at the path.
        JobError: the output cannot be written.
    """
    types, failed = _settle_types(dataset, plan, index, limit)
    fields = output_fields(dataset, plan, types, errors=failed > 0)
    schema = pa.schema(fields, metadata={IDENTITY_KEY: plan.job.identity.encode()})
    place = plan.place
    name, manifest_name = place.names
    name_of = shard_name if plan.sharded else lambda _: name
    try:
        with place.stage() as stage:
            rows_per_file = SHARD_ROWS if plan.sharded else None
            with PartWriter(stage, schema, name_of, rows_per_file, plan.open_sink) as writer:
                counts = _write_rows(writer, dataset, plan, index, limit)
                files = writer.finish()
            manifest = Manifest(
                **counts.model_dump(),
                job=plan.job,
                input=InputFacts(path=plan.input_path, rows=dataset.rows),
                limit=limit,
                output_mode=plan.mode,
                columns=columns_of(_as_read(stage / files[0].name, schema)),
                files=tuple(files),
                versions=versions(),
                created_at=utc_now(),
            )
            write_synced(stage / manifest_name, manifest.model_dump_json(indent=2) + "\n")
            place.put(stage)
    except (OSError, InvalidInput) as error:
        told = error.message if isinstance(error, InvalidInput) else f"{error.strerror or error}."
        raise JobError(
            f"Cannot write the output {plan.target}: {told}",
            hint="Mend that and submit the same job again: no row will be asked twice.",
        ) from error
    return counts


def _as_read(path: Path, schema: pa.Schema) -> pa.Schema:
    """The columns as readers find them: Parquet has not all of Arrow's types."""
    return pq.read_schema(path) if path.suffix == ".parquet" else schema


def output_fields(
    dataset: Dataset, plan: OutputPlan, types: dict[str, pa.DataType], *, errors: bool
) -> list[pa.Field]:
    """The output's columns: those kept of the input, the answers, and the errors if asked for."""
    fields = [dataset.schema.field(name) for name in plan.kept_columns(dataset)]
    fields += [pa.field(name, kind) for name, kind in types.items()]
    if errors:
        fields.append(pa.field(ERROR_COLUMN, ERROR_TYPE))
    return fields


def columns_of(schema: pa.Schema) -> tuple[ColumnFacts, ...]:
    """Names and types, as a manifest tells them."""
    return tuple(ColumnFacts(name=field.name, type=str(field.type)) for field in schema)


def _write_rows(
    writer: PartWriter,
    dataset: Dataset,
    plan: OutputPlan,
    index: RowIndex,
    limit: int | None,
) -> RowCounts:
    """Every input row with its answer; raises `ResultsMissing` when some have none."""
    kept = plan.kept_columns(dataset)
    columns = list(dict.fromkeys([*kept, *plan.keys.columns]))
    missing: set[int] = set()
    start = failed = empty = prompt = completion = 0
    verdicts: Counter[ReplyVerdict] = Counter()
    for batch, values in joined(dataset, columns, plan.keys, index, limit):
        missing.update(start + at for at, value in enumerate(values) if value is None)
        start += batch.num_rows
        if missing:
            continue
        inputs = [batch.column(name) for name in kept]
        outputs = output_columns(values, plan.schema, writer.schema)
        whole = pa.RecordBatch.from_arrays([*inputs, *outputs], schema=writer.schema)
        writer.write(whole)
        verdicts.update(verdict_of(outcome_of(value)) for value in values if value is not None)
        errors = [value for value in values if value is not None and value.error]
        failed += len(errors)
        empty += int(without_answer(whole, plan.schema.names).sum()) - len(errors)
        prompt += sum(value.prompt_tokens for value in values if value is not None)
        completion += sum(value.completion_tokens for value in values if value is not None)
    if missing:
        raise ResultsMissing(missing)
    tokens = TokenCounts(prompt=prompt, completion=completion)
    return RowCounts(
        rows=start, rows_failed=failed, rows_empty=empty, verdicts=dict(verdicts), tokens=tokens
    )


def without_answer(batch: pa.RecordBatch, names: Sequence[str]) -> NDArray[np.bool_]:
    """Which rows have null in every one of the answer columns."""
    nulls = [flags(batch.column(name).is_null()) for name in names]
    rows: NDArray[np.bool_] = np.logical_and.reduce(nulls)
    return rows


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
                widen(found, value)
    return {name: types.get(name) or found[name] for name in plan.schema.names}, failed


def widen(found: dict[str, pa.DataType], value: RowValue) -> None:
    """Make the types of some columns wide enough for one more answer."""
    decoded = msgspec.json.decode(value.output)
    for name, known in found.items():
        found[name] = unify(known, type_of(decoded.get(name)))


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


def output_columns(
    values: Sequence[RowValue | None], schema: OutputSchema, arrow: pa.Schema
) -> list[pa.Array]:
    """The output columns behind the input's: the schema's, then the errors where there are any."""
    rows: list[dict[str, Any]] = [
        msgspec.json.decode(value.output) if value is not None and value.output else {}
        for value in values
    ]
    kinds = {name: arrow.field(name).type for name in schema.names}
    arrays = [
        array([fit(row.get(name), kind) for row in rows], kind) for name, kind in kinds.items()
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
