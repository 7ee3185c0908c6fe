"""Output columns: values, types that drift, and what does not fit."""

from __future__ import annotations

from typing import Any

import msgspec
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domyn_swarm.batch.schema import OutputMismatch, OutputSchema, fit, type_of, unify
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
