"""Output columns: their names, their types, and how a job's value becomes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_origin

import msgspec
import pyarrow as pa

from domyn_swarm.errors import ConfigError

ERROR_COLUMN = "_error"
ERROR_TYPE = pa.struct(
    [
        ("type", pa.string()),
        ("status", pa.int32()),
        ("message", pa.string()),
        ("attempts", pa.int32()),
    ]
)

_SCALARS: dict[Any, pa.DataType] = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
    bytes: pa.binary(),
}


_JSON_SCALARS = {
    str: pa.string(),
    bool: pa.bool_(),
    float: pa.float64(),
    type(None): pa.null(),
}


class OutputMismatch(ValueError):
    """A job's value does not fit its output schema; a row error."""


class OutputSchema:
    """The output columns in order. A type of None is settled from the values at publishing."""

    def __init__(self, declared: Sequence[str] | Mapping[str, Any]) -> None:
        """Take names, or names with Python types (`str`, `int`, `list[str]`, …).

        Raises:
            ConfigError: no column, a name twice, or a type that is not supported.
        """
        names = list(declared)
        if not names or len(set(names)) != len(names) or not all(map(_good_name, names)):
            raise ConfigError(
                f"output_schema {names!r} must name at least one column, each once.",
                hint="Names are strings; a leading underscore is reserved.",
            )
        self.names = names
        self._types = dict(declared) if isinstance(declared, Mapping) else {}
        self.arrow: dict[str, pa.DataType | None] = {
            name: arrow_type(self._types[name]) if name in self._types else None for name in names
        }

    def described(self) -> dict[str, str]:
        """The schema in words, for the job's identity."""
        return {name: str(kind) if kind else "inferred" for name, kind in self.arrow.items()}

    def encode(self, value: Any) -> bytes:  # noqa: ANN401 - whatever a job returns
        """A job's value as the JSON object of the output columns.

        A dict names the columns; with one column any other value is that column's; with several
        a tuple or list gives them in order.

        Raises:
            OutputMismatch: unknown column, wrong number of values, wrong type, not JSON.
        """
        columns = self._columns(value)
        for name, kind in self._types.items():
            given = columns.get(name)
            if given is None or type(given) is kind:
                continue  # by far the commonest, and conversion costs as much as all the rest
            try:
                columns[name] = msgspec.convert(given, kind, strict=True)
            except msgspec.ValidationError as error:
                raise OutputMismatch(f"output column {name!r}: {error}") from error
        try:
            return _encoder.encode(columns)
        except (TypeError, ValueError, OverflowError) as error:
            raise OutputMismatch(f"the output is not JSON: {error}") from error

    def _columns(self, value: Any) -> dict[str, Any]:  # noqa: ANN401 - whatever a job returns
        if isinstance(value, dict):
            unknown = [name for name in value if name not in self.names]
            if not unknown:
                return dict(value)
            if len(self.names) > 1:
                raise OutputMismatch(f"unknown output columns {unknown}; known: {self.names}")
        if len(self.names) == 1:
            return {self.names[0]: value}
        if isinstance(value, tuple | list) and len(value) == len(self.names):
            return dict(zip(self.names, value, strict=True))
        raise OutputMismatch(
            f"the job returned {type(value).__name__}, not values for {self.names}"
        )


def _plain(value: Any) -> Any:  # noqa: ANN401 - JSON
    if hasattr(value, "model_dump"):
        return value.model_dump()
    if hasattr(value, "tolist"):  # numpy
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no JSON form")


_encoder = msgspec.json.Encoder(enc_hook=_plain)


def _good_name(name: object) -> bool:
    return isinstance(name, str) and bool(name) and not name.startswith("_")


def arrow_type(annotation: Any) -> pa.DataType:  # noqa: ANN401 - a type annotation
    """The Arrow type of a Python annotation.

    Raises:
        ConfigError: it has none.
    """
    if annotation in _SCALARS:
        return _SCALARS[annotation]
    if get_origin(annotation) in (list, tuple) and get_args(annotation):
        return pa.list_(arrow_type(get_args(annotation)[0]))
    if isinstance(annotation, dict):
        return pa.struct([(name, arrow_type(kind)) for name, kind in annotation.items()])
    raise ConfigError(
        f"output_schema: the type {annotation!r} is not supported.",
        hint="Use str, int, float, bool, bytes, list[...]; leave types out to infer them.",
    )


def type_of(value: Any) -> pa.DataType:  # noqa: ANN401 - JSON
    """The narrowest Arrow type that holds a JSON value."""
    if isinstance(value, int) and not isinstance(value, bool):
        return pa.int64() if -(2**63) <= value < 2**63 else pa.float64()
    if isinstance(value, list):
        inner = pa.null()
        for item in value:
            inner = unify(inner, type_of(item))
        return pa.list_(inner)
    if isinstance(value, dict):
        return pa.struct([(name, type_of(item)) for name, item in value.items()])
    return _JSON_SCALARS[type(value)]


def unify(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """The narrowest type that holds both; JSON text (string) where nothing else does."""
    if one.equals(other) or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    numbers = (pa.int64(), pa.float64())
    if one in numbers and other in numbers:
        return pa.float64()
    if pa.types.is_list(one) and pa.types.is_list(other):
        return pa.list_(unify(one.value_type, other.value_type))
    if pa.types.is_struct(one) and pa.types.is_struct(other):
        fields = {field.name: field.type for field in one}
        for field in other:
            fields[field.name] = unify(fields.get(field.name, pa.null()), field.type)
        return pa.struct(list(fields.items()))
    return pa.string()


def fit(value: Any, kind: pa.DataType) -> Any:  # noqa: ANN401 - JSON
    """A JSON value in the shape that a unified type asks for."""
    if value is None:
        return None
    if pa.types.is_string(kind) and not isinstance(value, str):
        return msgspec.json.encode(value).decode()
    if pa.types.is_floating(kind):
        return float(value)
    if pa.types.is_list(kind) and isinstance(value, list):
        return [fit(item, kind.value_type) for item in value]
    if pa.types.is_struct(kind) and isinstance(value, dict):
        return {field.name: fit(value.get(field.name), field.type) for field in kind}
    return value
