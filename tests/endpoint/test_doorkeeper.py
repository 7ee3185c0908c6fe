"""Who stands in for the replicas of a swarm that sleeps, over real connections."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web

from domyn_swarm.backends.endpoint import doorkeeper
from domyn_swarm.backends.endpoint.doorkeeper import Doorkeeper
from endpoint.bench import API_KEY, Bench
from patience import limit_s, until_async

KEY = {"Authorization": f"Bearer {API_KEY}"}
CHAT = "/v1/chat/completions"


@contextlib.asynccontextmanager
async def served(app: web.Application) -> AsyncIterator[str]:
    runner = web.AppRunner(app, **doorkeeper.RUNNER)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert runner.addresses
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def replica(request: web.Request) -> web.StreamResponse:
    """Answers in pieces with what it was asked."""
    assert request.headers["Authorization"] == KEY["Authorization"]
    body = await request.read()
    answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await answer.prepare(request)
    for piece in (request.path.encode(), b" ", body):
        await answer.write(piece)
        await asyncio.sleep(0.01)
    return answer


class Door:
    """One, whose swarm's replicas a test adds."""

    def __init__(self, bench: Bench, hold_s: float) -> None:
        self.replicas: list[str] = []
        spec = bench.endpoint_spec(model="m")
        self.keeper = Doorkeeper(spec, hold_s, lambda: tuple(self.replicas))

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[aiohttp.ClientSession]:
        async with (
            served(self.keeper.app()) as url,
            aiohttp.ClientSession(
                url, headers=KEY, timeout=aiohttp.ClientTimeout(limit_s())
            ) as session,
        ):
            yield session
        await self.keeper.close()


async def test_a_request_is_held_until_a_replica_answers_it(bench: Bench) -> None:
    door, app = Door(bench, limit_s()), web.Application()
    app.router.add_post(CHAT, replica)
    async with door.open() as session, served(app) as url:
        listing = await (await session.get("/v1/models")).json()
        assert [one["id"] for one in listing["data"]] == ["m"]
        asked = [
            asyncio.create_task(session.post(CHAT, data=json.dumps({"n": n}))) for n in range(5)
        ]
        await until_async(lambda: door.keeper.held == 5)
        assert door.keeper.came.is_set()
        door.replicas = ["http://127.0.0.1:9", url]  # nobody listens at the first
        for number, reply in enumerate(await asyncio.gather(*asked)):
            assert reply.status == 200
            assert reply.headers["Content-Type"] == "text/event-stream"
            assert await reply.text() == f'{CHAT} {{"n": {number}}}'
        assert door.keeper.held == 0


@pytest.mark.parametrize(("expected_s", "retry_after"), [(None, "5"), (31.4, "31"), (900.0, "60")])
async def test_what_waits_too_long_is_turned_away_and_may_come_again(
    bench: Bench, expected_s: float | None, retry_after: str
) -> None:
    door = Door(bench, 0.0)
    door.keeper.expected_s = lambda: expected_s
    async with door.open() as session:
        reply = await session.post(CHAT, json={})
        assert (reply.status, reply.headers["Retry-After"]) == (503, retry_after)
        assert "the swarm is asleep" in (await reply.json())["error"]["message"]


async def test_why_no_replica_will_serve_is_said_at_once(bench: Bench) -> None:
    door = Door(bench, 10 * limit_s())
    door.keeper.why = lambda: "no replica can be started: nodes may not submit"
    async with door.open() as session:
        reply = await session.post(CHAT, json={})
        assert reply.status == 503
        assert "nodes may not submit" in await reply.text()


async def test_nobody_without_the_key_wakes_it(bench: Bench) -> None:
    door = Door(bench, limit_s())
    async with door.open() as session:
        for headers in ({"Authorization": "Bearer wrong"}, {"Authorization": ""}):
            assert (await session.post(CHAT, json={}, headers=headers)).status == 401
            assert (await session.get("/v1/models", headers=headers)).status == 401
        assert (await session.get("/health", headers={"Authorization": ""})).status == 200
        assert not door.keeper.came.is_set()


async def test_it_holds_no_more_than_it_can(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doorkeeper, "_MOST_HELD", 2)
    door = Door(bench, limit_s())
    async with door.open() as session:
        held = [asyncio.create_task(session.post(CHAT, json={})) for _ in range(2)]
        await until_async(lambda: door.keeper.held == 2)
        assert (await session.post(CHAT, json={})).status == 503
        for one in held:
            one.cancel()
        await asyncio.gather(*held, return_exceptions=True)
        await until_async(lambda: door.keeper.held == 0)  # who hangs up is held no more
