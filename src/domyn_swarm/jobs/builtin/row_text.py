"""Converts a row's values to text of a prompt: text unchanged, numbers in their original form,
objects and lists as JSON.
"""

from __future__ import annotations

import datetime as dt
import math
from decimal import Decimal
from typing import Any

import msgspec
from typing_extensions import override

_encoder = msgspec.json.Encoder()
_SHOWN_AS_TEXT = (int, Decimal, dt.date, dt.time, dt.timedelta)


class NullInPrompt(ValueError):
    """A null value would become text of the prompt."""


class LiteralList(list[Any]):
    """A list literal of a template: a null in it is refused; lists of a row may have nulls."""

    weight = 1

    @override
    def __add__(self, other: list[Any]) -> list[Any]:
        both = super().__add__(other)
        if not isinstance(other, LiteralList):
            return both
        made = LiteralList(both)
        made.weight = self.weight + other.weight
        return made


class LiteralTuple(tuple[Any, ...]):
    """As `LiteralList`, for tuples."""

    weight = 1


class LiteralDict(dict[Any, Any]):
    """As `LiteralList`, for objects."""

    weight = 1


_Literal = LiteralList | LiteralTuple | LiteralDict


def literal(value: list[Any] | tuple[Any, ...] | dict[Any, Any]) -> _Literal:
    """The same value, marked as a literal of the template. Its `weight` is the number of values
    that are written for it, nested ones included; a value that occurs twice counts twice.
    """
    made: _Literal
    if isinstance(value, dict):
        made = LiteralDict(value)
    else:
        made = LiteralTuple(value) if isinstance(value, tuple) else LiteralList(value)
    inside = made.values() if isinstance(made, LiteralDict) else made
    made.weight = 1 + sum(one.weight if isinstance(one, _Literal) else 1 for one in inside)
    return made


def without_nan(value: Any) -> Any:  # noqa: ANN401 - a row's value
    """The value with null for every NaN, which is how tables represent missing values."""
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, list):
        return [without_nan(one) for one in value]
    if isinstance(value, dict):
        return {name: without_nan(one) for name, one in value.items()}
    return value


def text_of(value: Any) -> str:  # noqa: ANN401 - a row's value, or what a template made of it
    """The text of a value in a prompt.

    Raises:
        NullInPrompt: it is null.
        ValueError: it is bytes or a Python object, which has no text in a prompt.
    """
    if isinstance(value, str):
        return value
    if value is None:
        raise NullInPrompt("a value in the prompt is null")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, _SHOWN_AS_TEXT):
        return str(value)
    if isinstance(value, list | tuple | dict):
        _check_literal(value)
        return json_of(value)
    raise _refusal(value)


def _check_literal(value: Any) -> None:  # noqa: ANN401 - a value of a template
    """Refuse a null column in a list or an object that the template makes of columns."""
    if not isinstance(value, _Literal):
        return
    for one in value.values() if isinstance(value, dict) else value:
        if one is None:
            raise NullInPrompt("a value in the prompt is null")
        _check_literal(one)


def json_of(value: Any) -> str:  # noqa: ANN401 - a row's value
    """A value as JSON without spaces; numbers keep their original form, times are text.

    Raises:
        ValueError: it has no JSON form.
    """
    return _encoder.encode(_as_json(value)).decode()


def _as_json(value: Any) -> Any:  # noqa: ANN401 - a row's value
    """The value in types that the encoder knows, with numbers as text in their original form."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)  # plain: Jinja marks escaped text
    if isinstance(value, dict):
        return {str(name): _as_json(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(one) for one in value]
    if isinstance(value, dt.date | dt.time):
        return value.isoformat()
    return str(value) if isinstance(value, dt.timedelta) else msgspec.Raw(text_of(value).encode())


def _number(value: float) -> str:
    """A number in its file's form if that is known (then it is the number's `str`), else the
    shortest text that denotes this number.
    """
    if math.isnan(value):
        raise NullInPrompt("a value in the prompt is null")
    text = str(value)
    if text.endswith("inf"):  # a number of a file has that file's text, however large it is
        raise ValueError("an infinite number cannot stand in a prompt")
    return text


def _refusal(value: Any) -> ValueError:  # noqa: ANN401 - whatever it is
    if isinstance(value, bytes | bytearray | memoryview):
        return ValueError("bytes cannot stand in a prompt: make the column text first")
    kind = type(value).__name__
    if kind == "generator":
        return ValueError(
            "a filter's values cannot stand in a prompt: end with `| list` or `| join`"
        )
    return ValueError(f"a {kind} cannot stand in a prompt")
