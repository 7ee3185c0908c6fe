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
        schema = validator.json_schema()
        lines = [
            f"  {'.'.join(['engine_options', *map(str, one['loc'])])}: {one['msg']}"
            f"{_meant(str(one['loc'][-1]), schema) if one['type'] in _UNKNOWN else ''}"
            for one in error.errors()
        ]
        raise ConfigError(
            "\n".join([f"engine_options do not fit the engine {engine!r}:", *lines]),
            hint=f"It takes: {', '.join(schema['properties'])}.",
        ) from error


def _meant(name: str, schema: dict[str, Any]) -> str:
    """The known option that an unknown one resembles, with the section that it belongs to."""
    places = _places(schema, schema.get("$defs", {}))
    close = get_close_matches(name, places, n=1, cutoff=0.6)
    return f"; did you mean engine_options.{places[close[0]]}?" if close else ""


def _places(schema: dict[str, Any], sections: dict[str, Any]) -> dict[str, str]:
    """Where each option stands; of two with one name the outer."""
    found: dict[str, str] = {}
    for name, option in schema["properties"].items():
        for section in re.findall(r"#/\$defs/(\w+)", json.dumps(option)):
            inner = _places(sections[section], sections)
            found |= {key: f"{name}.{place}" for key, place in inner.items()}
    return found | {name: name for name in schema["properties"]}


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
