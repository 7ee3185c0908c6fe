"""Replicas of an LLM server behind one endpoint, and resumable batch jobs through it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from domyn_swarm.config import DomynLLMSwarmConfig
    from domyn_swarm.errors import SwarmError
    from domyn_swarm.jobs.base import SwarmJob
    from domyn_swarm.jobs.builtin.batch_file import BatchFileJob
    from domyn_swarm.jobs.builtin.chat import (
        ChatCompletionJob,
        ChatCompletionPerplexityJob,
        CompletionJob,
        EmbeddingJob,
        MultiChatCompletionJob,
        TemplateJob,
    )
    from domyn_swarm.jobs.builtin.conversations import (
        MultiTurnChatCompletionJob,
        MultiTurnTranslationJob,
    )
    from domyn_swarm.jobs.builtin.structured import StructuredOutputJob
    from domyn_swarm.jobs.decorator import job
    from domyn_swarm.services.facade import DomynLLMSwarm
    from domyn_swarm.services.submitted_job import SubmittedJob

__version__ = "0.1.0"
__all__ = [
    "BatchFileJob",
    "ChatCompletionJob",
    "ChatCompletionPerplexityJob",
    "CompletionJob",
    "DomynLLMSwarm",
    "DomynLLMSwarmConfig",
    "EmbeddingJob",
    "MultiChatCompletionJob",
    "MultiTurnChatCompletionJob",
    "MultiTurnTranslationJob",
    "StructuredOutputJob",
    "SubmittedJob",
    "SwarmError",
    "SwarmJob",
    "TemplateJob",
    "__version__",
    "job",
]

_HOMES = {
    "DomynLLMSwarm": "domyn_swarm.services.facade",
    "DomynLLMSwarmConfig": "domyn_swarm.config",
    "SubmittedJob": "domyn_swarm.services.submitted_job",
    "SwarmError": "domyn_swarm.errors",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever is exported
    """Import a public name on its first use: `--help` must not pay for what it does not need."""
    if name in __all__:  # names without an entry in _HOMES are jobs, or make jobs
        return getattr(import_module(_HOMES.get(name, "domyn_swarm.jobs")), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__} - {"TYPE_CHECKING", "Any", "annotations", "import_module"})
