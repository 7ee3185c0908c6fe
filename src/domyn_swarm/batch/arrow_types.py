"""Arrow types of answers from what a schema declares."""

from __future__ import annotations

import datetime as dt
import enum
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import (
    Annotated,
    Any,
    Literal,
    TypedDict,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

import msgspec
import pyarrow as pa
from pydantic import BaseModel

from domyn_swarm.batch.json_shapes import Shape
from domyn_swarm.batch.json_values import is_json
from domyn_swarm.errors import ConfigError

_SCALARS: dict[Any, pa.DataType] = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
    bytes: pa.binary(),
    dt.datetime: pa.timestamp("us", "UTC"),
    dt.date: pa.date32(),
}
_NAMES: dict[str, Any] = {
    "str": str,
    "int": int,
    "float": float,
    "bool": bool,
    "bytes": bytes,
    "datetime": dt.datetime,
    "date": dt.date,
    "dict": dict,
}
JSON_TEXT = pa.string()
"""The type of what has no fixed shape: it is kept as JSON."""


def annotation_of(declared: Any) -> Any:  # noqa: ANN401 - a type annotation
    """A declared type as a Python annotation.

    Types are annotations themselves, their names (`"float"`, `"list[str]"`: what JSON can carry),
    or mappings of field names to types.

    Raises:
        ConfigError: a name that stands for no type.
    """
    if isinstance(declared, Mapping):
        fields = {name: annotation_of(kind) for name, kind in declared.items()}
        return TypedDict("Fields", fields)  # type: ignore[operator]
    if not isinstance(declared, str):
        return declared
    text = declared.strip()
    if text.startswith("list[") and text.endswith("]"):
        return list[annotation_of(text[5:-1])]  # type: ignore[misc]
    if text not in _NAMES:
        raise ConfigError(
            f"output_schema: {declared!r} is no type.",
            hint=f"Types are {', '.join(_NAMES)} and list[...]; leave types out to infer them.",
        )
    return _NAMES[text]


def type_name(annotation: Any) -> str:  # noqa: ANN401 - a type annotation
    """A declared type by its name, where it has one.

    Raises:
        ConfigError: it has none.
    """
    if isinstance(annotation, str):
        return annotation
    for name, kind in _NAMES.items():
        if annotation is kind:
            return name
    if get_origin(annotation) is list and get_args(annotation):
        return f"list[{type_name(get_args(annotation)[0])}]"
    raise ConfigError(
        f"output_schema: the type {annotation!r} has no form that travels to a worker.",
        hint="Declare the schema where the job is defined, not where it is submitted.",
    )


def arrow_type(annotation: Any) -> pa.DataType | None:  # noqa: ANN401 - a type annotation
    """The Arrow type of an annotation; None where it says nothing (`Any`, several types).

    `X | None` is that of X. Models, typed dictionaries and mappings of names to types are structs;
    what has no fixed fields (`dict`) is JSON text.

    Raises:
        ConfigError: it has none.
    """
    if annotation is Any:
        return None
    if annotation in _SCALARS:
        return _SCALARS[annotation]
    if get_origin(annotation) is not None:
        return _generic_type(annotation)
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return _common([one.value for one in annotation])
    if annotation is dict:
        return JSON_TEXT
    fields = fields_of(annotation)
    if fields is None:
        raise _unsupported(annotation)
    return pa.struct([(name, arrow_type(kind) or JSON_TEXT) for name, kind in fields.items()])


def _generic_type(annotation: Any) -> pa.DataType | None:  # noqa: ANN401 - a type annotation
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        left = [one for one in arguments if one is not type(None)]
        return arrow_type(left[0]) if len(left) == 1 else None
    if origin is Literal:
        return _common(arguments)
    if origin is Annotated:
        return arrow_type(arguments[0])
    if origin in (list, tuple, set, Sequence):
        return pa.list_(arrow_type(arguments[0]) or JSON_TEXT)
    if origin in (dict, Mapping):
        return JSON_TEXT
    raise _unsupported(annotation)


def _unsupported(annotation: Any) -> ConfigError:  # noqa: ANN401 - a type annotation
    return ConfigError(
        f"output_schema: the type {annotation!r} is not supported.",
        hint="Use str, int, float, bool, bytes, datetime, date, list[...], Literal, a pydantic "
        "model; leave types out to infer them.",
    )


def fields_of(annotation: Any) -> dict[str, Any] | None:  # noqa: ANN401 - a type annotation
    """The fields of a pydantic model or a typed dictionary, with their types; None: it is none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {name: field.annotation for name, field in annotation.model_fields.items()}
    return get_type_hints(annotation) if is_typeddict(annotation) else None


def _common(values: Iterable[Any]) -> pa.DataType:
    shape = Shape()
    for value in values:
        shape.add(value)
    kind = shape.arrow()
    return JSON_TEXT if is_json(kind) else kind


def fit(value: Any, kind: pa.DataType) -> Any:  # noqa: ANN401 - JSON
    """A JSON value in the shape that a type asks for."""
    if value is None:
        return None
    if pa.types.is_string(kind) and not isinstance(value, str):
        return msgspec.json.encode(value).decode()
    if pa.types.is_list(kind) and isinstance(value, list):
        return [fit(item, kind.value_type) for item in value]
    if pa.types.is_struct(kind) and isinstance(value, dict):
        return {field.name: fit(value.get(field.name), field.type) for field in kind}
    return _fit_scalar(value, kind)


def _fit_scalar(value: Any, kind: pa.DataType) -> Any:  # noqa: ANN401 - JSON
    if pa.types.is_floating(kind):
        return float(value)
    if pa.types.is_binary(kind):
        return msgspec.convert(value, bytes)  # base64, as it was encoded
    if pa.types.is_timestamp(kind):
        return _aware(msgspec.convert(value, dt.datetime))
    if pa.types.is_date(kind):
        return msgspec.convert(value, dt.date)
    return value


def _aware(moment: dt.datetime) -> dt.datetime:
    """A moment without a zone is taken as UTC."""
    return moment.replace(tzinfo=dt.UTC) if moment.tzinfo is None else moment
