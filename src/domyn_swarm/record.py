"""The base class of records: frozen values with typed fields, written to JSON and read back.

Commands that only read import dozens of records and use few of them. So records are structs of
msgspec, whose classes cost little and whose JSON is decoded strictly. Pydantic, whose import takes
longer than such a command, is loaded only for other input: a user's files, JSON in another form
than a record's, a JSON Schema, a record within a configuration.

Modules with records that such commands read omit `from __future__ import annotations`, which would
turn each field's type into text that is compiled when a decoder is made.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import cache
from pathlib import Path
from threading import RLock
from types import UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    Self,
    TypeVar,
    Union,
    cast,
    dataclass_transform,
    get_args,
    get_origin,
)

import msgspec
from msgspec import Meta, Struct, StructMeta, field

from domyn_swarm.record_fields import After, Before, about

if TYPE_CHECKING:
    from pydantic import BaseModel, GetCoreSchemaHandler
    from pydantic_core import CoreSchema

__all__ = ["After", "Before", "Meta", "Record", "about", "field"]

_Record = TypeVar("_Record", bound="Record")


class _RecordType(StructMeta):
    """The metaclass of `Record`: makes each class a frozen msgspec struct.

    A record of several records has the fields of all of them. It is an instance of the first one
    alone, since Python gives an object one layout: the others may have no methods.
    """

    def __new__(
        cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **how: Any
    ) -> _RecordType:
        for attribute, default in namespace.items():
            if type(default).__module__.startswith("pydantic."):
                raise TypeError(
                    f"{name}.{attribute}: a record's default is a value; bounds stand beside the"
                    " type, as in Annotated[int, Meta(ge=0)]."
                )
        usual: dict[str, Any] = {"frozen": True, "kw_only": True, "forbid_unknown_fields": True}
        first, *others = bases
        for other in cast("list[type[Struct]]", others):
            extra = {one for one in vars(other) if not one.startswith("_")}
            if methods := extra - {*other.__struct_fields__}:
                raise TypeError(f"{name}: {other.__name__} has {methods}, so that it comes first.")
            fields = _fields_beside(first, other)
            first = super().__new__(cls, name, (first,), fields, **usual)
        return super().__new__(cls, name, (first,), namespace, **{**usual, **how})


def _fields_beside(first: type[Struct], other: type[Struct]) -> dict[str, Any]:
    """The fields of a record that another record lacks, as the body of a class."""
    lacking = [
        one for one in msgspec.structs.fields(other) if one.name not in first.__struct_fields__
    ]
    body: dict[str, Any] = {
        "__module__": other.__module__,
        "__annotations__": {one.name: one.type for one in lacking},
    }
    for one in lacking:
        if one.default_factory is not msgspec.NODEFAULT:
            body[one.name] = field(default_factory=one.default_factory)
        elif one.default is not msgspec.NODEFAULT:
            body[one.name] = one.default
    return body


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
class Record(Struct, metaclass=_RecordType, frozen=True):
    """A frozen, serialisable value. Unknown fields are refused.

    The constructor does not check types, which the type checker does; `model_validate` checks other
    input, and `model_validate_json` JSON.
    """

    def _repr_pretty_(self, printer: Any, _cycle: bool) -> None:  # noqa: ANN401 - IPython's
        """The notebook's display of the record: its `str`."""
        printer.text(str(self))

    @classmethod
    def field_names(cls) -> tuple[str, ...]:
        """Its fields, in their order."""
        return cls.__struct_fields__

    def as_fields(self) -> dict[str, Any]:
        """Its fields by name, records within it as they are."""
        return msgspec.structs.asdict(self)

    def model_copy(self, *, update: Mapping[str, Any] | None = None) -> Self:
        """A copy with other values for some fields."""
        return msgspec.structs.replace(self, **(update or {}))

    def model_dump(
        self,
        *,
        mode: Literal["python", "json"] = "python",
        include: Collection[str] | None = None,
        exclude: Collection[str] = (),
        exclude_none: bool = False,
    ) -> dict[str, Any]:
        """The record as a dictionary by field name, nested records likewise; with Python's values,
        or with those of JSON. `include` and `exclude` name fields of this record; `exclude_none`
        also applies to nested records.
        """
        names = [
            name
            for name in self.__struct_fields__
            if name not in exclude and (include is None or name in include)
        ]
        if mode == "json":
            written = msgspec.json.decode(msgspec.json.encode(self, enc_hook=_encoded))
            as_json = dict(zip(self.__struct_fields__, self.__struct_encode_fields__, strict=True))
            values = {as_json[name]: written[as_json[name]] for name in names}
        else:
            values = {name: _plain(getattr(self, name)) for name in names}
        return _without_none(values) if exclude_none else values

    def model_dump_json(self, *, indent: int | None = None) -> str:
        """The record as JSON, on one line without `indent`."""
        text = msgspec.json.encode(self, enc_hook=_encoded)
        return (text if indent is None else msgspec.json.format(text, indent=indent)).decode()

    @classmethod
    def model_validate(cls, given: object, *, context: Mapping[str, Any] | None = None) -> Self:
        """A record from a mapping, whose values are converted if that loses nothing, or from a
        record, which is returned unchanged.

        Raises:
            pydantic.ValidationError: a ValueError with every error and its place.
        """
        if isinstance(given, cls):
            return given
        if isinstance(given, Mapping):
            try:
                return _by_types(cls, given)
            except (msgspec.ValidationError, KeyError, TypeError, ValueError):
                pass  # pydantic converts more, or reports every error
        return cls.of_model(cls.pydantic_model().model_validate(given, context=context))

    @classmethod
    def model_validate_json(cls, text: str | bytes) -> Self:
        """A record from its JSON.

        Raises:
            pydantic.ValidationError: a ValueError with every error and its place.
        """
        try:
            return cast("Self", _decoder(cls).decode(text))
        except ValueError:  # not in a record's form: pydantic accepts it, or reports every error
            return cls.of_model(cls.pydantic_model().model_validate_json(text))

    @classmethod
    def model_json_schema(
        cls, *, mode: Literal["validation", "serialization"] = "validation"
    ) -> dict[str, Any]:
        """The record's JSON Schema, of its input (`validation`) or of its output."""
        return cls.pydantic_model().model_json_schema(mode=mode)

    @classmethod
    def pydantic_model(cls) -> type[BaseModel]:
        """A pydantic model of the same fields, for validation and schemas."""
        return _model_of(cls)

    @classmethod
    def of_model(cls, model: BaseModel) -> Self:
        """The record with the fields that were set in a validated model."""
        return cls(**{name: getattr(model, name) for name in model.model_fields_set})

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Pydantic's schema of the record, for models with records as fields."""
        from pydantic_core import core_schema

        model = cls.pydantic_model()

        def validated(given: object, usual: Callable[[object], Any]) -> Record:
            if isinstance(given, cls):
                return given
            made = usual(given)
            return made if isinstance(made, Record) else cls.of_model(made)

        return core_schema.no_info_wrap_validator_function(
            validated,
            handler(model),
            serialization=core_schema.plain_serializer_function_ser_schema(_dumped, info_arg=True),
        )


