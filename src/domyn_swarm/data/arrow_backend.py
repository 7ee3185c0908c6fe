"""Arrow tables, which need no conversion."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from domyn_swarm.data.base import BATCH_ROWS, READ_FLAG, WRITE_FLAG, check_options, failures_named

_FORMATS = {"parquet": "parquet", "jsonl": "json", "arrow": "ipc"}


class ArrowBackend:
    """`pyarrow.Table`."""

    name = "arrow"
    lazy = False

    def accepts(self, data: object) -> bool:
        """See `DataBackend`."""
        return isinstance(data, pa.Table)

    def schema(self, frame: pa.Table) -> pa.Schema:
        """See `DataBackend`."""
        return frame.schema.remove_metadata()

    def batches(self, frame: pa.Table) -> Iterator[pa.RecordBatch]:
        """See `DataBackend`."""
        yield from frame.replace_schema_metadata(None).to_batches(max_chunksize=BATCH_ROWS)

    def build(
        self,
        schema: pa.Schema,
        batches: Iterable[pa.RecordBatch],
        like: pa.Table | None = None,  # noqa: ARG002 - the batches contain its columns unchanged
    ) -> pa.Table:
        """See `DataBackend`."""
        return pa.Table.from_batches(batches, schema)

    def rows(self, frame: pa.Table) -> int:
        """See `DataBackend`."""
        rows: int = frame.num_rows
        return rows

    def part(
        self, frame: pa.Table, columns: Sequence[str] | None, start: int, rows: int
    ) -> pa.Table:
        """See `DataBackend`."""
        chosen = frame if columns is None else frame.select(list(columns))
        return chosen.slice(start, rows)

    def read(self, files: Sequence[str], kind: str, options: dict[str, Any]) -> pa.Table:
        """See `DataBackend`; the options are those of `pyarrow.dataset.dataset`."""
        import fsspec
        from pyarrow import dataset

        check_options(dataset.dataset, options, READ_FLAG)
        with failures_named("Arrow cannot read", files, READ_FLAG):
            form = _csv_format() if kind == "csv" else _FORMATS[kind]
            given = {"format": form, **_file_system(files), **options}
            paths = [fsspec.core.strip_protocol(file) for file in files]
            return dataset.dataset(paths, **given).to_table()

    def write(self, frame: pa.Table, path: str, options: dict[str, Any]) -> None:
        """See `DataBackend`; the options are those of `pyarrow.parquet.write_table`."""
        import pyarrow.parquet as pq

        with failures_named("Arrow cannot write", [path], WRITE_FLAG):
            pq.write_table(frame, path, **options)


def _csv_format() -> Any:  # noqa: ANN401 - of a library without types
    from pyarrow import csv, dataset

    return dataset.CsvFileFormat(
        parse_options=csv.ParseOptions(newlines_in_values=True), convert_options=cells_as_text()
    )


def cells_as_text() -> Any:  # noqa: ANN401 - of a library without types
    """Options with which Arrow's CSV reader keeps each cell as text."""
    from pyarrow import csv

    return csv.ConvertOptions(default_column_type=pa.string())


def _file_system(files: Sequence[str]) -> dict[str, Any]:
    """The keyword argument with the file system of URLs; empty for paths."""
    import fsspec

    if "://" not in files[0]:
        return {}
    return {"filesystem": fsspec.core.url_to_fs(files[0])[0]}
