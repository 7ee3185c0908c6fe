"""`engine_options`, validated by the engine that they are for."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from domyn_swarm.errors import ConfigError


class EngineOptions(BaseModel):
    """Frozen, and without room for unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


_O = TypeVar("_O", bound=EngineOptions)


def parse_options(kind: type[_O], engine: str, given: dict[str, Any]) -> _O:
    """The options of an engine.

    Raises:
        ConfigError: every mistake at once.
    """
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        lines = [
            f"  engine_options.{'.'.join(map(str, one['loc']))}: {one['msg']}"
            for one in error.errors()
        ]
        raise ConfigError(
            "\n".join([f"engine_options do not fit the engine {engine!r}:", *lines]),
            hint=f"It takes: {', '.join(kind.model_fields)}.",
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
