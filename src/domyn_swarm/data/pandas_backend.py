"""pandas data frames.

A missing value of pandas (NaN, NaT, None, NA) is converted to null. Results get the dtypes that
pandas itself prefers: integer and boolean columns with missing values are nullable (`Int64`,
`boolean`), and types without a pandas dtype (lists, structs, decimals, dates, …) are `ArrowDtype`.
"""

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
    refuse_types,
)
from domyn_swarm.errors import InvalidInput

if TYPE_CHECKING:
    import pandas as pd

_READERS = {
    "parquet": "read_parquet",
    "csv": "read_csv",
    "jsonl": "read_json",
    "arrow": "read_feather",
}
# Keep values as they are written in the file: pandas would guess types and missing values.
_AS_WRITTEN: dict[str, dict[str, Any]] = {
    "csv": {"dtype": str, "keep_default_na": False},
    "jsonl": {"lines": True, "dtype": False, "precise_float": True},
}


class PandasBackend(DataBackend["pd.DataFrame"]):
    """`pandas.DataFrame`."""

    name = "pandas"
    lazy = False

    @override
    def accepts(self, data: object) -> bool:
        pandas = sys.modules.get("pandas")
        return pandas is not None and isinstance(data, pandas.DataFrame)

    @override
    def schema(self, frame: pd.DataFrame) -> pa.Schema:
        return _table(frame).schema

    @override
    def batches(self, frame: pd.DataFrame) -> Iterator[pa.RecordBatch]:
        yield from _table(frame).to_batches(max_chunksize=BATCH_ROWS)

    @override
    def build(
        self,
        schema: pa.Schema,
        batches: Iterable[pa.RecordBatch],
        like: pd.DataFrame | None = None,
    ) -> pd.DataFrame:
        import pandas as pd

        table = pa.Table.from_batches(batches, schema)
        if like is None:
            return pd.DataFrame({name: _series(table.column(name)) for name in schema.names})
        kept = [name for name in schema.names if name in like.columns]
        frame = like.iloc[: table.num_rows][kept].copy()
        for name in schema.names:
            if name not in kept:
                frame[name] = _series(table.column(name)).array
        return frame[schema.names]

    @override
    def rows(self, frame: pd.DataFrame) -> int:
        return len(frame)

    @override
    def part(
        self, frame: pd.DataFrame, columns: Sequence[str] | None, start: int, rows: int
    ) -> pd.DataFrame:
        chosen = frame if columns is None else frame[list(columns)]
        return chosen.iloc[start : start + rows]

    @override
    def read(self, files: Sequence[str], kind: str, options: dict[str, Any]) -> pd.DataFrame:
        """The options are those of `pandas.read_parquet` and its like."""
        import pandas as pd

        reader = getattr(pd, _READERS[kind])
        check_options(reader, options, READ_FLAG)
        given = {**_AS_WRITTEN.get(kind, {}), **options}
        with failures_named("pandas cannot read", files, READ_FLAG):
            frames = [reader(file, **given) for file in files]
            return frames[0] if len(frames) == 1 else pd.concat(frames, ignore_index=True)

    @override
    def write(self, frame: pd.DataFrame, path: str, options: dict[str, Any]) -> None:
        """The options are those of `pandas.DataFrame.to_parquet`."""
        with failures_named("pandas cannot write", [path], WRITE_FLAG):
            frame.to_parquet(path, **{"index": False, **options})


def _table(frame: pd.DataFrame) -> pa.Table:
    odd = [name for name in frame.columns if not isinstance(name, str)]
    if odd:
        raise InvalidInput(
            f"The column name {odd[0]!r} is not text.",
            hint="Rename the columns: df.columns = df.columns.map(str).",
        )
    _refuse_duplicates(frame)
    columns = [_column(frame[name], name) for name in frame.columns]
    table = pa.table(dict(zip(frame.columns, columns, strict=True)))
    refuse_types(table.schema, lambda kind: isinstance(kind, pa.BaseExtensionType), "Arrow")
    return table


def _refuse_duplicates(frame: pd.DataFrame) -> None:
    duplicates = frame.columns[frame.columns.duplicated()]
    if len(duplicates):
        raise InvalidInput(
            f"The input has the column {duplicates[0]!r} more than once.",
            hint="Rename one of them.",
        )


def _column(series: pd.Series[Any], name: str) -> pa.Array | pa.ChunkedArray:
    try:
        if series.dtype == "category":
            return _dictionary(series)
        return pa.array(series, from_pandas=True)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise InvalidInput(
            f"The column {name!r} ({series.dtype}) holds values of several types: "
            f"{str(error).splitlines()[0]}.",
            hint=f'Convert it to one type: df["{name}"] = df["{name}"].astype(...).',
        ) from error


def _dictionary(series: pd.Series[Any]) -> pa.DictionaryArray:
    """As Arrow converts it, except that the type of an empty list of categories is kept."""
    codes = series.cat.codes.to_numpy()
    categories = pa.array(series.cat.categories, from_pandas=True)
    if isinstance(categories, pa.ChunkedArray):
        categories = categories.combine_chunks()
    return pa.DictionaryArray.from_arrays(
        pa.array(codes, mask=codes == -1),
        categories,
        ordered=series.cat.ordered,
    )


def _series(column: pa.ChunkedArray) -> pd.Series[Any]:
    """A column as a pandas series in which every value has the column's type."""
    import pandas as pd

    kind, missing = column.type, column.null_count > 0
    if pa.types.is_dictionary(kind):
        series = column.to_pandas()
        if len(series.cat.categories):
            return series
        empty = _series(pa.chunked_array([], kind.value_type))  # keeps the type of the categories
        return series.cat.set_categories(pd.Index(empty), ordered=kind.ordered)
    if _is_pandas_own(kind) and not (missing and _is_exact(kind)):
        return column.to_pandas()
    if missing and _is_exact(kind):
        nullable = pd.BooleanDtype() if pa.types.is_boolean(kind) else _nullable(kind)
        return column.to_pandas(types_mapper={kind: nullable}.get)
    return column.to_pandas(types_mapper=pd.ArrowDtype)


def _is_exact(kind: pa.DataType) -> bool:
    """Whether NumPy has the type, but cannot represent a missing value of it."""
    return bool(pa.types.is_integer(kind) or pa.types.is_boolean(kind))


def _is_pandas_own(kind: pa.DataType) -> bool:
    return any(
        matches(kind)
        for matches in (
            pa.types.is_integer,
            pa.types.is_boolean,
            pa.types.is_floating,
            pa.types.is_string,
            pa.types.is_large_string,
            pa.types.is_string_view,
            pa.types.is_timestamp,
            pa.types.is_duration,
        )
    )


def _nullable(kind: pa.DataType) -> Any:  # noqa: ANN401 - a dtype of pandas
    import pandas as pd

    return pd.api.types.pandas_dtype(str(kind).replace("int", "Int").replace("uI", "UI"))
