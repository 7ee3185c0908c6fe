"""Flags that are derived from a record's fields, and commands that take them."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    NamedTuple,
    Union,
    get_args,
    get_origin,
)

import msgspec
import typer

from domyn_swarm.cli.shared_options import parse_json_object
from domyn_swarm.record import Meta, Record

if TYPE_CHECKING:
    from domyn_swarm.config.sources import Layer

_LEAST_SECONDS = 0.001  # of times that must be more than 0


class Description(NamedTuple):
    """The description of a field by `record.about`."""

    kind: Any  # its type, without the words
    text: str
    flag: str
    metavar: str | None
    flag_help: str


def descriptions(kind: type[Record]) -> dict[str, Description]:
    """The fields of a record that have a description by `about`, by name, in their order."""
    fields = {}
    for one in msgspec.structs.fields(kind):
        hint, *notes = get_args(one.type) if get_origin(one.type) is Annotated else (one.type,)
        for note in notes:
            if isinstance(note, Meta) and note.description is not None:
                extra = note.extra or {}
                flag = extra["flag"] or f"--{one.name.replace('_', '-')}"
                text, shown = note.description, extra["flag_help"]
                fields[one.name] = Description(hint, text, flag, extra["metavar"], shown)
    return fields


class Flag(NamedTuple):
    """One flag, and the key of a job's file that it sets."""

    spelled: str
    annotation: Any  # for Typer
    key: tuple[str, ...]  # of the file; empty: it sets none
    read: Callable[[str, Any], Any]  # converts what was typed to the key's value
    default: Any = None

    @property
    def help(self) -> str:
        """Its text in `--help`."""
        return str(get_args(self.annotation)[1].help)


def as_typed(_flag: str, value: Any) -> Any:  # noqa: ANN401 - a flag's
    """The value in the form of a job's file."""
    return str(value) if isinstance(value, StrEnum | Path) else value


def flags_of(kind: type[Record], *names: str) -> dict[str, Flag]:
    """The flags of a record's fields: of `names`, or of all that `about` describes."""
    known = descriptions(kind)
    made = [_flag(name, known[name]) for name in names or known]
    return {_typed_as(flag): flag for flag in made}


def _typed_as(flag: Flag) -> str:
    """A flag's name in code: its key, or its spelling if that means the opposite."""
    return flag.spelled[2:].replace("-", "_") if flag.read is _false else flag.key[0]


def _flag(name: str, field: Description) -> Flag:
    kind, least, most = _typed(field.kind)
    read: Callable[[str, Any], Any] = as_typed
    if field.flag.startswith("--no-"):
        read = _false
    elif get_origin(field.kind) is dict:
        read = _object if get_args(field.kind)[1] is Any else _pairs
    option = typer.Option(
        field.flag, help=field.flag_help, metavar=field.metavar, min=least, max=most
    )
    typed: Any = bool if kind is bool else kind | None
    return Flag(
        field.flag, _annotated(typed, option), (name,), read, False if kind is bool else None
    )


def declared(annotation: Any, *key: str, read: Callable[[str, Any], Any] = as_typed) -> Flag:  # noqa: ANN401 - Typer's
    """A flag that is not described by a record."""
    kind, option = get_args(annotation)
    # Typer takes an option's name in place of a default.
    return Flag(str(option.default), annotation, key, read, False if kind is bool else None)


def _annotated(kind: Any, option: object) -> Any:  # noqa: ANN401 - a type
    return Annotated[kind, option]


def _typed(hint: Any) -> tuple[Any, float | None, float | None]:  # noqa: ANN401 - a type
    """The type of a field's typed value, with its minimum and maximum."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        kind, least, most = _typed(inner[0])
        for note in inner[1:]:
            if isinstance(note, Meta):
                above = None if note.gt is None else _LEAST_SECONDS
                least, most = note.ge if above is None else above, note.le
        return kind, least, most
    if origin in {Union, UnionType}:
        several = [one for one in inner if one is not NoneType]
        return _typed(several[0]) if len(several) == 1 else (str, None, None)
    if origin is tuple:
        return list[str], None, None
    return str if origin is dict else hint, None, None


def _false(_flag: str, _value: bool) -> bool:
    return False


def _object(flag: str, text: str) -> dict[str, Any]:
    return parse_json_object(text, flag)


def _pairs(flag: str, text: str) -> dict[str, str]:
    pairs = [one.rpartition("=") for one in text.split(",") if one.strip()]
    if any(not name or not kind for name, _, kind in pairs):
        raise typer.BadParameter(f"{flag} {text!r}: write COLUMN=TYPE,COLUMN=TYPE.")
    return {name.strip(): kind.strip() for name, _, kind in pairs}


def temperature_of(flag: str, text: str) -> float:
    """The number as JSON has it: 0 or 0.0 as in `--job-kwargs`, so that both name the same job."""
    try:
        number = json.loads(text)
    except json.JSONDecodeError:
        number = None
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < 1e9:
        raise typer.BadParameter(f"{flag} {text!r}: write a number such as 0 or 0.7.")
    return number


class Typed:
    """The typed values of some flags, by the names of their fields."""

    flags: ClassVar[Mapping[str, Flag]]

    def __init__(self, **values: Any) -> None:
        if unknown := values.keys() - self.flags.keys():
            raise TypeError(f"{type(self).__name__} has no {', '.join(sorted(unknown))}.")
        self.values: Mapping[str, Any] = {name: values.get(name) for name in self.flags}

    def layer(self) -> Layer:
        """The values by the keys of a job's file, each with its flag.

        Raises:
            typer.BadParameter: two flags set the same key, or a value cannot be read.
        """
        from domyn_swarm.config.sources import Key, Layer

        values: dict[str, Any] = {}
        places: dict[Key, str] = {}
        given = [(flag, self.values[name]) for name, flag in self.flags.items() if flag.key]
        # The flag of one key within a mapping wins over that of the whole mapping.
        for flag, value in sorted(given, key=lambda one: len(one[0].key)):
            if value is None or value is False or value == []:
                continue
            if flag.key in places:
                raise typer.BadParameter(
                    f"{places[flag.key]} and {flag.spelled} exclude each other."
                )
            setting = flag.read(flag.spelled, value)
            if setting == {}:
                continue
            inner = values.setdefault(flag.key[0], {}) if flag.key[1:] else values
            inner[flag.key[-1]] = setting
            places |= {flag.key[: length + 1]: flag.spelled for length in range(len(flag.key))}
        return Layer(values, places)


def taking_flags(command: Callable[..., None]) -> Callable[..., None]:
    """A command for Typer, which takes the flags of its parameter that is a `Typed` in the place of
    that.
    """
    own = inspect.signature(command, eval_str=True).parameters.values()
    [(name, kind)] = [(one.name, one.annotation) for one in own if _is_typed(one.annotation)]
    flags: Mapping[str, Flag] = kind.flags
    named = inspect.Parameter.KEYWORD_ONLY
    parameters = []
    for one in own:
        if one.name != name:
            parameters.append(one.replace(kind=named))
            continue
        parameters += [
            inspect.Parameter(key, named, default=flag.default, annotation=flag.annotation)
            for key, flag in flags.items()
        ]

    @functools.wraps(command)
    def taken(**given: Any) -> None:
        command(**{name: kind(**{key: given.pop(key) for key in flags})}, **given)

    taken.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    taken.__annotations__ = {one.name: one.annotation for one in parameters}
    return taken


def _is_typed(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Typed)
