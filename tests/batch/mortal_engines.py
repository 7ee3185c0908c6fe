"""Engines that die of a row, behind a router or alone, in virtual time."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from domyn_swarm.batch.background import beside
from domyn_swarm.batch.outcomes.row_outcomes import Row, RowTrace, current_trace
from domyn_swarm.batch.outcomes.tally import Tally
from domyn_swarm.batch.run.asking import RetryPolicy
from domyn_swarm.batch.run.gate import EndpointGate
from domyn_swarm.batch.run.session import RequestSession
from domyn_swarm.batch.run.standing import Suspects
from domyn_swarm.batch.run.traffic import Traffic
from domyn_swarm.net.http import HttpReply
from domyn_swarm.net.request_errors import (
    CannotConnect,
    ConnectionBroken,
    RequestError,
    no_reply_in_time,
)
from virtual_time import now_s

TRIP_S = 1 / 128
POISON = "poison"
ANSWER = (
    b'{"choices": [{"text": "ok", "finish_reason": "stop"}],'
    b' "usage": {"prompt_tokens": 1, "completion_tokens": 1}}'
)


def reply(status: int, message: str, server: str | None = None) -> HttpReply:
    return HttpReply(status, json.dumps({"error": {"message": message}}).encode(), None, server)


@dataclass
class Engine:
    """One server and what became of it."""

    url: str
    back_at: float = 0.0
    died_at: float = float("-inf")
    died: asyncio.Event = field(default_factory=asyncio.Event)
    in_flight: int = 0
    says: HttpReply | None = None  # to every request, at once: another server took its port


@dataclass
class Engines:
    """An `HttpClient`. `judge` may answer a prompt, given its number, in place of an engine."""

    count: int = 1
    routed: bool = True
    answer_s: float = 2.0
    dies_after_s: float = 0.3
    restart_s: float = 20.0
    jitter_s: float = 0.0  # requests overtake each other by so much on their way
    leaves_s: float = 2.0  # how long the router believes in a dead one
    elsewhere: float = 0.0  # how many of the requests do not go to the least loaded one
    judge: Callable[[str], HttpReply | float | None] = lambda _prompt: None
    asked: Counter[str] = field(default_factory=Counter)
    executed: Counter[str] = field(default_factory=Counter)
    probes: int = 0
    deaths: int = 0
    beside_poison: list[int] = field(default_factory=list)  # requests in flight as engines died

    def __post_init__(self) -> None:
        self.engines = [Engine(f"http://e{number}:1") for number in range(self.count)]

    def _listed(self) -> list[Engine]:
        now = now_s()
        return [
            one for one in self.engines if now >= one.back_at or now - one.died_at <= self.leaves_s
        ]

    async def request(
        self, method: str, url: str, body: bytes | None, timeout_s: float
    ) -> HttpReply:
        await asyncio.sleep(TRIP_S + random.uniform(0.0, self.jitter_s))
        if method == "POST":
            return await self._post(json.loads(body or b""), timeout_s)
        alive = [one for one in self.engines if now_s() >= one.back_at]
        if not alive and not self.routed:
            raise CannotConnect("refused")
        if url.endswith("/readiness"):
            return HttpReply((200 if alive else 503) if self.routed else 404, b"", None)
        listed = [{"id": "m"}] if alive else []
        return HttpReply(200, json.dumps({"data": listed}).encode(), None)

    async def _post(self, body: dict[str, object], limit_s: float) -> HttpReply:
        prompt = str(body["prompt"])
        self.probes += body.get("max_tokens") == 1
        self.asked[prompt] += 1
        said = self.judge(prompt)
        listed = self._listed()
        if not listed:
            if self.routed:
                return reply(503, "no_available_workers")
            raise CannotConnect("refused")
        engine = min(listed, key=lambda one: (one.in_flight, one.url))
        if random.random() < self.elsewhere:
            engine = random.choice(listed)
        if now_s() < engine.back_at:
            return self._unreachable(engine)
        server = engine.url if self.routed else None
        if engine.says is not None:
            return msgspec.structs.replace(engine.says, served_by=server)
        if isinstance(said, HttpReply):
            return msgspec.structs.replace(said, served_by=server)
        takes_s = self.answer_s if said is None else said
        return await self._executed(engine, prompt, takes_s, limit_s)

    async def _executed(
        self, engine: Engine, prompt: str, takes_s: float, limit_s: float
    ) -> HttpReply:
        self.executed[prompt] += 1
        engine.in_flight += 1
        died = engine.died
        try:
            async with asyncio.timeout(self.dies_after_s if POISON in prompt else takes_s):
                async with asyncio.timeout(limit_s):
                    await died.wait()
            return self._unreachable(engine, broke=True)
        except TimeoutError:
            if POISON in prompt:
                return self._die(engine)
            if limit_s < takes_s:
                raise no_reply_in_time(limit_s) from None
            return HttpReply(200, ANSWER, None, engine.url if self.routed else None)
        finally:
            engine.in_flight -= 1

    def _die(self, engine: Engine) -> HttpReply:
        self.deaths += 1
        self.beside_poison.append(sum(one.in_flight for one in self.engines) - 1)
        engine.died_at = now_s()
        engine.back_at = now_s() + self.restart_s
        engine.died.set()
        engine.died = asyncio.Event()
        return self._unreachable(engine, broke=True)

    def _unreachable(self, engine: Engine, *, broke: bool = False) -> HttpReply:
        if not self.routed:
            raise ConnectionBroken("reset")
        # The router sends what broke off once more; what it says depends on how that fails.
        lost = broke and random.random() < 0.3
        code = "request_error" if lost else "connection_failed"
        words = f"call_upstream_{code}: error sending request for url ({engine.url}/v1)"
        return HttpReply(500, words.encode(), None)

    def stream(self, _url: str, _body: bytes, _limit_s: float) -> AsyncIterator[bytes | HttpReply]:
        raise NotImplementedError

    def use_key(self, _key: str | None) -> None:
        return

    async def close(self) -> None:
        return


@dataclass
class Run:
    """Rows in front of engines: as many at once as there are slots."""

    engines: Engines
    slots: int = 16
    policy: RetryPolicy = field(default_factory=RetryPolicy)
    suspects: Suspects = field(default_factory=Suspects)
    traffic: Traffic | None = None
    tally: Tally = field(default_factory=Tally)
    states: list[str | None] = field(default_factory=list)
    outcomes: dict[str, RequestError | None] = field(default_factory=dict)
    took: dict[str, RowTrace] = field(default_factory=dict)

    async def __call__(self, prompts: Sequence[str]) -> None:
        """Ask all of them."""
        gate = EndpointGate(
            self.engines,
            lambda: "http://r:1",
            self._state,
            self.suspects,
            traffic=self.traffic,
        )
        self.gate = gate
        self.session = RequestSession(self.engines, gate, self.policy, self.tally)
        left = list(reversed(prompts))

        async def work() -> None:
            while left:
                await self._row(left.pop())

        async with beside(gate.keep_knocking()):
            await asyncio.gather(*[work() for _ in range(self.slots)])

    def _state(self, said: str | None) -> None:
        self.states.append(said)

    async def _row(self, prompt: str) -> None:
        trace = RowTrace([Row(0, prompt.encode().ljust(16, b"."), prompt)])
        current_trace.set(trace)
        self.took[prompt] = trace
        try:
            await self.session.post("/v1/completions", {"model": "m", "prompt": prompt})
        except RequestError as error:
            self.outcomes[prompt] = error
        else:
            self.outcomes[prompt] = None

    @property
    def failed(self) -> dict[str, str]:
        """The rows that failed, and of what."""
        found = {prompt: error for prompt, error in self.outcomes.items() if error is not None}
        return {prompt: type(error).__name__ for prompt, error in found.items()}