def _dumped(record: Record, info: Any) -> dict[str, Any]:  # noqa: ANN401 - pydantic's
    return record.model_dump(mode="json" if info.mode == "json" else "python")


_decoders: dict[type[Record], msgspec.json.Decoder[Any]] = {}
_building = RLock()


def _decoder(kind: type[Record]) -> msgspec.json.Decoder[Any]:
    """Decoders are made by one thread at a time: msgspec stores its type information on the class
    before it is complete, and a second thread that used it crashed the process.
    """
    decoder = _decoders.get(kind)
    if decoder is None:
        with _building:
            decoder = _decoders.get(kind)
            if decoder is None:
                decoder = _decoders[kind] = msgspec.json.Decoder(kind, dec_hook=_decoded)
    return decoder


def _by_types(kind: type[_Record], given: Mapping[str, Any]) -> _Record:
    """A record of values that already have the fields' types.

    Raises:
        msgspec.ValidationError, KeyError, TypeError, ValueError: a value does not, or only pydantic
            can check it.
    """
    _decoder(kind)  # completes msgspec's type information
    known = _readings(kind)
    return kind(**{name: known[name](value) for name, value in given.items()})


@cache
def _readings(kind: type[Record]) -> dict[str, Callable[[Any], Any]]:
    """Each field's conversion of a value, without the fields that only pydantic can check."""
    return {
        one.name: reading
        for one in msgspec.structs.fields(kind)
        if one.encode_name == one.name and (reading := _reading(one.type)) is not None
    }


