"""`engine_options`, validated by the engine that they are for."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from domyn_swarm.errors import ConfigError


class EngineOptions(BaseModel):
    """Frozen, and without room for unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


_O = TypeVar("_O")


def parse_options(kind: type[_O], engine: str, given: dict[str, Any]) -> _O:
    """The options of an engine, a model or a dataclass.

    Raises:
        ConfigError: every mistake at once.
    """
    validator = TypeAdapter(kind)
    try:
        return validator.validate_python(given)
    except ValidationError as error:
        lines = [
            f"  engine_options.{'.'.join(map(str, one['loc']))}: {one['msg']}"
            for one in error.errors()
        ]
        raise ConfigError(
            "\n".join([f"engine_options do not fit the engine {engine!r}:", *lines]),
            hint=f"It takes: {', '.join(validator.json_schema()['properties'])}.",
        ) from error


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
