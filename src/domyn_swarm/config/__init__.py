"""The user's configuration: models, loading, defaults, provenance."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from domyn_swarm.config.environment import load_dotenv
    from domyn_swarm.config.loading import LoadedConfig, dump_yaml, load, read_dump, swarm_name
    from domyn_swarm.config.models import DomynLLMSwarmConfig

__all__ = [
    "DomynLLMSwarmConfig",
    "LoadedConfig",
    "dump_yaml",
    "load",
    "load_dotenv",
    "read_dump",
    "swarm_name",
]

_HOMES = {
    "DomynLLMSwarmConfig": "domyn_swarm.config.models",
    "LoadedConfig": "domyn_swarm.config.loading",
    "dump_yaml": "domyn_swarm.config.loading",
    "load": "domyn_swarm.config.loading",
    "load_dotenv": "domyn_swarm.config.environment",
    "read_dump": "domyn_swarm.config.loading",
    "swarm_name": "domyn_swarm.config.loading",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any public name
    """Import a public name on first use: the command line must read `.env` before the models."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
