"""polars data frames, eager and lazy."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from typing_extensions import override

from domyn_swarm.data.data_backend import (
    BATCH_ROWS,
    READ_FLAG,
    WRITE_FLAG,
    DataBackend,
    check_options,
    failures_named,
    holds,
    refuse_types,
)
from domyn_swarm.errors import InvalidInput

if TYPE_CHECKING:
    import polars as pl

_SCANNERS = {
    "parquet": "scan_parquet",
    "csv": "scan_csv",
    "jsonl": "scan_ndjson",
    "arrow": "scan_ipc",
}


class PolarsBackend(DataBackend["pl.DataFrame"]):
    """`polars.DataFrame`."""

    name = "polars"
    lazy = False

    @override
    def accepts(self, data: object) -> bool:
        polars = sys.modules.get("polars")
        return polars is not None and isinstance(data, polars.DataFrame)

    @override
    def schema(self, frame: pl.DataFrame) -> pa.Schema:
        return _arrow(frame.head(0)).schema

    @override
    def batches(self, frame: pl.DataFrame) -> Iterator[pa.RecordBatch]:
        yield from _arrow(frame).to_batches(max_chunksize=BATCH_ROWS)

    @override
    def build(
        self,
        schema: pa.Schema,
        batches: Iterable[pa.RecordBatch],
        like: pl.DataFrame | None = None,
    ) -> pl.DataFrame:
        import polars as pl

        kept = [name for name in schema.names if like is not None and name in like.columns]
        added = pa.schema([field for field in schema if field.name not in kept])
        refuse_types(added, _is_unsupported, "polars")
        table = pa.Table.from_batches(batches, schema)
        frame = pl.DataFrame(pl.from_arrow(_copied(table.select(added.names))))
        if like is None or not kept:
            return frame
        head = like.head(table.num_rows).select(kept)
        return pl.concat([head, frame], how="horizontal").select(schema.names)

    @override
    def rows(self, frame: pl.DataFrame) -> int:
        return frame.height

    @override
    def part(
        self, frame: pl.DataFrame, columns: Sequence[str] | None, start: int, rows: int
    ) -> pl.DataFrame:
        chosen = frame if columns is None else frame.select(columns)
        return chosen.slice(start, rows)

    @override
    def read(self, files: Sequence[str], kind: str, options: dict[str, Any]) -> pl.DataFrame:
        """The options are those of `polars.scan_parquet` and its like."""
        with failures_named("polars cannot read", files, READ_FLAG):
            return LazyPolarsBackend().read(files, kind, options).collect()

    @override
    def write(self, frame: pl.DataFrame, path: str, options: dict[str, Any]) -> None:
        """The options are those of `polars.DataFrame.write_parquet`."""
        check_options(frame.write_parquet, options, WRITE_FLAG)
        with failures_named("polars cannot write", [path], WRITE_FLAG):
            frame.write_parquet(path, **options)


class LazyPolarsBackend(DataBackend["pl.LazyFrame"]):
    """`polars.LazyFrame`: rows are computed on demand, and never all in memory."""

    name = "polars"
    lazy = True

    @override
    def accepts(self, data: object) -> bool:
        polars = sys.modules.get("polars")
        return polars is not None and isinstance(data, polars.LazyFrame)

    @override
    def schema(self, frame: pl.LazyFrame) -> pa.Schema:
        with failures_named("polars cannot compute", ["the frame"], READ_FLAG):
            columns = frame.collect_schema()
        return _arrow(columns.to_frame()).schema

    @override
    def batches(self, frame: pl.LazyFrame) -> Iterator[pa.RecordBatch]:
        with failures_named("polars cannot compute", ["the frame"], READ_FLAG):
            for part in frame.collect_batches(chunk_size=BATCH_ROWS, maintain_order=True):
                yield from _arrow(part).to_batches(max_chunksize=BATCH_ROWS)

    @override
    def build(
        self,
        schema: pa.Schema,
        batches: Iterable[pa.RecordBatch],
        like: pl.LazyFrame | None = None,
    ) -> pl.LazyFrame:
        return PolarsBackend().build(schema, batches).lazy()

    @override
    def rows(self, frame: pl.LazyFrame) -> int:
        import polars as pl

        with failures_named("polars cannot compute", ["the frame"], READ_FLAG):
            return int(frame.select(pl.len()).collect(engine="streaming").item())

    @override
    def part(
        self, frame: pl.LazyFrame, columns: Sequence[str] | None, start: int, rows: int
    ) -> pl.LazyFrame:
        chosen = frame if columns is None else frame.select(columns)
        return chosen.slice(start, rows)

    @override
    def read(self, files: Sequence[str], kind: str, options: dict[str, Any]) -> pl.LazyFrame:
        """The options are those of `polars.scan_parquet` and its like."""
        import polars as pl

        scanner = getattr(pl, _SCANNERS[kind])
        check_options(scanner, options, READ_FLAG)
        with failures_named("polars cannot read", files, READ_FLAG):
            as_text = {"infer_schema": False, "empty_string_is_null": False}
            given = {**(as_text if kind == "csv" else {}), **options}
            scanned: pl.LazyFrame = scanner(list(files), **given)
            scanned.collect_schema()
            return scanned

    @override
    def write(self, frame: pl.LazyFrame, path: str, options: dict[str, Any]) -> None:
        """The options are those of `polars.LazyFrame.sink_parquet`."""
        check_options(frame.sink_parquet, options, WRITE_FLAG)
        with failures_named("polars cannot write", [path], WRITE_FLAG):
            frame.sink_parquet(path, **options)


def _arrow(frame: pl.DataFrame) -> pa.Table:
    objects = [name for name, kind in frame.schema.items() if kind.base_type().__name__ == "Object"]
    if objects:
        raise InvalidInput(
            f"The column {objects[0]!r} holds Python objects, which have no Arrow type.",
            hint="Cast it first.",
        )
    try:
        return frame.to_arrow()
    except pa.ArrowException as error:
        odd = next((name for name in frame.columns if not _has_arrow(frame[name])), None)
        if odd is None:
            raise
        raise InvalidInput(
            f"The column {odd!r} is {frame.schema[odd]}, which has no Arrow type.",
            hint="Cast it first; of a file, leave --data-backend out.",
        ) from error


def _has_arrow(column: pl.Series) -> bool:
    try:
        column.to_arrow()
    except pa.ArrowException:
        return False
    return True


def _copied(table: pa.Table) -> pa.Table:
    """The table without slices of fixed-size lists, which polars 2.1 misreads."""
    if any(holds(kind, pa.types.is_fixed_size_list) for kind in table.schema.types):
        return table.take(pa.array(range(table.num_rows), pa.int64())).combine_chunks()
    return table


def _is_unsupported(kind: pa.DataType) -> bool:
    """Whether polars would read the type as another one, or not at all."""
    if pa.types.is_dictionary(kind):
        return not pa.types.is_string(kind.value_type) and not pa.types.is_large_string(
            kind.value_type
        )
    if pa.types.is_timestamp(kind) or pa.types.is_duration(kind):
        return bool(kind.unit == "s")
    if pa.types.is_decimal(kind):
        return not pa.types.is_decimal128(kind)
    if pa.types.is_time(kind):
        return not kind.equals(pa.time64("ns"))
    return isinstance(kind, pa.BaseExtensionType) or any(
        matches(kind)
        for matches in (
            pa.types.is_fixed_size_binary,
            pa.types.is_date64,
            pa.types.is_list_view,
            pa.types.is_large_list_view,
            pa.types.is_union,
            pa.types.is_interval,
            pa.types.is_run_end_encoded,
        )
    )
