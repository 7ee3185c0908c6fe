"""Which requests go straight to a replica, and to which one, in virtual time."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextvars import Context
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from domyn_swarm.batch.background import beside
from domyn_swarm.batch.outcomes.row_outcomes import RowTrace, current_trace
from domyn_swarm.batch.run.direct_replicas import ReplicaClient, Replicas
from domyn_swarm.batch.run.plain_requests import is_plain
from domyn_swarm.batch.run.replica_names import Names
from domyn_swarm.errors import JobError
from domyn_swarm.net.http import HttpReply
from domyn_swarm.net.request_errors import (
    CannotConnect,
    ConnectionBroken,
    NobodyThere,
    ReplicaAway,
    ReplicaLost,
    RequestTimeout,
)
from virtual_time import in_virtual_time, now_s

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
READINESS = "/readiness"
TRIP_S = 1 / 128
TAKEN_AT = datetime(2026, 1, 1, tzinfo=UTC)
ENDPOINT = "http://endpoint:8000"
A, B = "http://a:1", "http://b:2"
USER = {"role": "user", "content": "x"}
ODD = json.dumps({"model": "m", "messages": [{**USER, "prefix": True}]}).encode()
PLAIN = json.dumps({"model": "m", "messages": [USER]}).encode()


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
    elastic: bool = False
    recorded: bytes | None = None  # the collector's last view
    strangers: set[str] = field(default_factory=set)  # servers of somebody else at these URLs
    proofs: Counter[str] = field(default_factory=Counter)
    looks: list[float] = field(default_factory=list)
    sent: Counter[str] = field(default_factory=Counter)

    async def request(
        self, method: str, url: str, _body: bytes | None, _limit_s: float
    ) -> HttpReply:
        if url.startswith("http://collector"):
            return self._view()
        if method == "GET":
            return await self._listing(url.removesuffix("/v1/models"))
        where = url.removesuffix(CHAT)
        self.sent[where] += 1
        await asyncio.sleep(self.trip_s)
        if where in self.strangers:
            return HttpReply(401, b"{}", None)
        if (error := self.answer(where)) is not None:
            raise error
        return HttpReply(200, b"{}", None)

    async def _listing(self, where: str) -> HttpReply:
        self.proofs[where] += 1
        await asyncio.sleep(TRIP_S)
        if where in self.strangers:
            return HttpReply(401, b"{}", None)
        if isinstance(error := self.answer(where), CannotConnect):
            raise error
        return HttpReply(200, b'{"data": [{"id": "m"}]}', None)

    def _view(self) -> HttpReply:
        if self.collector_down:
            raise CannotConnect("refused")
        self.looks.append(now_s())
        return HttpReply(200, self.view(), None)

    def view(self) -> bytes:
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
        return json.dumps({**view, "elastic": self.elastic}).encode()

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
        self.notices: list[str] = []
        names = Names(self.swarm, lambda: "http://collector", lambda: self.swarm.recorded)
        self.proved: list[tuple[str, float]] = []
        self.replicas = Replicas(
            self.swarm,
            names,
            self.notices.append,
            proved=lambda url, asked_at: self.proved.append((url, asked_at)),
        )
        self.client = ReplicaClient(self.swarm, self.replicas, "m")

    async def ask(self, body: bytes = ODD, endpoint: str = ENDPOINT) -> HttpReply:
        return await self.client.request("POST", endpoint + CHAT, body, 60.0)

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
async def test_nothing_is_sent_to_a_swarm_that_sleeps() -> None:
    swarm = Swarm(states={A: "starting"}, elastic=True)
    driver = Driver(swarm)

    async def serves() -> bool:
        return (await driver.client.request("GET", ENDPOINT + READINESS, None, 5.0)).status != 503

    async with beside(driver.replicas.keep_looking()):
        with pytest.raises(NobodyThere, match="asleep"):
            await driver.ask(PLAIN)
        looks = len(swarm.looks)
        for _ in range(6):  # as the gate knocks, less often than a job forgets its replicas
            await asyncio.sleep(5)
            assert not await serves()
        assert len(swarm.looks) >= looks + 20  # that wakes it, and finds it awake at once
        swarm.states[A] = "ready"
        await asyncio.sleep(2)
        assert await serves()
        await driver.ask(PLAIN)
    assert swarm.sent == {A: 1}


@pytest.mark.parametrize("body", [PLAIN, ODD], ids=["plain", "odd"])
@in_virtual_time
async def test_every_request_goes_to_the_least_loaded_replica(body: bytes) -> None:
    driver = Driver(Swarm())
    async with beside(driver.replicas.keep_looking()):
        replies = await asyncio.gather(*[driver.ask(body) for _ in range(10)])
        assert driver.swarm.sent == {A: 5, B: 5}
        assert {reply.served_by for reply in replies} == {A, B}
        chunks = [one async for one in driver.client.stream(ENDPOINT + CHAT, body, 60.0)]
        assert chunks == [b"data: {}\n\n"]
        assert driver.swarm.sent.total() == 11


@in_virtual_time
async def test_all_turns_of_a_row_go_to_one_replica_unless_that_fails() -> None:
    """Though what they ask is too short to be compared, and the other replica has less to do."""
    driver = Driver(Swarm())
    others = list[asyncio.Task[HttpReply]]()

    async def served() -> str | None:
        return (await driver.ask()).served_by

    async def turns(number: int) -> set[str | None]:
        current_trace.set(RowTrace())
        found = {await served()}
        for _ in range(3):
            for _ in range(number % 3 + 1):
                others.append(asyncio.create_task(driver.ask(), context=Context()))
            await asyncio.sleep(TRIP_S / 2)
            found.add(await served())
        return found

    async def failing_turn() -> None:
        current_trace.set(RowTrace())
        first = await served()
        driver.swarm.answer = lambda url: RequestTimeout("late") if url == first else None
        with pytest.raises(RequestTimeout):
            await served()
        others.append(asyncio.create_task(driver.ask(), context=Context()))
        assert {await served() for _ in range(3)} == {A, B} - {first}

    async with beside(driver.replicas.keep_looking()):
        for number in range(20):
            assert len(await asyncio.create_task(turns(number))) == 1
        await asyncio.gather(*others)
        others.clear()
        await asyncio.create_task(failing_turn())
        await asyncio.gather(*others, return_exceptions=True)


@in_virtual_time
async def test_where_the_endpoint_speaks_tls_only_what_it_would_change_goes_to_replicas() -> None:
    driver = Driver(Swarm())
    endpoint = ENDPOINT.replace("http:", "https:")
    async with beside(driver.replicas.keep_looking()):
        await driver.ask(PLAIN, endpoint)
        assert driver.swarm.sent == {endpoint: 1}
        await driver.ask(ODD, endpoint)
        assert driver.swarm.sent.total() == 2
        assert driver.swarm.sent[endpoint] == 1


@in_virtual_time
async def test_replicas_that_cannot_be_reached_leave_the_plain_to_the_endpoint() -> None:
    swarm = Swarm(answer=lambda url: None if url == ENDPOINT else CannotConnect("no route"))
    driver = Driver(swarm)
    began = now_s()
    async with beside(driver.replicas.keep_looking()):
        await driver.ask(PLAIN)
        assert now_s() - began < 1.0
        for _ in range(600):
            await driver.ask(PLAIN)
            await asyncio.sleep(1.0)
        assert set(swarm.sent) == {ENDPOINT}
        assert len(driver.notices) == 1
        assert swarm.proofs[A] < 60
        swarm.answer = lambda _url: None
        await asyncio.sleep(20.0)
        await driver.ask(PLAIN)
        await asyncio.sleep(2.0)
        swarm.sent.clear()
        await asyncio.gather(*[driver.ask(PLAIN) for _ in range(4)])
        assert swarm.sent == {A: 2, B: 2}


@in_virtual_time
async def test_whoever_took_a_dead_replicas_port_gets_no_request() -> None:
    swarm = Swarm(strangers={A})
    driver = Driver(swarm)
    async with beside(driver.replicas.keep_looking()):
        assert await driver.keep_asking(5.0) == []
        assert set(swarm.sent) == {B}
        swarm.strangers = {B}
        await asyncio.sleep(3.0)
        statuses = [(await driver.ask()).status]
        await asyncio.sleep(1.5)
        swarm.sent.clear()
        statuses += [(await driver.ask()).status for _ in range(4)]
        assert statuses == [401, 200, 200, 200, 200]
        assert set(swarm.sent) == {A}


@in_virtual_time
async def test_a_request_that_its_own_fault_turns_away_costs_no_replica_its_work() -> None:
    driver = Driver(Swarm())
    refused = HttpReply(404, b"{}", None)
    request = driver.swarm.request

    async def refusing(method: str, url: str, body: bytes | None, limit_s: float) -> HttpReply:
        reply = await request(method, url, body, limit_s)
        return refused if method == "POST" and body == PLAIN else reply

    driver.swarm.request = refusing  # type: ignore[method-assign]
    async with beside(driver.replicas.keep_looking()):
        for _ in range(20):
            statuses = [(await driver.ask(body)).status for body in (PLAIN, ODD, ODD)]
            assert statuses == [404, 200, 200]
            await asyncio.sleep(0.1)
        assert driver.swarm.sent[ENDPOINT] == 0
        assert driver.swarm.proofs.total() < 20


@in_virtual_time
async def test_while_the_endpoint_is_away_replicas_answer_for_it() -> None:
    swarm = Swarm()
    driver = Driver(swarm)
    async with beside(driver.replicas.keep_looking()):
        await driver.ask(PLAIN)
        swarm.collector_down = True
        swarm.answer = lambda url: CannotConnect("refused") if url == ENDPOINT else None
        for _ in range(60):
            assert (await driver.ask(PLAIN)).status == 200
            listing = await driver.client.request("GET", ENDPOINT + "/v1/models", None, 10.0)
            assert listing.status == 200
            await asyncio.sleep(1.0)
        assert swarm.sent[ENDPOINT] == 0


@in_virtual_time
async def test_a_collector_that_cannot_be_asked_has_left_its_last_view() -> None:
    swarm = Swarm(collector_down=True)
    swarm.recorded = swarm.view()
    driver = Driver(swarm)
    async with beside(driver.replicas.keep_looking()):
        await asyncio.gather(*[driver.ask() for _ in range(4)])
        assert swarm.sent == {A: 2, B: 2}


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
async def test_a_replica_that_breaks_off_is_named_and_left_alone() -> None:
    swarm = Swarm()
    driver = Driver(swarm)
    async with beside(driver.replicas.keep_looking()):
        await driver.ask()
        swarm.answer = lambda url: ConnectionBroken("gone") if url == A else None
        answers = await asyncio.gather(*[driver.ask() for _ in range(8)], return_exceptions=True)
        lost = [one for one in answers if isinstance(one, Exception)]
        assert [(type(one), getattr(one, "server", None)) for one in lost] == [(ReplicaLost, A)] * 4
        sent = swarm.sent[A]
        await asyncio.gather(*[driver.ask() for _ in range(8)])
        assert swarm.sent[A] == sent
        swarm.answer = lambda _url: RequestTimeout("no reply in time")
        with pytest.raises(RequestTimeout):
            await driver.ask()


@in_virtual_time
async def test_where_nobody_listens_another_replica_is_asked() -> None:
    swarm = Swarm()
    driver = Driver(swarm)
    async with beside(driver.replicas.keep_looking()):
        await driver.ask()
        swarm.answer = lambda url: CannotConnect("gone") if url == A else None
        swarm.sent.clear()
        replies = await asyncio.gather(*[driver.ask() for _ in range(8)])
        assert {reply.served_by for reply in replies} == {B}
        sent = swarm.sent[A]
        await asyncio.gather(*[driver.ask() for _ in range(8)])
        assert swarm.sent[A] == sent
        swarm.answer = lambda url: None if url == ENDPOINT else CannotConnect("gone")
        assert (await driver.ask(PLAIN)).served_by is None
        with pytest.raises(NobodyThere):
            await driver.ask(ODD)


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
    async with beside(driver.replicas.keep_looking()):
        await driver.ask()
        outcomes = [ConnectionBroken("reset"), None if second is None else second("gone")]
        swarm.answer = lambda _url: outcomes[swarm.sent[A] - 2]
        if told is None:
            assert (await driver.ask()).status == 200
        else:
            with pytest.raises(told, match="gone") as raised:
                await driver.ask()
            assert (raised.type, raised.value.server) == (told, A)
    assert swarm.sent[A] == 3


@in_virtual_time
async def test_a_replica_that_was_lost_proves_itself_and_that_is_known() -> None:
    swarm = Swarm(states={A: "ready"})
    driver = Driver(swarm)
    async with beside(driver.replicas.keep_looking()):
        await driver.ask()
        assert [url for url, _ in driver.proved] == [A]
        swarm.answer = lambda _url: ConnectionBroken("reset")
        with pytest.raises(ReplicaLost):
            await driver.ask()
        lost_at, swarm.answer = now_s(), lambda _url: None
        assert await driver.keep_asking(5.0) != []  # nobody is there for a moment
        [_, (url, asked_at)] = driver.proved
    assert (url, lost_at <= asked_at < lost_at + 2.0) == (A, True)


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
