"""Every library of frames runs these cases; a gap is declared with its reason, and must be one."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from domyn_swarm.data.arrow_backend import ArrowBackend
from domyn_swarm.data.data_backend import BATCH_ROWS, DataBackend, plain_type
from domyn_swarm.data.pandas_backend import PandasBackend
from domyn_swarm.data.polars_backend import LazyPolarsBackend, PolarsBackend
from domyn_swarm.data.ray_backend import RayBackend
from domyn_swarm.data.registry import backend_named, backend_of
from domyn_swarm.errors import ConfigError, InvalidInput
from ray_fixtures import RayCluster

ROME = dt.datetime(2026, 11, 24, 12, 30, 15, 123000, tzinfo=ZoneInfo("Europe/Rome"))
DEEP = pa.list_(pa.struct([("word", pa.string()), ("scores", pa.list_(pa.float64()))]))
COLUMNS: dict[str, tuple[pa.DataType, list[Any]]] = {
    "int64": (pa.int64(), [1, 2**62, -3]),
    "int64_with_null": (pa.int64(), [1, None, 2**62]),
    "uint8_with_null": (pa.uint8(), [255, None, 0]),
    "float32": (pa.float32(), [1.5, None, -0.0]),
    "float64": (pa.float64(), [1e300, None, float("inf")]),
    "bool": (pa.bool_(), [True, False, True]),
    "bool_with_null": (pa.bool_(), [True, None, False]),
    "string": (pa.string(), ["è", None, ""]),
    "large_string": (pa.large_string(), ["x" * 5000, None, "\n"]),
    "binary": (pa.binary(), [b"\0\xff", None, b""]),
    "date": (pa.date32(), [dt.date(1969, 1, 1), None, dt.date(2026, 2, 28)]),
    "time": (pa.time64("ns"), [dt.time(1, 2, 3), None, dt.time(0)]),
    "timestamp_ms": (pa.timestamp("ms"), [dt.datetime(2026, 1, 1), None, dt.datetime(1900, 1, 1)]),
    "timestamp_zone": (pa.timestamp("us", "Europe/Rome"), [ROME, None, ROME]),
    "timestamp_ns": (pa.timestamp("ns", "UTC"), [1, None, 2**60 + 1]),
    "duration": (pa.duration("us"), [dt.timedelta(microseconds=1), None, dt.timedelta(days=-9)]),
    "decimal": (pa.decimal128(38, 4), [Decimal("1.2345"), None, Decimal("-0.0001")]),
    "category": (pa.dictionary(pa.int32(), pa.string()), ["a", None, "a"]),
    "list": (pa.list_(pa.int64()), [[1, None], None, []]),
    "array": (pa.list_(pa.float32(), 2), [[1.0, 2.0], None, [0.5, 0.25]]),
    "struct": (pa.struct([("a", pa.int64())]), [{"a": 1}, {"a": None}, {"a": 2}]),
    "deep": (DEEP, [[{"word": "x", "scores": [0.1]}], None, [{"word": None, "scores": []}]]),
    "null": (pa.null(), [None, None, None]),
    "timestamp_s": (pa.timestamp("s"), [1, None, 2]),
    "date64": (pa.date64(), [dt.date(2026, 1, 1), None, dt.date(2026, 1, 2)]),
    "time32": (pa.time32("s"), [dt.time(1, 2, 3), None, dt.time(0)]),
    "duration_s": (pa.duration("s"), [dt.timedelta(seconds=1), None, dt.timedelta(0)]),
    "decimal256": (pa.decimal256(60, 2), [Decimal("1e50"), None, Decimal(0)]),
    "fixed_binary": (pa.binary(2), [b"ab", None, b"cd"]),
    "category_of_numbers": (pa.dictionary(pa.int8(), pa.int64()), [7, None, 7]),
    "map": (pa.map_(pa.string(), pa.int64()), [[("a", 1)], None, []]),
}
IN_POLARS = "polars has one time, one binary and one decimal type, and no seconds"
POLARS_GAPS = dict.fromkeys(
    ["timestamp_s", "date64", "time32", "duration_s", "decimal256", "fixed_binary"], IN_POLARS
) | {"category_of_numbers": "polars' categories are text"}


@dataclass(frozen=True)
class BackendUnderTest:
    """One backend, and the columns it refuses (column → reason)."""

    name: str
    backend: DataBackend[Any]
    gaps: Mapping[str, str] = field(default_factory=dict)


BACKENDS = [
    BackendUnderTest("arrow", ArrowBackend()),
    BackendUnderTest("pandas", PandasBackend()),
    BackendUnderTest("polars", PolarsBackend(), POLARS_GAPS),
    BackendUnderTest("polars-lazy", LazyPolarsBackend(), POLARS_GAPS),
    pytest.param(
        BackendUnderTest("ray", RayBackend(), {"file.arrow": "Ray has no reader for them"}),
        marks=pytest.mark.ray,
    ),
]
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Ray's, of its own settings
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(params=BACKENDS, ids=lambda one: one.name)
def under_test(request: pytest.FixtureRequest) -> BackendUnderTest:
    one: BackendUnderTest = request.param
    if one.name == "ray":
        request.getfixturevalue("ray_cluster")
    return one


@pytest.fixture
def backend(under_test: BackendUnderTest) -> DataBackend[Any]:
    return under_test.backend


def column_of(name: str) -> pa.Array:
    kind, values = COLUMNS[name]
    return pa.array(values, kind)


def table_of(names: list[str]) -> pa.Table:
    return pa.table({name: column_of(name) for name in names})


def made(backend: DataBackend[Any], table: pa.Table) -> Any:
    return backend.build(table.schema, table.to_batches(max_chunksize=2))


def read(backend: DataBackend[Any], frame: Any) -> pa.Table:
    return pa.Table.from_batches(backend.batches(frame), backend.schema(frame))


def numbered(rows: int) -> pa.Table:
    return pa.table({"n": list(range(rows)), "text": [f"row {n}" for n in range(rows)]})


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_keeps_its_type_and_values_or_is_refused(
    under_test: BackendUnderTest, name: str
) -> None:
    table = table_of([name])
    if name in under_test.gaps:
        with pytest.raises(InvalidInput, match=repr(name)):
            made(under_test.backend, table)
        return
    back = read(under_test.backend, made(under_test.backend, table))
    assert plain_type(back.schema.field(0).type) == plain_type(COLUMNS[name][0])
    assert exactly(back) == exactly(table)


def exactly(table: pa.Table) -> list[Any]:
    """Values that tell nanoseconds apart, which Python's own times cannot."""
    column = table.column(0)
    if pa.types.is_timestamp(column.type) and column.type.unit == "ns":
        column = column.cast(pa.int64())
    return [column.to_pylist()]


