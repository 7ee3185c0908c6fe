"""Replicas of an LLM server behind one endpoint, and resumable batch jobs through it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from domyn_swarm.config import DomynLLMSwarmConfig
    from domyn_swarm.jobs.base import SwarmJob
    from domyn_swarm.jobs.decorator import job
    from domyn_swarm.services.facade import DomynLLMSwarm

__version__ = "0.1.0"
__all__ = ["DomynLLMSwarm", "DomynLLMSwarmConfig", "SwarmJob", "__version__", "job"]

_HOMES = {
    "DomynLLMSwarm": "domyn_swarm.services.facade",
    "DomynLLMSwarmConfig": "domyn_swarm.config",
    "SwarmJob": "domyn_swarm.jobs.base",
    "job": "domyn_swarm.jobs.decorator",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever is exported
    """Import a public name on its first use: `--help` must not pay for what it does not need."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
