"""Output columns: values, types that drift, and what does not fit."""

from __future__ import annotations

import datetime as dt
from typing import Any, Literal

import msgspec
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from domyn_swarm.batch.column_values import JSON as JSON_TYPE
from domyn_swarm.batch.column_values import WrittenFloat, json_array, python_values
from domyn_swarm.batch.output.open_types import OpenTypes, Shape, typed
from domyn_swarm.batch.output.output_schema import OutputMismatch, OutputSchema, fit, type_name
from domyn_swarm.errors import ConfigError

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text("abc", min_size=1, max_size=2), inner, max_size=3)
    ),
    max_leaves=8,
)


def settled(*values: Any) -> tuple[pa.Array, str]:
    """A column of values in the type that holds them all, and why it is JSON."""
    raw = pa.RecordBatch.from_arrays([json_array(map(msgspec.json.encode, values))], names=["v"])
    types = OpenTypes(["v"])
    types.look(raw)
    batch = typed(raw, types.settled(raw.schema))
    return batch.column(0), types.reasons.get("v", "")


@given(st.lists(JSON, min_size=1, max_size=6))
def test_any_values_have_one_type_that_holds_them_as_they_are(values: list[Any]) -> None:
    column, why = settled(*values)
    assert (column.type == JSON_TYPE) == bool(why)
    found = python_values(column)
    assert found == values
    numbers = [type(one) for one in values if not isinstance(one, list | dict)]
    if why:
        assert [type(one) for one in found if not isinstance(one, list | dict)] == numbers


@given(st.lists(JSON, max_size=4), st.lists(JSON, max_size=4))
def test_types_of_parts_are_those_of_the_whole(one: list[Any], other: list[Any]) -> None:
    """As workers see parts of the rows each."""
    whole, first, second = Shape(), Shape(), Shape()
    for value in one:
        first.add(value)
    for value in other:
        second.add(value)
    for value in [*one, *other]:
        whole.add(value)
    first.merge(second)
    assert first.arrow() == whole.arrow()


@pytest.mark.parametrize(
    ("values", "kind", "why"),
    [
        ((1, 2.5), pa.float64(), ""),
        ((None, {"a": 1}), pa.struct([("a", pa.int64())]), ""),
        (({"a": 1}, {"a": None}), pa.struct([("a", pa.int64())]), ""),
        (([1], []), pa.list_(pa.int64()), ""),
        ((2**63,), pa.uint64(), ""),
        ((2**63, -1), pa.decimal128(38), ""),
        (({"a": 1}, {"b": "x"}), JSON_TYPE, "its objects have different keys ('a' is not in all)"),
        (({},), JSON_TYPE, "it holds an object without keys"),
        ((1, "x"), JSON_TYPE, "it holds numbers and text"),
        (([["x"]], ["x"]), JSON_TYPE, "it holds lists and text"),
        ((True, 1), JSON_TYPE, "it holds numbers and true or false"),
        (
            (0.5, 2**53 + 1),
            JSON_TYPE,
            f"it holds fractions, and {2**53 + 1}, which is too large for one",
        ),
        ((10**38,), JSON_TYPE, "it holds whole numbers of more than 38 digits"),
    ],
)
def test_types_that_drift(values: tuple[Any, ...], kind: pa.DataType, why: str) -> None:
    for order in (values, values[::-1]):
        column, told = settled(*order)
        assert (column.type, told) == (kind, why)
        assert python_values(column) == list(order)


def test_what_is_nested_without_end_stays_json() -> None:
    deep: Any = []
    for _ in range(40):
        deep = [deep]
    assert settled(deep)[1] == "it holds values nested more than 32 deep"


@pytest.mark.parametrize(
    ("declared", "value", "columns"),
    [
        (["a"], "x", {"a": "x"}),
        (["a"], {"a": 1}, {"a": 1}),
        (["a"], {"other": 1}, {"a": {"other": 1}}),
        (["a"], [1, 2], {"a": [1, 2]}),
        (["a", "b"], (1, 2), {"a": 1, "b": 2}),
        (["a", "b"], {"b": 2}, {"b": 2}),
        ({"a": str, "b": float}, {"a": "x", "b": 1}, {"a": "x", "b": 1}),
        ({"a": str}, None, {"a": None}),
        ({"a": str, "b": int}, ("1" * 30, 2**63 - 1), {"a": "1" * 30, "b": 2**63 - 1}),
        (["a"], 2**70, {"a": 2**70}),
    ],
)
def test_values_become_columns(declared: Any, value: Any, columns: dict[str, Any]) -> None:
    assert msgspec.json.decode(OutputSchema(declared).encode(value)) == columns


