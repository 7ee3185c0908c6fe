"""How long the simulator's answers take, and the counters that move meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import NamedTuple, Protocol

from domyn_swarm.engines.sim_openai import Question
from domyn_swarm.engines.sim_options import SimOptions

_STEP_S = 0.05  # the token counter moves so often during an answer; finer steps only cost time


class Piece(NamedTuple):
    """What a stream says at once."""

    choice: int
    text: str
    last: bool


class Figure(NamedTuple):
    """A metric, by vLLM's name."""

    name: str
    kind: str
    value: float


class Pace(Protocol):
    """What lets the time of an answer pass. Its methods end early when they are cancelled."""

    slots: int | None  # requests at once, the others are kept out; None: it takes all of them

    async def write(self, asked: Question) -> None:
        """Return when the whole answer is written."""

    def pieces(self, asked: Question) -> AsyncIterator[Piece]:
        """The answer, each part as it is written."""

    async def read(self, texts: list[str], tokens: int) -> None:
        """Return when texts are read, to which there is no answer in words."""

    def figures(self, running: int, waiting: int) -> list[Figure]:
        """The metrics; so many requests have a slot here, and so many wait for one."""


class ByRate:
    """Every request has `tokens_per_s` for itself; without them all is written at once."""

    def __init__(self, options: SimOptions) -> None:
        self.slots: int | None = options.slots
        self._slots = options.slots
        self._tokens_per_s = options.tokens_per_s
        self._prompt_tokens = 0
        self._generation_tokens = 0

    async def write(self, asked: Question) -> None:
        """See `Pace.write`."""
        self._prompt_tokens += asked.usage["prompt_tokens"]
        await self._generate(len(asked.answer.split()), choices=asked.n)

    async def pieces(self, asked: Question) -> AsyncIterator[Piece]:
        """See `Pace.pieces`: a word at a time."""
        self._prompt_tokens += asked.usage["prompt_tokens"]
        words = asked.answer.split()
        for place, word in enumerate(words, 1):
            await self._generate(1, choices=asked.n)
            last = place == len(words)
            for index in range(asked.n):
                yield Piece(index, word if last else f"{word} ", last)

    async def read(self, texts: list[str], tokens: int) -> None:  # noqa: ARG002 - by the number alone
        """See `Pace.read`."""
        self._prompt_tokens += tokens

    def figures(self, running: int, waiting: int) -> list[Figure]:
        """See `Pace.figures`."""
        return [
            Figure("vllm:num_requests_running", "gauge", running),
            Figure("vllm:num_requests_waiting", "gauge", waiting),
            Figure("vllm:kv_cache_usage_perc", "gauge", running / self._slots),
            Figure("vllm:prompt_tokens_total", "counter", self._prompt_tokens),
            Figure("vllm:generation_tokens_total", "counter", self._generation_tokens),
        ]

    async def _generate(self, tokens: int, *, choices: int) -> None:
        rate = self._tokens_per_s
        step = tokens if rate is None else max(1, int(rate * _STEP_S))
        for done in range(0, tokens, step):
            made = min(step, tokens - done)
            if rate is not None:
                await asyncio.sleep(made / rate)
            self._generation_tokens += made * choices