def _reading(hint: Any) -> Callable[[Any], Any] | None:  # noqa: ANN401 - a type
    checks: list[After | Before] = []
    if get_origin(hint) is Annotated:
        checks = [one for one in hint.__metadata__ if isinstance(one, After | Before)]
        others = tuple(one for one in hint.__metadata__ if one not in checks)
        bare = get_args(hint)[0]
        hint = Annotated[(bare, *others)] if others else bare
    if not _says_all(hint) or len(checks) > 1:
        return None

    def read(value: Any) -> Any:  # noqa: ANN401 - any input
        for one in checks:
            if isinstance(one, Before):
                value = one.check(value)
        value = msgspec.convert(value, hint, dec_hook=_decoded)
        for one in checks:
            if isinstance(one, After):
                value = one.check(value)
        return value

    return read


@cache
def _types_say_all(kind: type[Record]) -> bool:
    """Whether the fields are constrained by types and bounds alone, including nested records."""
    return all(_says_all(one.type) for one in msgspec.structs.fields(kind))


def _says_all(hint: Any) -> bool:  # noqa: ANN401 - a type
    if isinstance(hint, type) and issubclass(hint, Record):
        return _types_say_all(hint)
    if get_origin(hint) is Annotated and any(not isinstance(m, Meta) for m in hint.__metadata__):
        return False
    return get_origin(hint) is Literal or all(map(_says_all, get_args(hint)))


@cache
def _model_of(kind: type[Record]) -> type[BaseModel]:
    from pydantic import ConfigDict, Field, create_model

    fields: dict[str, Any] = {}
    for one in msgspec.structs.fields(kind):
        alias = None if one.encode_name == one.name else one.encode_name
        if one.default_factory is not msgspec.NODEFAULT:
            default = Field(default_factory=one.default_factory, alias=alias)
        else:
            default = Field(... if one.required else one.default, alias=alias)
        fields[one.name] = (_for_pydantic(one.type), default)
    strict = kind.__struct_config__.forbid_unknown_fields
    return create_model(
        kind.__name__,
        __config__=ConfigDict(
            frozen=True, extra="forbid" if strict else "ignore", serialize_by_alias=True
        ),
        __doc__=kind.__doc__,
        __module__=kind.__module__,
        **fields,
    )


def _for_pydantic(hint: Any) -> Any:  # noqa: ANN401 - a type
    """The same type with bounds as pydantic's `Field`."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return Annotated[(_for_pydantic(inner[0]), *map(_bounds, hint.__metadata__))]
    if origin is Literal or not inner or isinstance(inner[0], list):
        return hint
    parts = tuple(map(_for_pydantic, inner))
    if origin in {Union, UnionType}:
        return Union[parts]  # noqa: UP007 - of a tuple
    return origin[parts]


def _bounds(meta: object) -> object:
    from pydantic import Field

    if not isinstance(meta, Meta):
        return meta
    names = ("ge", "gt", "le", "lt", "max_length", "min_length", "pattern")
    given = {name: getattr(meta, name) for name in names}
    return Field(**{name: bound for name, bound in given.items() if bound is not None})


def _plain(value: Any) -> Any:  # noqa: ANN401 - any value
    """The value with a dictionary for every record."""
    if isinstance(value, Record):
        return value.model_dump()
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if type(value) in {list, tuple}:
        return type(value)(map(_plain, value))
    return value


def _without_none(value: Any) -> Any:  # noqa: ANN401 - any value
    if isinstance(value, dict):
        return {key: _without_none(one) for key, one in value.items() if one is not None}
    return value


def _encoded(value: object) -> object:
    """The text of a value whose type has no JSON form."""
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"{type(value).__name__} is not a type of records' fields.")


def _decoded(kind: type, value: Any) -> object:  # noqa: ANN401 - from JSON
    if kind is not Path:
        raise NotImplementedError(f"{kind.__name__} is not a type of records' fields.")
    return Path(value)  # else TypeError, which the decoder reports as invalid input
