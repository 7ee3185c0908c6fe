"""Arrow tables, which need no conversion."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
from typing_extensions import override

from domyn_swarm.data.data_backend import (
    BATCH_ROWS,
    READ_FLAG,
    WRITE_FLAG,
    DataBackend,
    check_options,
    failures_named,
)

_FORMATS = {"parquet": "parquet", "jsonl": "json", "arrow": "ipc"}


class ArrowBackend(DataBackend[pa.Table]):
    """`pyarrow.Table`."""

    name = "arrow"
    lazy = False

    @override
    def accepts(self, data: object) -> bool:
        return isinstance(data, pa.Table)

    @override
    def schema(self, frame: pa.Table) -> pa.Schema:
        return frame.schema.remove_metadata()

    @override
    def batches(self, frame: pa.Table) -> Iterator[pa.RecordBatch]:
        yield from frame.replace_schema_metadata(None).to_batches(max_chunksize=BATCH_ROWS)

    @override
    def build(
        self,
        schema: pa.Schema,
        batches: Iterable[pa.RecordBatch],
        like: pa.Table | None = None,
    ) -> pa.Table:
        return pa.Table.from_batches(batches, schema)

    @override
    def rows(self, frame: pa.Table) -> int:
        rows: int = frame.num_rows
        return rows

    @override
    def part(
        self, frame: pa.Table, columns: Sequence[str] | None, start: int, rows: int
    ) -> pa.Table:
        chosen = frame if columns is None else frame.select(list(columns))
        return chosen.slice(start, rows)

    @override
    def read(self, files: Sequence[str], kind: str, options: dict[str, Any]) -> pa.Table:
        """The options are those of `pyarrow.dataset.dataset`."""
        import fsspec
        from pyarrow import dataset

        check_options(dataset.dataset, options, READ_FLAG)
        with failures_named("Arrow cannot read", files, READ_FLAG):
            form = _csv_format() if kind == "csv" else _FORMATS[kind]
            given = {"format": form, **_file_system(files), **options}
            paths = [fsspec.core.strip_protocol(file) for file in files]
            return dataset.dataset(paths, **given).to_table()

    @override
    def write(self, frame: pa.Table, path: str, options: dict[str, Any]) -> None:
        """The options are those of `pyarrow.parquet.write_table`."""
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
