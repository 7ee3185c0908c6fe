"""Rows that are in memory already, as an input."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa

from domyn_swarm.batch.lots import BATCH_ROWS, lots
from domyn_swarm.batch.shard_schemas import check_names


class TableDataset:
    """A table; its columns are not copied."""

    def __init__(self, table: pa.Table) -> None:
        """Take the rows as they are.

        Raises:
            InvalidInput: two columns have one name.
        """
        check_names(table.schema, "The input")
        self._table = table
        self.schema = table.schema.remove_metadata()
        self.rows = table.num_rows

    @classmethod
    def of(cls, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> TableDataset:
        """A table from its parts.

        Raises:
            InvalidInput: two columns have one name.
        """
        return cls(pa.Table.from_batches(batches, schema))

    @classmethod
    def without_rows(cls, columns: Iterable[str]) -> TableDataset:
        """No rows, whose columns have no type."""
        return cls(pa.schema((name, pa.null()) for name in columns).empty_table())

    def batches(
        self, columns: Sequence[str] | None = None, *, start: int = 0, limit: int | None = None
    ) -> Iterator[pa.RecordBatch]:
        """See `Dataset.batches`."""
        end = self.rows if limit is None else min(limit, self.rows)
        chosen = self._table if columns is None else self._table.select(list(columns))
        wanted = chosen.slice(start, max(0, end - start)).replace_schema_metadata(None)
        for batch in wanted.to_batches(max_chunksize=BATCH_ROWS):
            yield from lots(batch, None, 0, batch.num_rows)
