"""What a job is, the built-in ones, and the worker program."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from domyn_swarm.jobs.base import SwarmJob
    from domyn_swarm.jobs.chat import ChatCompletionJob
    from domyn_swarm.jobs.completion import CompletionJob

__all__ = ["ChatCompletionJob", "CompletionJob", "SwarmJob"]

_HOMES = {
    "ChatCompletionJob": "domyn_swarm.jobs.chat",
    "CompletionJob": "domyn_swarm.jobs.completion",
    "SwarmJob": "domyn_swarm.jobs.base",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever is exported
    """Import a public name on its first use: the records of `jobs.spec` must stay cheap."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
