"""Writes dates and times of Arrow as text, for all years and for unknown time zones."""

from __future__ import annotations

import functools
from typing import TypeVar

import numpy as np
import pyarrow as pa

_Times = TypeVar("_Times", pa.Array, pa.Scalar)

_LAST_YEAR = 32_767  # Arrow writes the years from -32,767 to this
_DAY_MS = 24 * 3600 * 1000


def time_texts(column: pa.Array) -> pa.Array:
    """Dates or times as Arrow writes them, and those beyond the years that Arrow writes in the same
    form. Times of an unknown zone are written in UTC.
    """
    texts = in_known_zone(column).cast(pa.string())
    if not has_far_years(column):
        return texts
    values = zip(texts.to_pylist(), column, strict=True)
    return pa.array([_far(one) if _is_far(one) else text for text, one in values], pa.string())


def has_far_years(column: pa.Array) -> bool:
    """Whether a column has dates or times that Arrow cannot write as text."""
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


def time_text(one: pa.Scalar) -> str:
    """The text of a date, a time or a duration, with all its digits."""
    if _is_far(one):
        return _far(one)
    try:
        return str(in_known_zone(one).cast(pa.string()).as_py())
    except pa.ArrowException:  # a duration
        return f"{one.value} {one.type.unit}"


def unknown_zone(kind: pa.DataType) -> str | None:
    """The first time zone in a type, nested types included, that this machine does not know; None:
    there is none.
    """
    if pa.types.is_timestamp(kind):
        return None if kind.tz is None or _is_known(kind) else str(kind.tz)
    if pa.types.is_dictionary(kind):
        return unknown_zone(kind.value_type)
    inside = (unknown_zone(kind.field(at).type) for at in range(kind.num_fields))
    return next((zone for zone in inside if zone is not None), None)


@functools.cache
def _is_known(kind: pa.DataType) -> bool:
    """Whether Arrow knows the type's time zone."""
    try:
        pa.scalar(0, kind).cast(pa.string())
    except pa.ArrowException:
        return False
    return True


def in_known_zone(times: _Times) -> _Times:
    """The same moments, in UTC if this machine does not know their zone."""
    kind = times.type
    if not pa.types.is_timestamp(kind) or unknown_zone(kind) is None:
        return times
    return times.cast(pa.timestamp(kind.unit, "UTC"))
