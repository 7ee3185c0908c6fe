"""Which requests go straight to a replica, and to which one, in virtual time."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from domyn_swarm.batch.background import beside
from domyn_swarm.batch.plain_requests import is_plain
from domyn_swarm.batch.replicas import ReplicaClient, Replicas
from domyn_swarm.errors import JobError
from domyn_swarm.net.errors import (
    CannotConnect,
    ConnectionBroken,
    NobodyThere,
    ReplicaAway,
    ReplicaLost,
    RequestTimeout,
)
from domyn_swarm.net.http import HttpReply
from virtual_time import in_virtual_time, now_s

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
TRIP_S = 1 / 128
TAKEN_AT = datetime(2026, 1, 1, tzinfo=UTC)
ENDPOINT = "http://endpoint:8000"
A, B = "http://a:1", "http://b:2"
USER = {"role": "user", "content": "x"}
ODD = json.dumps({"model": "m", "messages": [{**USER, "prefix": True}]}).encode()


def plain(path: str, **body: Any) -> bool:
    return is_plain(path, json.dumps({"model": "m", **body}).encode(), "m")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": [USER]}),
        (CHAT, {"messages": [{"role": "system", "content": ""}, USER], "stream": True}),
        (CHAT, {"messages": [USER], "temperature": 0.7, "top_p": 0.95, "max_tokens": 5, "seed": 7}),
        (CHAT, {"messages": [USER], "temperature": 0, "max_completion_tokens": 5, "user": "u"}),
        (COMPLETIONS, {"prompt": "x", "temperature": 1.5, "max_tokens": 5}),
        (EMBEDDINGS, {"input": "x"}),
        (EMBEDDINGS, {"input": ["x"], "dimensions": 8, "encoding_format": "base64"}),
    ],
)
def test_what_the_router_passes_on_as_it_is(path: str, body: dict[str, Any]) -> None:
    assert plain(path, **body)
    assert not plain(path, **body, zzz=1)
    assert not plain(path, **{**body, "model": "adapter"})
    assert not plain(f"{path}/render", **body)
    assert not plain(path, **body, logit_bias=None)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": [USER], "temperature": 0.30000000000000004}),
        (CHAT, {"messages": [USER], "temperature": 2.5}),
        (CHAT, {"messages": [USER], "temperature": None}),
        (CHAT, {"messages": [USER], "seed": 2**64}),
        (CHAT, {"messages": [USER], "max_tokens": 0}),
        (CHAT, {"messages": []}),
        (CHAT, {"messages": [{**USER, "prefix": True}]}),
        (CHAT, {"messages": [{"role": "custom", "content": "x"}]}),
        (CHAT, {"messages": [{"role": "assistant", "content": None}]}),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}),
        (COMPLETIONS, {"prompt": [1, 2]}),
        (EMBEDDINGS, {"input": "x", "normalize": False}),
        (EMBEDDINGS, {"messages": [USER]}),
        ("/v1/score", {"text_1": "a", "text_2": "b"}),
        ("/v1/responses", {"input": "x"}),
    ],
)
def test_what_the_router_would_change(path: str, body: dict[str, Any]) -> None:
    assert not plain(path, **body)


@dataclass
class Swarm:
    """An endpoint, its collector and its replicas, as a test programs them."""

    states: dict[str, str] = field(default_factory=lambda: {A: "ready", B: "ready"})
    heard_s_ago: dict[str, float] = field(default_factory=dict)
    answer: Callable[[str], Exception | None] = lambda _url: None
    trip_s: float = TRIP_S
    collector_down: bool = False
    looks: list[float] = field(default_factory=list)
    sent: Counter[str] = field(default_factory=Counter)

    async def request(
        self, method: str, url: str, _body: bytes | None, _limit_s: float
    ) -> HttpReply:
        if method == "GET":
            return self._view()
        where = url.removesuffix(CHAT)
        self.sent[where] += 1
        await asyncio.sleep(self.trip_s)
        if (error := self.answer(where)) is not None:
            raise error
        return HttpReply(200, b"{}", None)

    def _view(self) -> HttpReply:
        if self.collector_down:
            raise CannotConnect("refused")
        self.looks.append(now_s())
        replicas = [
            {
                "url": url,
                "state": state,
                "reported_at": (
                    TAKEN_AT - timedelta(seconds=self.heard_s_ago.get(url, 0))
                ).isoformat(),
            }
            for url, state in self.states.items()
        ]
        view = {"replicas": replicas, "taken_at": TAKEN_AT.isoformat(), "stale_after_s": 10.0}
        return HttpReply(200, json.dumps(view).encode(), None)

    async def stream(
        self, url: str, body: bytes, limit_s: float
    ) -> AsyncIterator[bytes | HttpReply]:
        await self.request("POST", url, body, limit_s)
        yield b"data: {}\n\n"

    async def close(self) -> None:
        return


@dataclass
class Driver:
    """A client in front of that swarm."""

    swarm: Swarm

    def __post_init__(self) -> None:
        self.replicas = Replicas(self.swarm, lambda: "http://collector")
        self.client = ReplicaClient(self.swarm, self.replicas, "m")

    async def ask(self, body: bytes = ODD) -> HttpReply:
        return await self.client.request("POST", ENDPOINT + CHAT, body, 60.0)

    async def keep_asking(self, for_s: float) -> list[type[Exception]]:
        """Ask again and again; the errors."""
        errors, until_s = [], now_s() + for_s
        while now_s() < until_s:
            try:
                await self.ask()
            except (ReplicaLost, RequestTimeout) as error:
                errors.append(type(error))
                await asyncio.sleep(0.5)
        return errors


@in_virtual_time
async def test_the_plain_goes_to_the_endpoint_and_the_rest_to_the_least_loaded_replica() -> None:
    driver = Driver(Swarm())
    async with beside(driver.replicas.keep_looking()):
        await driver.ask(json.dumps({"model": "m", "messages": [USER]}).encode())
        assert driver.swarm.sent == {ENDPOINT: 1}
        assert driver.swarm.looks == []
        replies = await asyncio.gather(*[driver.ask() for _ in range(10)])
        assert driver.swarm.sent == {ENDPOINT: 1, A: 5, B: 5}
        assert {reply.served_by for reply in replies} == {A, B}
        chunks = [one async for one in driver.client.stream(ENDPOINT + CHAT, ODD, 60.0)]
        assert chunks == [b"data: {}\n\n"]
        assert driver.swarm.sent.total() == 12


@in_virtual_time
async def test_replicas_that_leave_join_or_fall_silent_are_followed_within_a_second() -> None:
    swarm = Swarm(heard_s_ago={B: 11.0})
    driver = Driver(swarm)
    async with beside(driver.replicas.keep_looking()):
        assert await driver.keep_asking(3.0) == []
        assert swarm.sent[B] == 0
        swarm.heard_s_ago.clear()
        swarm.states[A] = "draining"
        await driver.keep_asking(1.1)
        before = swarm.sent[A]
        assert await driver.keep_asking(3.0) == []
        assert swarm.sent[A] == before
        assert swarm.sent[B] > 0
    assert len(swarm.looks) <= 10


@in_virtual_time
async def test_a_lost_replica_is_told_as_the_router_tells_it_and_left_alone() -> None:
    swarm = Swarm()
    driver = Driver(swarm)
    async with beside(driver.replicas.keep_looking()):
        for error, told in ((ConnectionBroken, ReplicaLost), (CannotConnect, NobodyThere)):
            swarm.answer = lambda url, error=error: error("gone") if url == A else None
            swarm.sent.clear()
            answers = await asyncio.gather(
                *[driver.ask() for _ in range(8)], return_exceptions=True
            )
            assert [type(one) for one in answers if isinstance(one, Exception)] == [told] * 4
            sent = swarm.sent[A]
            await asyncio.gather(*[driver.ask() for _ in range(8)])
            assert swarm.sent[A] == sent
            await asyncio.sleep(1.0)
        swarm.answer = lambda _url: RequestTimeout("no reply in time")
        with pytest.raises(RequestTimeout):
            await driver.ask()


@pytest.mark.parametrize(
    ("second", "told"),
    [(None, None), (ConnectionBroken, ReplicaLost), (CannotConnect, ReplicaAway)],
)
@in_virtual_time
async def test_a_connection_that_breaks_is_tried_once_more(
    second: type[Exception] | None, told: type[Exception] | None
) -> None:
    """An engine that died under the request does not listen any more; any other is alive."""
    swarm = Swarm(states={A: "ready"})
    driver = Driver(swarm)
    outcomes = [ConnectionBroken("reset"), None if second is None else second("gone")]
    swarm.answer = lambda _url: outcomes[swarm.sent[A] - 1]
    async with beside(driver.replicas.keep_looking()):
        if told is None:
            assert (await driver.ask()).status == 200
        else:
            with pytest.raises(told, match="gone") as raised:
                await driver.ask()
            assert (raised.type, raised.value.server) == (told, A)
    assert swarm.sent[A] == 2


@in_virtual_time
async def test_what_is_known_holds_while_the_collector_is_away() -> None:
    swarm = Swarm()
    driver = Driver(swarm)
    async with beside(driver.replicas.keep_looking()):
        await driver.ask()
        swarm.collector_down = True
        assert await driver.keep_asking(120.0) == []


@in_virtual_time
async def test_no_replica_at_all_is_waited_for_by_whoever_asks_again() -> None:
    driver = Driver(Swarm(states={A: "starting"}))
    async with beside(driver.replicas.keep_looking()):
        assert set(await driver.keep_asking(60.0)) == {NobodyThere}


@in_virtual_time
async def test_replicas_that_cannot_be_reached_from_here_end_the_run() -> None:
    swarm = Swarm(answer=lambda url: None if url == ENDPOINT else CannotConnect("no route"))
    driver = Driver(swarm)
    began = now_s()
    with pytest.raises(JobError, match=r"cannot be reached from this machine[\s\S]*--run-here"):
        async with beside(driver.replicas.keep_looking()):
            await driver.keep_asking(600.0)
    assert 8 <= now_s() - began <= 30


@in_virtual_time
async def test_a_replica_that_dies_ends_no_run() -> None:
    """The collector names it for a few seconds more; the others, or its next start, answer."""
    swarm = Swarm(states={A: "ready"})
    driver = Driver(swarm)
    async with beside(driver.replicas.keep_looking()):
        for _ in range(10):
            await driver.keep_asking(2.0)
            assert await driver.keep_asking(5.0) == []
            swarm.answer = lambda _url: CannotConnect("refused")
            assert set(await driver.keep_asking(6.0)) == {NobodyThere}
            swarm.states[A] = "starting"
            await driver.keep_asking(20.0)
            swarm.states[A], swarm.answer = "ready", lambda _url: None


@in_virtual_time
async def test_nobody_looks_when_nothing_is_sent_and_who_sends_again_looks_first() -> None:
    swarm = Swarm()
    driver = Driver(swarm)
    async with beside(driver.replicas.keep_looking()):
        await driver.ask()
        await asyncio.sleep(3600.0)
        assert len(swarm.looks) < 20
        swarm.states[A] = "failed"
        for _ in range(4):
            await driver.ask()
        assert swarm.sent[A] <= 1


@in_virtual_time
async def test_a_request_that_takes_long_is_use_of_the_swarm_all_the_time() -> None:
    swarm = Swarm(trip_s=3600.0)
    driver = Driver(swarm)
    async with beside(driver.replicas.keep_looking()):
        await driver.ask()
        assert len(swarm.looks) >= 3600
