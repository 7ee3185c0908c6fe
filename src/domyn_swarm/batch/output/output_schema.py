"""Output columns: their names, their types, and how a job's value becomes them."""

from __future__ import annotations

import datetime as dt
import enum
import re
import sys
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    TypedDict,
    TypeGuard,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

import msgspec
import pyarrow as pa

from domyn_swarm.batch.column_values import array, is_json, json_of, plain_numbers
from domyn_swarm.batch.output.open_types import Shape
from domyn_swarm.errors import ConfigError

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

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
"""The type of values without a fixed shape: they are kept as JSON."""


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
    """The name of a declared type, if it has one.

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
    """The Arrow type of an annotation; None if it is open (`Any`, several types).

    `X | None` has the type of X. Models, typed dictionaries and mappings of names to types are
    structs; types without fixed fields (`dict`) are JSON text.

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


def is_model(kind: object) -> TypeGuard[type[BaseModel]]:
    """Whether it is a pydantic model. Who has one has loaded pydantic, which costs a job without
    models a tenth of a second: it is not loaded for this.
    """
    pydantic = sys.modules.get("pydantic.main")
    return pydantic is not None and isinstance(kind, type) and issubclass(kind, pydantic.BaseModel)


def fields_of(annotation: Any) -> dict[str, Any] | None:  # noqa: ANN401 - a type annotation
    """The fields of a pydantic model or a typed dictionary, with their types; None for other
    types.
    """
    if is_model(annotation):
        return {name: field.annotation for name, field in annotation.model_fields.items()}
    return get_type_hints(annotation) if is_typeddict(annotation) else None


def _common(values: Iterable[Any]) -> pa.DataType:
    shape = Shape()
    for value in values:
        shape.add(value)
    kind = shape.arrow()
    return JSON_TEXT if is_json(kind) else kind


def fit(value: Any, kind: pa.DataType) -> Any:  # noqa: ANN401 - JSON
    """A JSON value in the shape that a type requires."""
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
    """A time without a zone is taken as UTC."""
    return moment.replace(tzinfo=dt.UTC) if moment.tzinfo is None else moment


_LONG = re.compile(rb"\d{19}")  # may exceed 64 bits
ERROR_TYPE = pa.struct(
    [
        ("type", pa.string()),
        ("status", pa.int32()),
        ("message", pa.string()),
        ("attempts", pa.int32()),
    ]
)

if TYPE_CHECKING:
    Declared = Sequence[str] | Mapping[str, Any] | type[BaseModel]
else:  # without pydantic, as in `is_model`
    Declared = Sequence[str] | Mapping[str, Any] | type
"""Names, names with types, or a pydantic model."""


class OutputMismatch(ValueError):
    """A job's value does not fit its output schema; a row error."""


