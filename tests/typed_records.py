"""Every record that a test's own process makes has values of its fields' types.

A record takes what it is given. The type checker sees to that it is of the right type, where it
knows the type; where it does not (`**fields`, JSON, rows of a database), tests do.
"""

from __future__ import annotations

from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec

from domyn_swarm import record

_make = record._RecordType.__new__


def _new(cls: type, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **how: Any):
    return _make(cls, name, bases, {**namespace, "__post_init__": _check}, **how)


def _check(one: record.Record) -> None:
    for field in msgspec.structs.fields(one):
        value = getattr(one, field.name)
        if not fits(value, field.type):
            raise TypeError(f"{type(one).__name__}.{field.name} is {value!r}, not {field.type}")


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type, as pydantic would leave it."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return fits(value, inner[0])
    if origin in {Union, UnionType}:
        return any(fits(value, one) for one in inner)
    if origin is tuple and inner[1:] == (...,):
        return type(value) is tuple and all(fits(one, inner[0]) for one in value)
    if origin is dict:
        return isinstance(value, dict) and all(
            fits(key, inner[0]) and fits(one, inner[1]) for key, one in value.items()
        )
    if origin is Literal:
        return value in inner
    plain = {Any: object, None: type(None), float: float | int}
    return isinstance(value, plain.get(hint, origin or hint))


record._RecordType.__new__ = _new
