"""`engine_options`, validated by the engine that they are for."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from domyn_swarm.errors import ConfigError


class EngineOptions(BaseModel):
    """Frozen, and without room for unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


_O = TypeVar("_O")
_UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden")  # of a dataclass, of a model


def parse_options(kind: type[_O], engine: str, given: dict[str, Any]) -> _O:
    """The options of an engine, a model or a dataclass.

    Raises:
        ConfigError: every mistake at once.
    """
    validator = TypeAdapter(kind)
    try:
        return validator.validate_python(given)
    except ValidationError as error:
        paths = _paths(validator.json_schema())
        lines = [
            f"  {'.'.join(['engine_options', *map(str, one['loc'])])}: {one['msg']}"
            f"{_meant(str(one['loc'][-1]), paths) if one['type'] in _UNKNOWN else ''}"
            for one in error.errors()
        ]
        raise ConfigError(
            "\n".join([f"engine_options do not fit the engine {engine!r}:", *lines]),
            hint=_taken(error.errors()[0]["loc"], paths),
        ) from error


def _paths(schema: dict[str, Any], sections: dict[str, Any] | None = None) -> list[str]:
    """Every option with the sections that it stands in: the outer ones first."""
    sections = schema.get("$defs", {}) if sections is None else sections
    found = list(schema["properties"])
    for name, option in schema["properties"].items():
        for section in re.findall(r"#/\$defs/(\w+)", json.dumps(option)):
            found += [f"{name}.{path}" for path in _paths(sections[section], sections)]
    return found


def _meant(name: str, paths: list[str]) -> str:
    """The known option that an unknown one resembles."""
    places = {path.rpartition(".")[2]: path for path in reversed(paths)}
    close = get_close_matches(name, places, n=1, cutoff=0.6)
    return f"; did you mean engine_options.{places[close[0]]}?" if close else ""


def _taken(place: tuple[str | int, ...], paths: list[str]) -> str:
    """What the section takes that the mistake at a place is in, or that is the mistake."""
    section = "".join(f"{name}." for name in place if isinstance(name, str))
    while section and not any(path.startswith(section) for path in paths):
        section = "".join(section.rpartition(".")[0].rpartition(".")[:2])
    known = [path.removeprefix(section) for path in paths if path.startswith(section)]
    whose = f"engine_options.{section[:-1]}" if section else "It"
    return f"{whose} takes: {', '.join(one for one in known if '.' not in one)}."


def refuse_options(engine: str, given: dict[str, Any]) -> None:
    """For engines that have none.

    Raises:
        ConfigError: there are some all the same.
    """
    if given:
        raise ConfigError(
            f"The engine {engine!r} takes no engine_options, but got {', '.join(given)}.",
            hint="Give it flags with `args`.",
        )


_RESERVED = {
    "--host": "where a replica listens is decided on the node",
    "--port": "a free one is chosen on the node; the key `port` says where the search begins",
    "--api-key": "keys never stand in a command line; the swarm has one (`domyn-swarm endpoint`)",
}
_FLAG = re.compile(r"-{1,2}[A-Za-z]")


def flags_in(
    args: Sequence[str], aliases: Mapping[str, str] | None = None
) -> dict[str, tuple[str, ...]]:
    """The flags in a command line, each with its values, by their long names with hyphens.

    `aliases`: other spellings, to the name that is meant.
    """
    found: dict[str, tuple[str, ...]] = {}
    flag = ""
    for word in args:
        if _FLAG.match(word):
            name, equals, value = word.partition("=")
            flag = name.replace("_", "-")
            flag = (aliases or {}).get(flag, flag)
            found[flag] = (value,) if equals else ()
        elif flag:
            found[flag] += (word,)
    return found


def merged(
    ours: Mapping[str, str], args: Sequence[str], aliases: Mapping[str, str] | None = None
) -> tuple[str, ...]:
    """Our flags, less those that the user's `args` set, and then `args` as they are.

    Raises:
        ConfigError: `args` hold a flag that is not the user's to set.
    """
    theirs = flags_in(args, aliases)
    for flag, why in _RESERVED.items():
        if flag in theirs:
            raise ConfigError(f"args: {flag} cannot be set: {why}.", hint=f"Remove {flag}.")
    kept = [word for flag, value in ours.items() if flag not in theirs for word in (flag, value)]
    return (*kept, *args)


def whole_number(values: Sequence[str] | None) -> int | None:
    """The value of a flag that takes a number; None where there is none."""
    return int(values[0]) if values and values[0].isdecimal() else None