def test_columns_without_rows_keep_their_types(under_test: BackendUnderTest) -> None:
    table = table_of([name for name in COLUMNS if name not in under_test.gaps]).slice(0, 0)
    back = read(under_test.backend, made(under_test.backend, table))
    assert back.num_rows == 0
    assert [plain_type(one.type) for one in back.schema] == [
        plain_type(one.type) for one in table.schema
    ]


def test_rows_come_in_order_and_in_small_batches(backend: DataBackend[Any]) -> None:
    table = numbered(3 * BATCH_ROWS + 1)
    frame = made(backend, table)
    sizes = [batch.num_rows for batch in backend.batches(frame)]
    assert max(sizes) <= BATCH_ROWS
    assert read(backend, frame).to_pylist() == table.to_pylist()


def test_its_frames_are_known_by_their_kind(backend: DataBackend[Any]) -> None:
    found = backend_of(made(backend, numbered(1)))
    assert (found.name, found.lazy) == (backend.name, backend.lazy)


def test_a_part_is_some_rows_of_some_columns(backend: DataBackend[Any]) -> None:
    frame = made(backend, numbered(10))
    assert backend.rows(frame) == 10
    part = read(backend, backend.part(frame, None, 3, 4))
    assert part.to_pylist() == numbered(10).slice(3, 4).to_pylist()
    part = read(backend, backend.part(frame, ["text"], 8, 30))
    assert part.to_pylist() == [{"text": "row 8"}, {"text": "row 9"}]


def test_results_go_beside_the_columns_of_a_frame(backend: DataBackend[Any]) -> None:
    frame = made(backend, numbered(5))
    results = numbered(3).append_column("answer", pa.array(["a", "b", None]))
    built = backend.build(results.schema, results.to_batches(max_chunksize=2), frame)
    assert read(backend, built).to_pylist() == results.to_pylist()
    only = results.select(["answer"])
    built = backend.build(only.schema, only.to_batches(), frame)
    assert read(backend, built).to_pylist() == only.to_pylist()


