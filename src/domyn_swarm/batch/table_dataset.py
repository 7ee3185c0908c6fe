"""Rows that are in memory already, as an input."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa

from domyn_swarm.batch.dataset import BATCH_ROWS
from domyn_swarm.errors import InvalidInput


class TableDataset:
    """A table; its columns are not copied."""

    def __init__(self, table: pa.Table) -> None:
        """Take the rows as they are.

        Raises:
            InvalidInput: two columns have one name.
        """
        twice = [name for name, times in Counter(table.schema.names).items() if times > 1]
        if twice:
            raise InvalidInput(
                f"The input has {', '.join(map(repr, twice))} more than once.",
                hint="Rename one of those columns.",
            )
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
        yield from wanted.to_batches(max_chunksize=BATCH_ROWS)
