"""The jobs: their definition, the built-in ones, and the worker program."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

__all__ = [
    "BatchFileJob",
    "ChatCompletionJob",
    "ChatCompletionPerplexityJob",
    "CompletionJob",
    "EmbeddingJob",
    "MultiChatCompletionJob",
    "MultiTurnChatCompletionJob",
    "MultiTurnTranslationJob",
    "StructuredOutputJob",
    "SwarmJob",
    "TemplateJob",
    "job",
]

_HOMES = {
    "BatchFileJob": "domyn_swarm.jobs.builtin.batch_file",
    "ChatCompletionJob": "domyn_swarm.jobs.builtin.chat",
    "ChatCompletionPerplexityJob": "domyn_swarm.jobs.builtin.chat",
    "CompletionJob": "domyn_swarm.jobs.builtin.chat",
    "EmbeddingJob": "domyn_swarm.jobs.builtin.chat",
    "MultiChatCompletionJob": "domyn_swarm.jobs.builtin.chat",
    "MultiTurnChatCompletionJob": "domyn_swarm.jobs.builtin.conversations",
    "MultiTurnTranslationJob": "domyn_swarm.jobs.builtin.conversations",
    "StructuredOutputJob": "domyn_swarm.jobs.builtin.structured",
    "SwarmJob": "domyn_swarm.jobs.base",
    "TemplateJob": "domyn_swarm.jobs.builtin.chat",
    "job": "domyn_swarm.jobs.decorator",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever is exported
    """Import a public name on its first use: the records of `jobs.worker_spec` must stay cheap."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