def test_what_it_writes_it_reads(backend: DataBackend[Any], tmp_path: Path) -> None:
    path, other = str(tmp_path / "rows.parquet"), str(tmp_path / "other.parquet")
    table = numbered(4000)
    frame = backend.build(table.schema, table.to_batches())
    backend.write(frame, path, {"compression": "zstd"})
    backend.write(frame, other, {})
    assert read(backend, backend.read([path], "parquet", {})).to_pylist() == table.to_pylist()
    twice = backend.read([path, other], "parquet", {})
    assert read(backend, twice).num_rows == 8000
    some = backend.read([path], "parquet", {})
    assert read(backend, backend.part(some, None, 0, 2)).num_rows == 2


TEXTS: dict[str, Callable[[Path], object]] = {
    "csv": lambda path: path.write_text("n,text\n1,a\n2,b\n"),
    "jsonl": lambda path: path.write_text('{"n": 1, "text": "a"}\n{"n": 2, "text": "b"}\n'),
    "arrow": lambda path: pl.DataFrame({"n": [1, 2], "text": ["a", "b"]}).write_ipc(path),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_other_kinds_of_files(under_test: BackendUnderTest, tmp_path: Path, kind: str) -> None:
    path, backend = tmp_path / f"rows.{kind}", under_test.backend
    TEXTS[kind](path)
    if f"file.{kind}" in under_test.gaps:
        with pytest.raises(InvalidInput, match=f".{kind}"):
            backend.read([str(path)], kind, {})
        return
    found = read(backend, backend.read([str(path)], kind, {}))
    number = str if kind == "csv" else int  # a cell is its text
    assert found.to_pylist() == [
        {"n": number(1), "text": "a"},
        {"n": number(2), "text": "b"},
    ]


def test_wrong_options_and_files_are_one_clear_error(
    backend: DataBackend[Any], tmp_path: Path
) -> None:
    path = tmp_path / "rows.parquet"
    path.write_text("no Parquet")
    with pytest.raises(InvalidInput, match="colums"):
        read(backend, backend.read([str(path)], "csv", {"colums": ["n"]}))
    with pytest.raises(InvalidInput, match="cannot read"):
        read(backend, backend.read([str(path)], "parquet", {}))


def test_frames_of_one_library_become_those_of_another(ray_cluster: RayCluster) -> None:
    table = table_of([name for name in COLUMNS if name not in POLARS_GAPS])
    chain: list[DataBackend[Any]] = [
        PandasBackend(),
        PolarsBackend(),
        RayBackend(),
        LazyPolarsBackend(),
        ArrowBackend(),
        PandasBackend(),
    ]
    frame = made(chain[0], table)
    for one, next_one in pairwise(chain):
        schema = one.schema(frame)
        frame = next_one.build(schema, one.batches(frame))
    back = read(chain[-1], frame)
    assert back.to_pylist() == table.to_pylist()
    assert [plain_type(one.type) for one in back.schema] == [
        plain_type(one.type) for one in table.schema
    ]


def test_columns_of_pandas_that_have_no_one_type_are_refused_by_name() -> None:
    for odd in ([1, "a"], [object(), None], pd.period_range("2026", periods=2)):
        frame = pd.DataFrame({"good": [1, 2], "odd": odd})
        with pytest.raises(InvalidInput, match="'odd'"):
            PandasBackend().schema(frame)
    with pytest.raises(InvalidInput, match="0"):
        PandasBackend().schema(pd.DataFrame([[1]]))
    with pytest.raises(InvalidInput, match="more than once"):
        PandasBackend().schema(pd.DataFrame([[1, 2]], columns=["a", "a"]))
    with pytest.raises(InvalidInput, match="'odd'"):
        PolarsBackend().schema(pl.DataFrame({"odd": pl.Series([object()], dtype=pl.Object)}))


def test_pandas_keeps_the_index_and_the_dtypes_of_the_frame_that_was_given() -> None:
    frame = pd.DataFrame(
        {"text": ["a", "b"], "kind": pd.Categorical(["x", "y"], ["y", "x"], ordered=True)},
        index=pd.Index(["first", "first"], name="key"),
    )
    backend = PandasBackend()
    results = pa.table({"text": ["a", "b"], "kind": ["x", "y"], "n": pa.array([1, None])})
    built = backend.build(results.schema, results.to_batches(), frame)
    assert built.index.equals(frame.index)
    assert built.index.name == "key"
    assert built["kind"].dtype == frame["kind"].dtype
    assert built["n"].dtype == "Int64"
    assert list(built.columns) == ["text", "kind", "n"]


def test_what_is_no_frame_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"dict \(builtins\)"):
        backend_of({"a": [1]})
    with pytest.raises(ConfigError, match="'dask'"):
        backend_named("dask")
