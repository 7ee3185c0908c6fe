"""How long the simulator's answers take, and its metrics meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple, Protocol

from typing_extensions import override

from domyn_swarm.engines.sim_openai import Question
from domyn_swarm.engines.sim_options import SimOptions, VllmOptions
from domyn_swarm.engines.sim_vllm import Sequence, VllmModel

_STEP_S = 0.05  # interval at which the token counter grows during an answer; finer costs CPU time


class Piece(NamedTuple):
    """The text of one event of a stream."""

    choice: int
    text: str
    last: bool


class Figure(NamedTuple):
    """A metric, under vLLM's name."""

    name: str
    kind: str
    value: float


class Pace(Protocol):
    """Waits as long as an answer takes. A cancelled method gives up its request."""

    slots: int | None  # requests at once, further ones must wait; None: no limit
    most_tokens: int | None  # of prompt and answer together; None: no limit

    async def write(self, asked: Question) -> None:
        """Return when the answer is complete."""

    def pieces(self, asked: Question) -> AsyncGenerator[Piece]:
        """The parts of the answer, each as soon as it is written."""

    async def read(self, texts: list[str], tokens: int) -> None:
        """Return when the texts of a request for embeddings are read."""

    def figures(self, running: int, waiting: int) -> list[Figure]:
        """The metrics, where `running` requests have a slot of the server and `waiting` wait."""


class ByRate(Pace):
    """Every request is answered at `tokens_per_s`, whatever else runs; None: at once."""

    most_tokens: int | None = None

    def __init__(self, options: SimOptions) -> None:
        self.slots: int | None = options.slots
        self._slots = options.slots
        self._tokens_per_s = options.tokens_per_s
        self._prompt_tokens = 0
        self._generation_tokens = 0

    @override
    async def write(self, asked: Question) -> None:
        self._prompt_tokens += asked.prompt_tokens
        await self._generate(asked.answer_tokens, choices=asked.n)

    @override
    async def pieces(self, asked: Question) -> AsyncGenerator[Piece]:
        """Yields one word at a time."""
        self._prompt_tokens += asked.prompt_tokens
        words = asked.answer.split()
        for place, word in enumerate(words, 1):
            await self._generate(1, choices=asked.n)
            last = place == len(words)
            for index in range(asked.n):
                yield Piece(index, word if last else f"{word} ", last)

    @override
    async def read(self, texts: list[str], tokens: int) -> None:
        self._prompt_tokens += tokens

    @override
    def figures(self, running: int, waiting: int) -> list[Figure]:
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
            written = min(step, tokens - done)
            if rate is not None:
                await asyncio.sleep(written / rate)
            self._generation_tokens += written * choices


class ByModel(Pace):
    """A `VllmModel` decides, run by the clock of the event loop."""

    def __init__(self, options: VllmOptions, slots: int, replica: int) -> None:
        self.slots: int | None = None  # the model has slots of its own
        speed = options.speeds[replica % len(options.speeds)]
        self._characters = options.characters_per_token
        self._model = VllmModel(options, slots, speed)
        self.most_tokens: int | None = self._model.capacity_tokens
        self._timer: asyncio.TimerHandle | None = None
        self._done: dict[Sequence, asyncio.Future[None]] = {}

    @override
    async def write(self, asked: Question) -> None:
        async with self._submitted(self._choices(asked)) as sequences:
            for sequence in sequences:
                await self._done[sequence]

    @override
    async def pieces(self, asked: Question) -> AsyncGenerator[Piece]:
        """Yields the tokens of `_STEP_S` at a time."""
        async with self._submitted(self._choices(asked)) as all_:
            sent = dict.fromkeys(range(asked.n), 0)  # characters of each unfinished choice
            while sent:
                await asyncio.wait([self._done[all_[choice]] for choice in sent], timeout=_STEP_S)
                for choice, before in list(sent.items()):
                    now = self._model.written(all_[choice], self._now()) * self._characters
                    if all_[choice].done:
                        del sent[choice]
                        yield Piece(choice, asked.answer[before:], last=True)
                    elif now > before:
                        sent[choice] = now
                        yield Piece(choice, asked.answer[before:now], last=False)

    @override
    async def read(self, texts: list[str], tokens: int) -> None:
        reads = [(text, -(-len(text) // self._characters), 0) for text in texts]
        async with self._submitted(reads) as sequences:
            for sequence in sequences:
                await self._done[sequence]

    @override
    def figures(self, running: int, waiting: int) -> list[Figure]:
        """A request with a slot that is not in the model counts as running."""
        self._advance()
        model = self._model
        elsewhere = max(0, running - model.running - model.waiting)
        return [
            Figure("vllm:num_requests_running", "gauge", model.running + elsewhere),
            Figure("vllm:num_requests_waiting", "gauge", model.waiting + waiting),
            Figure("vllm:kv_cache_usage_perc", "gauge", model.kv_usage),
            Figure("vllm:prefix_cache_queries_total", "counter", model.queried_tokens),
            Figure("vllm:prefix_cache_hits_total", "counter", model.hit_tokens),
            Figure("vllm:num_preemptions_total", "counter", model.preemptions),
            Figure("vllm:prompt_tokens_total", "counter", model.prompt_tokens),
            Figure("vllm:generation_tokens_total", "counter", model.generated(self._now())),
        ]

    @staticmethod
    def _choices(asked: Question) -> list[tuple[str, int, int]]:
        return [(asked.whole + asked.answer, asked.prompt_tokens, asked.answer_tokens)] * asked.n

    @asynccontextmanager
    async def _submitted(self, texts: list[tuple[str, int, int]]) -> AsyncIterator[list[Sequence]]:
        """Submit sequences, each (text, tokens to read, tokens to write); abort unfinished ones."""
        self._advance()
        sequences: list[Sequence] = []
        try:
            for text, read, write in texts:
                sequences.append(self._submit(text, read, write))
            self._set_timer()
            yield sequences
        finally:
            self._advance()
            for sequence in sequences:
                if not sequence.done:
                    self._model.abort(self._now(), sequence)
                self._done.pop(sequence, None)
            self._set_timer()

    def _submit(self, text: str, read: int, write: int) -> Sequence:
        sequence = self._model.submit(self._now(), text, read, write)
        self._done[sequence] = asyncio.get_running_loop().create_future()
        return sequence

    def _advance(self) -> None:
        for sequence in self._model.advance(self._now()):
            if not self._done[sequence].done():
                self._done[sequence].set_result(None)

    def _set_timer(self) -> None:
        """Have `_tick` called when the model's next step ends."""
        next_s = self._model.next_s
        if self._timer is not None:
            if self._timer.when() == next_s:
                return
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._timer = None if next_s is None else loop.call_at(next_s, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._advance()
        self._set_timer()

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