@pytest.mark.parametrize(
    ("declared", "value"),
    [
        (["a", "b"], 1),
        (["a", "b"], (1, 2, 3)),
        (["a", "b"], {"c": 1}),
        ({"a": int}, "x"),
        ({"a": list[str]}, [1]),
        ({"a": int}, 2**63),
        ({"a": list[int]}, [1, -(2**63) - 1]),
        (["a"], object()),
    ],
)
def test_values_that_do_not_fit_are_row_errors(declared: Any, value: Any) -> None:
    with pytest.raises(OutputMismatch):
        OutputSchema(declared).encode(value)


@pytest.mark.parametrize("declared", [[], ["a", "a"], ["_error"], [1], {"a": object}])
def test_unusable_schemas_are_refused(declared: Any) -> None:
    with pytest.raises(ConfigError):
        OutputSchema(declared)


class Verdict(BaseModel):
    label: Literal["good", "bad"]
    score: float = Field(ge=0, le=1)
    reasons: list[str] = []
    at: dt.datetime | None = None
    extra: dict[str, int] = {}


def in_a_table(schema: OutputSchema, *values: Any) -> pa.Table:
    """What values become in a table."""
    rows = [msgspec.json.decode(schema.encode(value)) for value in values]
    columns = {
        name: pa.array([fit(row.get(name), kind) for row in rows], kind)
        for name, kind in schema.arrow.items()
        if kind is not None
    }
    return pa.table(columns)


def test_a_model_is_a_schema() -> None:
    schema = OutputSchema(Verdict)
    assert schema.names == ["label", "score", "reasons", "at", "extra"]
    moment = dt.datetime(2026, 1, 2, 3, tzinfo=dt.timezone(dt.timedelta(hours=1)))
    made = Verdict(label="good", score=0.5, at=moment, extra={"a": 1})
    table = in_a_table(schema, made, {"label": "bad", "score": 1, "reasons": ["x"]})
    assert table.schema.types == [
        pa.string(),
        pa.float64(),
        pa.list_(pa.string()),
        pa.timestamp("us", "UTC"),
        pa.string(),
    ]
    assert table.to_pylist()[0] == {**made.model_dump(), "at": moment, "extra": '{"a":1}'}
    assert table.to_pylist()[1]["score"] == 1.0


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"label": "ugly", "score": 0.5}, "label: Input should be 'good' or 'bad'"),
        ({"label": "good", "score": 2}, "score: Input should be less than or equal to 1"),
        ({"label": "good"}, "score: Field required"),
        ("good", "no Verdict"),
    ],
)
def test_what_does_not_fit_a_model_says_why(value: Any, reason: str) -> None:
    with pytest.raises(OutputMismatch, match=reason):
        OutputSchema(Verdict).encode(value)


def test_models_inside_a_schema() -> None:
    schema = OutputSchema({"verdicts": list[Verdict], "kind": Literal["a", "b"], "raw": dict})
    table = in_a_table(
        schema, {"verdicts": [{"label": "good", "score": 1}], "kind": "a", "raw": {}}
    )
    assert table["verdicts"].to_pylist()[0][0]["label"] == "good"
    assert table["raw"].to_pylist() == ["{}"]
    with pytest.raises(OutputMismatch, match=r"'verdicts': label: Input should be .*\[0\]"):
        schema.encode(([{"label": "x", "score": 1}], "a", {}))
    with pytest.raises(OutputMismatch, match="'kind'"):
        schema.encode(([], "c", {}))


def test_types_by_their_names() -> None:
    named = OutputSchema({"a": "float", "b": "list[int]", "c": "datetime", "d": "bytes"})
    types = {"a": float, "b": list[int], "c": dt.datetime, "d": bytes}
    assert named.arrow == OutputSchema(types).arrow
    table = in_a_table(named, {"a": 1, "b": [2], "c": "2026-01-02T03:04:05", "d": b"\x00"})
    assert table.to_pylist()[0]["d"] == b"\x00"
    assert table["c"].to_pylist()[0] == dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
    assert {name: type_name(kind) for name, kind in types.items()} == {
        "a": "float",
        "b": "list[int]",
        "c": "datetime",
        "d": "bytes",
    }
    with pytest.raises(ConfigError, match="'flaot' is no type"):
        OutputSchema({"a": "flaot"})


def test_kept_columns_come_last_and_are_not_the_jobs() -> None:
    schema = OutputSchema(["answer"], {"latency_s": float})
    assert schema.names == ["answer", "latency_s"]
    assert msgspec.json.decode(schema.encode("x", {"latency_s": 0.5})) == {
        "answer": "x",
        "latency_s": 0.5,
    }
    with pytest.raises(ConfigError, match="each once"):
        OutputSchema(["latency_s"], {"latency_s": float})


def test_numbers_as_written_are_numbers() -> None:
    number = WrittenFloat("3.10")
    assert OutputSchema(["a"]).encode({"x": [number]}) == b'{"a":{"x":[3.10]}}'
    assert OutputSchema({"a": float, "b": list[float]}).encode((number, [number])) == (
        b'{"a":3.1,"b":[3.1]}'
    )
