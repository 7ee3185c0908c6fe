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

from domyn_swarm.batch.arrow_types import fit, type_name, type_of, unify
from domyn_swarm.batch.schema import OutputMismatch, OutputSchema
from domyn_swarm.errors import ConfigError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text("abc", min_size=1, max_size=2), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.lists(JSON, min_size=1, max_size=6))
def test_any_values_have_one_type_that_holds_them_all(values: list[Any]) -> None:
    kind = pa.null()
    for value in values:
        kind = unify(kind, type_of(value))
    array = pa.array([fit(value, kind) for value in values], kind)
    assert len(array) == len(values)
    assert [value is None for value in values] == [one is None for one in array.to_pylist()]


@pytest.mark.parametrize(
    ("first", "second", "together"),
    [
        (1, 2.5, pa.float64()),
        (None, {"a": 1}, pa.struct([("a", pa.int64())])),
        ({"a": 1}, {"b": "x"}, pa.struct([("a", pa.int64()), ("b", pa.string())])),
        ([1], [], pa.list_(pa.int64())),
        (1, "x", pa.string()),
        (True, 1, pa.string()),
    ],
)
def test_types_that_drift(first: Any, second: Any, together: pa.DataType) -> None:
    assert unify(type_of(first), type_of(second)).equals(together)
    turned = unify(type_of(second), type_of(first))
    assert pa.types.is_struct(turned) or turned.equals(together)


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


def typed(schema: OutputSchema, *values: Any) -> pa.Table:
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
    table = typed(schema, made, {"label": "bad", "score": 1, "reasons": ["x"]})
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
    table = typed(schema, {"verdicts": [{"label": "good", "score": 1}], "kind": "a", "raw": {}})
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
    table = typed(named, {"a": 1, "b": [2], "c": "2026-01-02T03:04:05", "d": b"\x00"})
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
