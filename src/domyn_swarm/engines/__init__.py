"""LLM server programs: command line, readiness, metrics, log diagnosis."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from domyn_swarm.errors import ConfigError

if TYPE_CHECKING:  # the servers in this package need no plan
    from domyn_swarm.engines.engine_protocol import Engine

_HOMES = {
    "vllm": "VLLM",
    "llamacpp": "LlamaCpp",
    "sglang": "SGLang",
    "sim": "Sim",
    "command": "Command",
}


def names() -> list[str]:
    """The engines that a configuration may name."""
    return list(_HOMES)


def get(name: str) -> Engine:
    """The engine of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in _HOMES:
        from difflib import get_close_matches

        close = get_close_matches(name, _HOMES, n=1)
        hint = f"Did you mean {close[0]}?" if close else f"There are: {', '.join(_HOMES)}."
        raise ConfigError(f"There is no engine {name!r}.", hint=hint)
    module = import_module(f"domyn_swarm.engines.{name}")
    engine: Engine = getattr(module, _HOMES[name])()
    return engine
