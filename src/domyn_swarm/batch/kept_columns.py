"""The columns of an input that its output keeps, and how they get there."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pyarrow as pa

from domyn_swarm.batch.dataset import Dataset
from domyn_swarm.batch.json_values import JSON, json_array, json_texts
from domyn_swarm.batch.text_dataset import open_columns, row_column_of

_split = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class KeptColumns:
    """Some of an input's columns, as the output has them: columns, or each row's own object.

    names: what users call them.
    fields: the columns that they are in the output, before their types are settled.
    columns: what has to be read of the input for them.
    open: those whose types only their values tell.
    """

    def __init__(self, dataset: Dataset, names: Sequence[str], *, as_rows: bool) -> None:
        """With `as_rows`, rows that were read from JSON stay the objects that they were."""
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
