"""The rows of an output: each input row's kept columns, joined with its result in input order."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from domyn_swarm.batch.checkpoint.index import RowIndex
from domyn_swarm.batch.column_values import (
    JSON,
    array,
    flags,
    has_no_null,
    is_json,
    json_array,
    json_texts,
    rows_at,
)
from domyn_swarm.batch.input.dataset import Dataset
from domyn_swarm.batch.input.row_keys import RowKeys
from domyn_swarm.batch.input.text_dataset import open_columns, row_column_of
from domyn_swarm.batch.outcomes.row_outcomes import ERROR_COLUMN, RowError, RowValue
from domyn_swarm.batch.output.open_types import OpenTypes
from domyn_swarm.batch.output.ordered_results import OrderedResults, ordered_results
from domyn_swarm.batch.output.output_schema import ERROR_TYPE, OutputSchema, fit

_split = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class KeptColumns:
    """Some of an input's columns, as the output has them: columns, or each row's own object.

    names: as users name them. fields: the columns of the output, before their types are settled.
    columns: those to read from the input. open: those whose types depend on their values.
    """

    def __init__(self, dataset: Dataset, names: Sequence[str], *, as_rows: bool) -> None:
        """With `as_rows`, rows that were read from JSON keep their objects."""
        self.names = list(names)
        row = row_column_of(dataset) if as_rows and names else None
        self._partly = row is not None and len(self.names) < len(dataset.schema.names)
        if row is None:
            self.fields = [dataset.schema.field(name) for name in names]
        else:
            self.fields = [pa.field(row, JSON)]
        self.columns = [field.name for field in self.fields]
        self.open = [name for name in open_columns(dataset) if name in self.columns]

    def of(self, batch: pa.RecordBatch) -> list[pa.Array]:
        """The columns of a batch of the input that has them among others."""
        if not self._partly:
            return [batch.column(name) for name in self.columns]
        wanted = {*self.names}
        rows = [_split(text) for text in json_texts(batch.column(self.columns[0])) if text]
        return [
            json_array(
                msgspec.json.encode({name: one for name, one in row.items() if name in wanted})
                for row in rows
            )
        ]


error_decoder = msgspec.json.Decoder(RowError)
_decode = msgspec.json.Decoder(dict[str, Any]).decode

Joined = tuple[pa.RecordBatch, list[RowValue | None]]


@dataclass(frozen=True)
class Survey:
    """A survey of the results of some rows."""

    types: OpenTypes
    rows: int  # settled rows
    rows_failed: int  # of these rows


@dataclass(frozen=True)
class OutputRows:
    """The rows of an input that have a result, with the kept columns and the answers."""

    dataset: Dataset
    keys: RowKeys
    kept: KeptColumns
    answers: OutputSchema
    index: RowIndex
    limit: int | None
    cells: Sequence[str] = ()  # kept columns of text that get the types of their values

    def open_types(self) -> OpenTypes:
        """The columns whose types depend on their values, before any value was examined."""
        answers = [name for name, kind in self.answers.arrow.items() if kind is None]
        return OpenTypes([*self.kept.open, *answers], self.cells)

    def schema(self, *, errors: bool) -> pa.Schema:
        """The columns: the input's kept ones, the answers, and the errors if requested."""
        return answer_schema(self.kept.fields, self.answers, errors=errors)

    def survey(self) -> Survey:
        """A survey of all results, and of the values of columns with open types."""
        schema = self.schema(errors=False)
        types = self.open_types()
        rows = failed = 0
        fields = [field for field in schema if field.name in types.names]
        for batch, values in self.with_results(pa.schema(fields)):
            types.look(batch)
            settled = [value for value in values if value is not None]
            rows += len(settled)
            failed += sum(bool(value.error) for value in settled)
        return Survey(types, rows, failed)

    @functools.cached_property
    def _results(self) -> OrderedResults:
        return ordered_results(self.dataset, self.keys, self.index, self.limit)

    def count_failed(self) -> int:
        """The number of failed rows; their values are not read."""
        return self._results.count_failed()

    def joined(self, columns: Sequence[str] = ()) -> Iterator[Joined]:
        """Batches of the input with these columns and the keys' columns, with each row's result."""
        wanted = list(dict.fromkeys([*columns, *self.keys.columns]))
        return joined(self.dataset, wanted, self._results, self.limit)

    def with_results(self, schema: pa.Schema) -> Iterator[Joined]:
        """Batches of the input, and the rows of those that have a result, with the columns of
        `schema`, which is `self.schema` or a part of it; and all results of the batch.
        """
        kept = [field for field in self.kept.fields if field.name in schema.names]
        for batch, values in self.joined([field.name for field in kept]):
            chosen = np.flatnonzero([value is not None for value in values])
            inputs = self.kept.of(batch) if kept else []
            if len(chosen) < len(values):
                inputs = [rows_at(column, chosen) for column in inputs]
            settled = [value for value in values if value is not None]
            outputs = _outputs(settled, list(schema)[len(inputs) :])
            yield pa.RecordBatch.from_arrays([*inputs, *outputs], schema=schema), values


def answer_schema(kept: Sequence[pa.Field], answers: OutputSchema, *, errors: bool) -> pa.Schema:
    """Columns of the input, followed by the answers, and by the errors if requested."""
    fields = [*kept, *(pa.field(name, kind or JSON) for name, kind in answers.arrow.items())]
    return pa.schema([*fields, pa.field(ERROR_COLUMN, ERROR_TYPE)] if errors else fields)


def joined(
    dataset: Dataset, columns: Sequence[str], results: OrderedResults, limit: int | None
) -> Iterator[Joined]:
    """Input batches of `columns` (including the keys') with each row's result.

    None for a row without a readable one.
    """
    start = 0
    for batch in dataset.batches(columns, limit=limit):
        yield batch, results.of(start, batch)
        start += batch.num_rows


def _outputs(values: Sequence[RowValue], fields: Sequence[pa.Field]) -> list[pa.Array]:
    """The columns after the input's: answers, and the errors if there are any."""
    answers = [value.output or b"{}" for value in values]
    is_open = {field.name: is_json(field.type) for field in fields if field.name != ERROR_COLUMN}
    raw = [_split(one) for one in answers] if any(is_open.values()) else []
    decoded = [_decode(one) for one in answers] if not all(is_open.values()) else []
    arrays = []
    for field in fields:
        name, kind = field.name, field.type
        if name == ERROR_COLUMN:
            arrays.append(pa.array([_error(value) for value in values], ERROR_TYPE))
        elif is_open[name]:
            arrays.append(json_array([row.get(name) for row in raw]))
        else:
            arrays.append(array([fit(row.get(name), kind) for row in decoded], kind))
    return arrays


def _error(value: RowValue) -> dict[str, Any] | None:
    if not value.error:
        return None
    return msgspec.structs.asdict(error_decoder.decode(value.error))


def without_answer(batch: pa.RecordBatch, names: Sequence[str]) -> NDArray[np.bool_]:
    """Which rows are null in every answer column; shape (rows,)."""
    if any(has_no_null(batch.column(name)) for name in names):
        return np.zeros(batch.num_rows, np.bool_)
    nulls = [flags(batch.column(name).is_null()) for name in names]
    rows: NDArray[np.bool_] = np.logical_and.reduce(nulls)
    return rows
