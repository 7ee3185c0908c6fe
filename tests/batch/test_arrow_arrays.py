"""Arrays from buffers are those that Arrow itself makes, and take no pandas to make."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domyn_swarm.batch import column_values
from domyn_swarm.batch.column_values import array, encoded_array, flags, indices, text_array


@given(st.lists(st.none() | st.text(max_size=5)))
def test_texts_are_those_of_arrow(values: list[str | None]) -> None:
    made = array(values, pa.string())
    made.validate(full=True)
    assert made.equals(pa.array(values, pa.string()))
    assert made.null_count == values.count(None)


@given(st.lists(st.none() | st.integers(-(2**63), 2**63 - 1)))
def test_whole_numbers_are_those_of_arrow(values: list[int | None]) -> None:
    made = array(values, pa.int64())
    made.validate(full=True)
    assert made.equals(pa.array(values, pa.int64()))


@given(st.lists(st.none() | st.floats(allow_nan=False) | st.integers(-(2**53), 2**53)))
def test_fractions_are_those_of_arrow(values: list[float | None]) -> None:
    made = array(values, pa.float64())
    made.validate(full=True)
    assert made.equals(pa.array(values, pa.float64()))


@given(st.lists(st.text(max_size=5)))
def test_texts_without_nulls_are_those_of_arrow(values: list[str]) -> None:
    made = text_array(values)
    made.validate(full=True)
    assert made.equals(pa.array(values, pa.string()))


@given(st.lists(st.integers(-(2**63), 2**63 - 1)))
def test_positions_are_those_of_arrow(values: list[int]) -> None:
    assert indices(values).equals(pa.array(values, pa.int64()))


@pytest.mark.parametrize(
    ("values", "kind"),
    [([1, None], pa.int32()), ([{"a": "b"}], pa.struct([("a", pa.string())]))],
)
def test_what_is_no_text_is_made_by_arrow(values: list[object], kind: pa.DataType) -> None:
    assert array(values, kind).equals(pa.array(values, kind))


def test_what_is_no_text_is_refused_as_by_arrow() -> None:
    with pytest.raises(pa.ArrowException, match="bytes"):
        array(["a", 1], pa.string())
    with pytest.raises(OverflowError):
        array([2**63], pa.int64())


def test_more_text_than_an_array_holds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(column_values, "_MOST_BYTES", 3)
    with pytest.raises(pa.ArrowCapacityError, match="4 bytes of text"):
        encoded_array([b"ab", None, b"cd"])


@given(st.lists(st.none() | st.booleans()), st.integers(0, 9))
def test_flags_are_those_of_arrow(values: list[bool | None], start: int) -> None:
    column = pa.array(values, pa.bool_()).slice(start)
    assert flags(column).tolist() == [value is True for value in values[start:]]
