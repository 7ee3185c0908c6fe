"""`engine_options`, and the flags in `args`: validated and merged with those of the engine."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from domyn_swarm.errors import ConfigError


class EngineOptions(BaseModel):
    """Options of one engine: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


_O = TypeVar("_O")
_UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden")  # for a dataclass, for a model


def parse_options(kind: type[_O], engine: str, given: dict[str, Any]) -> _O:
    """The validated options of an engine; `kind` is a model or a dataclass.

    Raises:
        ConfigError: an option is invalid; the message lists all of them.
    """
    validator = TypeAdapter(kind)
    try:
        return validator.validate_python(given)
    except ValidationError as error:
        paths = _paths(validator.json_schema())
        lines = [
            f"  {'.'.join(['engine_options', *map(str, detail['loc'])])}: {detail['msg']}"
            f"{_suggestion(str(detail['loc'][-1]), paths) if detail['type'] in _UNKNOWN else ''}"
            for detail in error.errors()
        ]
        raise ConfigError(
            "\n".join([f"engine_options do not fit the engine {engine!r}:", *lines]),
            hint=_valid_options(error.errors()[0]["loc"], paths),
        ) from error


def _paths(schema: dict[str, Any], sections: dict[str, Any] | None = None) -> list[str]:
    """The dotted path of every option: those of outer sections first."""
    sections = schema.get("$defs", {}) if sections is None else sections
    paths = list(schema["properties"])
    for name, option in schema["properties"].items():
        for section in re.findall(r"#/\$defs/(\w+)", json.dumps(option)):
            paths += [f"{name}.{path}" for path in _paths(sections[section], sections)]
    return paths


def _suggestion(name: str, paths: list[str]) -> str:
    """The end of a message: the existing option that an unknown name resembles, if any."""
    places = {path.rpartition(".")[2]: path for path in reversed(paths)}
    close = get_close_matches(name, places, n=1, cutoff=0.6)
    return f"; did you mean engine_options.{places[close[0]]}?" if close else ""


def _valid_options(place: tuple[str | int, ...], paths: list[str]) -> str:
    """A sentence that lists the options of the innermost section around the mistake at `place`."""
    section = "".join(f"{name}." for name in place if isinstance(name, str))
    while section and not any(path.startswith(section) for path in paths):
        section = "".join(section.rpartition(".")[0].rpartition(".")[:2])
    known = [path.removeprefix(section) for path in paths if path.startswith(section)]
    whose = f"engine_options.{section[:-1]}" if section else "It"
    return f"{whose} takes: {', '.join(name for name in known if '.' not in name)}."


def refuse_options(engine: str, given: dict[str, Any]) -> None:
    """Refuse any `engine_options`, for an engine that has none.

    Raises:
        ConfigError: `given` is not empty.
    """
    if given:
        raise ConfigError(
            f"The engine {engine!r} takes no engine_options, but got {', '.join(given)}.",
            hint="Give it flags with `args`.",
        )


_RESERVED = {
    "--host": "the address on which a replica listens is chosen on the node",
    "--port": "a free port is chosen on the node; the key `port` sets where the search begins",
    "--api-key": "a command line must not contain keys; the swarm has one (`domyn-swarm endpoint`)",
}
_FLAG = re.compile(r"-{1,2}[A-Za-z]")


def flags_in(
    args: Sequence[str], aliases: Mapping[str, str] | None = None
) -> dict[str, tuple[str, ...]]:
    """The flags of a command line with their values, keyed by the long name with hyphens.

    `aliases` maps other spellings to the long name.
    """
    flags: dict[str, tuple[str, ...]] = {}
    flag = ""
    for word in args:
        if _FLAG.match(word):
            name, equals, value = word.partition("=")
            flag = name.replace("_", "-")
            flag = (aliases or {}).get(flag, flag)
            flags[flag] = (value,) if equals else ()
        elif flag:
            flags[flag] += (word,)
    return flags


def merged(
    ours: Mapping[str, str], args: Sequence[str], aliases: Mapping[str, str] | None = None
) -> tuple[str, ...]:
    """The flags `ours` without those that the user's `args` set, followed by `args` unchanged.

    Raises:
        ConfigError: `args` contain a reserved flag.
    """
    theirs = flags_in(args, aliases)
    for flag, why in _RESERVED.items():
        if flag in theirs:
            raise ConfigError(f"args: {flag} cannot be set: {why}.", hint=f"Remove {flag}.")
    kept = [word for flag, value in ours.items() if flag not in theirs for word in (flag, value)]
    return (*kept, *args)


def whole_number(values: Sequence[str] | None) -> int | None:
    """The value of a flag that takes a whole number; None if it is not given or not a number."""
    return int(values[0]) if values and values[0].isdecimal() else None
