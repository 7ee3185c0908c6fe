"""The values of a column as Python has them, whatever its type."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from domyn_swarm.batch.arrow_arrays import array, flags
from domyn_swarm.batch.json_values import is_json, json_values

_LAST_YEAR = 32_767  # of those that Arrow writes, in both directions
_DAY_MS = 24 * 3600 * 1000


def python_values(column: pa.Array, *, as_request: bool = False) -> list[Any]:
    """The values of a column, whichever libraries are installed.

    Python's own times have no nanoseconds and end with the year 9999: those beyond are text, with
    all their digits. The others are the same values as in a column of microseconds. Numbers of
    single precision are the shortest that are the same in single precision: 0.1, not
    0.10000000149011612.

    With `as_request` they are as a request is to have them: the fractions of JSON as they were
    written, and structs without their nulls, since Arrow's structs have every field in every row.
    """
    if is_json(column.type):
        return json_values(column, written=as_request)
    if (as_text := _with(column.type, pa.string())) != column.type:
        column = column.cast(as_text).cast(_with(column.type, pa.float64()))
    if pa.types.is_temporal(column.type) and getattr(column.type, "unit", None) == "ns":
        return _of_nanoseconds(column)
    try:
        values: list[Any] = column.to_pylist()
    except (OverflowError, ValueError):  # a time that Python has not
        values = [_value(one) for one in column]
    if as_request and pa.types.is_nested(column.type):
        return [without_nulls(one) for one in values]
    return values


def without_nulls(value: Any) -> Any:  # noqa: ANN401 - a value of a column
    """A value without the fields that are null, however deep."""
    if isinstance(value, dict):
        return {key: without_nulls(one) for key, one in value.items() if one is not None}
    return [without_nulls(one) for one in value] if isinstance(value, list) else value


def _with(kind: pa.DataType, single: pa.DataType) -> pa.DataType:
    """A type with another one for numbers of single precision, however deep they are."""
    if pa.types.is_float32(kind):
        return single
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_with(kind.value_type, single)))
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_with(kind.value_type, single)))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_with(field.type, single)) for field in kind])
    return kind


def _of_nanoseconds(column: pa.Array) -> list[Any]:
    import pyarrow.compute as pc  # here: columns with nanoseconds are rare

    kind = column.type
    whole = column.cast(_in_microseconds(kind), safe=False)
    odd = pc.not_equal(whole.cast(kind), column)
    values: list[Any] = whole.to_pylist()
    for at in np.flatnonzero(flags(odd)).tolist():
        one = column[at]
        values[at] = f"{one.value} ns" if pa.types.is_duration(kind) else _text(one)
    return values


def _in_microseconds(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", kind.tz)
    return pa.duration("us") if pa.types.is_duration(kind) else pa.time64("us")


def _value(one: pa.Scalar) -> Any:  # noqa: ANN401 - whatever it holds
    """A value of which some part may be no value of Python's."""
    if not one.is_valid:
        return None
    try:
        return one.as_py()
    except (OverflowError, ValueError):
        if isinstance(one, pa.StructScalar):
            return {name: _value(inner) for name, inner in one.items()}
        if isinstance(one, pa.ListScalar | pa.LargeListScalar | pa.FixedSizeListScalar):
            return [_value(inner) for inner in one.values]
        return _text(one)


def time_texts(column: pa.Array) -> pa.Array:
    """The text of dates or times, as Arrow writes them; of those beyond the years that it writes,
    too.
    """
    texts = column.cast(pa.string())
    if not has_far_years(column):
        return texts
    values = zip(texts.to_pylist(), column, strict=True)
    return array([_far(one) if _is_far(one) else text for text, one in values], pa.string())


def has_far_years(column: pa.Array) -> bool:
    """Whether a column holds dates or times that Arrow has no text for."""
    kind = column.type
    if not (pa.types.is_date(kind) or pa.types.is_timestamp(kind)):
        return False
    import pyarrow.compute as pc  # here: columns with times are rare

    ends = pc.min_max(column)
    return any(_is_far(ends[name]) for name in ("min", "max"))


def _is_far(one: pa.Scalar) -> bool:
    kind = one.type
    if not one.is_valid or not (pa.types.is_date(kind) or pa.types.is_timestamp(kind)):
        return False
    year = int(_numpy_time(one).astype("datetime64[Y]").astype(np.int64)) + 1970
    return abs(year) > _LAST_YEAR


def _far(one: pa.Scalar) -> str:
    text = str(_numpy_time(one)).replace("T", " ")
    return f"{text}Z" if pa.types.is_timestamp(one.type) and one.type.tz else text


def _numpy_time(one: pa.Scalar) -> np.datetime64:
    if pa.types.is_date(one.type):
        days = one.value if pa.types.is_date32(one.type) else one.value // _DAY_MS
        return np.datetime64(days, "D")
    return np.datetime64(one.value, one.type.unit)


def _text(one: pa.Scalar) -> str:
    if _is_far(one):
        return _far(one)
    try:
        return str(one.cast(pa.string()).as_py())
    except pa.ArrowException:  # a length of time
        return f"{one.value} {one.type.unit}"
