"""`engine_options`, validated by the engine that they are for."""

from __future__ import annotations

import json
import re
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