class OutputSchema:
    """The output columns in order. A type of None is settled from the values at publishing.

    `kept` are columns that the framework fills, not the job; they come last.
    """

    def __init__(self, declared: Declared, kept: Mapping[str, Any] | None = None) -> None:
        """Take names, names with types (`str`, `list[str]`, …, or their names), or a model.

        Raises:
            ConfigError: no column, a name twice, or a type that is not supported.
        """
        self._model: type[BaseModel] | None = None
        if isinstance(declared, type):
            self._model, declared = declared, _fields(declared)
        names = [declared] if isinstance(declared, str) else list(declared)
        self.answered = names
        self.names = [*names, *(kept or {})]
        whole = len(set(self.names)) == len(self.names)
        if not names or not whole or not all(map(_good_name, names)):
            raise ConfigError(
                f"output_schema {self.names!r} must name at least one column, each once.",
                hint="Names are strings; a leading underscore is reserved.",
            )
        given = declared if isinstance(declared, Mapping) else {}
        declared_types = {name: annotation_of(kind) for name, kind in given.items()}
        types = {**declared_types, **(kept or {})}
        self.arrow: dict[str, pa.DataType | None] = {
            name: arrow_type(types[name]) if name in types else None for name in self.names
        }
        checked = declared_types if self._model is None else {}  # a model checks its own fields
        self._checked = {name: kind for name, kind in checked.items() if kind is not Any}
        self._fits_always = all(kind is None or _is_text(kind) for kind in self.arrow.values())

    def described(self) -> dict[str, str]:
        """The schema as text, for the job's identity."""
        return {name: str(kind) if kind else "inferred" for name, kind in self.arrow.items()}

    def encode(self, value: Any, kept: Mapping[str, Any] | None = None) -> bytes:  # noqa: ANN401 - whatever a job returns
        """A job's value as the JSON object of the output columns.

        A dict names the columns; with one column any other value is that column's; with several a
        tuple or list gives them in order. With a model for a schema, an instance of it, or what it
        can be made of.

        Raises:
            OutputMismatch: unknown column, wrong number of values, wrong type, not JSON.
        """
        columns = self._columns(value) if self._model is None else _made(self._model, value)
        for name, kind in self._checked.items():
            given = columns.get(name)
            if given is None or type(given) is kind:
                continue  # by far the commonest, and conversion costs as much as all the rest
            try:
                columns[name] = _converted(given, kind)
            except msgspec.ValidationError as error:
                reason = f"output column {name!r}: {error}"
                if given is value and isinstance(value, dict):  # probably a misspelt key
                    reason = f"the answer has no key {name!r}, it has {', '.join(map(repr, value))}"
                raise OutputMismatch(reason) from error
        if kept:
            columns |= kept
        try:
            encoded = _encoder.encode(columns)
        except (TypeError, ValueError, OverflowError) as error:
            raise OutputMismatch(f"the output is not JSON: {error}") from error
        if not self._fits_always and _LONG.search(encoded):
            self._check_fit(encoded)
        return encoded

    def _check_fit(self, encoded: bytes) -> None:
        """Refuse numbers that a declared type cannot hold, however deep they are."""
        columns = msgspec.json.decode(encoded)
        for name, kind in self.arrow.items():
            try:
                if kind is not None:
                    array([fit(columns.get(name), kind)], kind)
            except (pa.ArrowException, OverflowError) as error:
                raise OutputMismatch(f"output column {name!r} ({kind}): {error}") from error

    def _columns(self, value: Any) -> dict[str, Any]:  # noqa: ANN401 - whatever a job returns
        if isinstance(value, dict):
            unknown = [name for name in value if name not in self.answered]
            if not unknown:
                return dict(value)
            if len(self.answered) > 1:
                raise OutputMismatch(f"unknown output columns {unknown}; known: {self.answered}")
        if len(self.answered) == 1:
            return {self.answered[0]: value}
        if isinstance(value, tuple | list) and len(value) == len(self.answered):
            return dict(zip(self.answered, value, strict=True))
        raise OutputMismatch(
            f"the job returned {type(value).__name__}, not values for {self.answered}"
        )


def _is_text(kind: pa.DataType) -> bool:
    """Whether a type is text, or made only of text: it can hold any number."""
    if pa.types.is_list(kind):
        return _is_text(kind.value_type)
    if pa.types.is_struct(kind):
        return all(_is_text(field.type) for field in kind)
    return bool(pa.types.is_string(kind))


def _converted(value: Any, kind: Any) -> Any:  # noqa: ANN401 - whatever a job returns
    try:
        return msgspec.convert(value, kind, strict=True, dec_hook=_model_of)
    except msgspec.ValidationError:
        plain = plain_numbers(value)  # an item's `WrittenFloat` may be among them
        return msgspec.convert(plain, kind, strict=True, dec_hook=_model_of)


def _made(model: type[BaseModel], value: Any) -> dict[str, Any]:  # noqa: ANN401 - whatever a job returns
    from pydantic import ValidationError  # here, as in `is_model`

    try:
        return model.model_validate(value).model_dump(mode="json")
    except ValidationError as error:
        raise OutputMismatch(f"the output is no {model.__name__}: {reasons(error)}") from error


def _fields(model: type) -> dict[str, Any]:
    fields = fields_of(model)
    if fields is None:
        raise ConfigError(
            f"output_schema {model!r} is not a pydantic model.",
            hint="Give names, a mapping of names to types, or a pydantic model.",
        )
    return fields


def _model_of(kind: type, value: Any) -> Any:  # noqa: ANN401 - whatever a job returns
    """The `dec_hook` of msgspec for types that it does not support."""
    if not is_model(kind):
        raise TypeError(f"{kind.__name__} has no JSON form")
    from pydantic import ValidationError  # here, as in `is_model`

    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise ValueError(reasons(error)) from error


def reasons(error: ValidationError) -> str:
    """Why a value does not fit a model, on one line: the first three reasons."""
    found = error.errors(include_url=False, include_context=False)
    shown = [f"{'.'.join(map(str, one['loc'])) or 'value'}: {one['msg']}" for one in found[:3]]
    return "; ".join(shown) + (f"; and {len(found) - 3} more" if len(found) > 3 else "")


def _plain(value: Any) -> Any:  # noqa: ANN401 - JSON
    if hasattr(value, "model_dump"):
        return value.model_dump()
    if hasattr(value, "tolist"):  # numpy
        return value.tolist()
    return json_of(value)


_encoder = msgspec.json.Encoder(enc_hook=_plain)


def _good_name(name: object) -> bool:
    return isinstance(name, str) and bool(name) and not name.startswith("_")
