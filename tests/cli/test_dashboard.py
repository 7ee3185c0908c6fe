"""The dashboard's server against good and hostile clients, and how often it looks."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.cookiejar import DummyCookieJar

from domyn_swarm.backends.endpoint.connections import MAX_CONNECTIONS
from domyn_swarm.cli.dashboard import board
from domyn_swarm.cli.dashboard.board import Board, Polls
from domyn_swarm.cli.dashboard.server import Address, Dashboard, listening
from domyn_swarm.errors import PlatformError, SwarmNotFound
from domyn_swarm.state import SwarmStore
from patience import limit_s, until_async


@dataclass
class Served:
    """A dashboard of a home without swarms, and who asks it."""

    url: str
    port: int
    token: str
    session: aiohttp.ClientSession

    async def get(self, path: str = "/", method: str = "GET", **headers: str) -> Any:
        """An answer: its status, headers and text. Without headers who asks has the token."""
        given = headers or {"Authorization": f"Bearer {self.token}"}
        async with self.session.request(
            method, self.url + path, headers=given, allow_redirects=False
        ) as reply:
            return reply.status, reply.headers, await reply.text()


@pytest.fixture
async def served(swarm_home: Path) -> AsyncIterator[Served]:
    address = Address("127.0.0.1", 0)
    dashboard = Dashboard(Board(SwarmStore.open(), 0.5), address, 0.5)
    timeout = aiohttp.ClientTimeout(total=limit_s())
    async with (
        listening(dashboard, address) as port,
        aiohttp.ClientSession(cookie_jar=DummyCookieJar(), timeout=timeout) as session,
    ):
        yield Served(f"http://127.0.0.1:{port}", port, dashboard.token, session)


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/", {"Authorization": "Bearer {token}"}, 200),
        ("/", {"Accept": "*/*"}, 401),
        ("/page.js", {"Accept": "*/*"}, 401),
        ("/api/swarms", {"Accept": "*/*"}, 401),
        ("/?token=", {"Accept": "*/*"}, 401),
        ("/?token=schl%C3%BCssel", {"Authorization": "Bearer {token}"}, 401),
        ("/?token={token}x", {"Accept": "*/*"}, 401),
        ("/", {"Authorization": "Bearer schlüssel"}, 401),
        ("/", {"Authorization": "Basic {token}"}, 401),
        ("/", {"Cookie": "dashboard-00000000={token}"}, 401),
        ("/", {"Authorization": "Bearer {token}", "Host": "localhost:9999"}, 200),
        ("/", {"Authorization": "Bearer {token}", "Host": "[::1]:80"}, 200),
        ("/", {"Authorization": "Bearer {token}", "Host": "10.1.2.3"}, 200),
        ("/", {"Authorization": "Bearer {token}", "Host": "evil.example"}, 403),
        ("/", {"Authorization": "Bearer {token}", "Host": "localhost.evil.example"}, 403),
        ("/", {"Authorization": "Bearer {token}", "Host": "[::1"}, 403),
        ("/?token={token}", {"Host": "evil.example"}, 403),
        ("/nothing", {"Authorization": "Bearer {token}"}, 404),
        ("/api/swarms/none", {"Authorization": "Bearer {token}"}, 404),
        ("/reports/none", {"Authorization": "Bearer {token}"}, 404),
        ("/page/../../command.py", {"Authorization": "Bearer {token}"}, 404),
    ],
)
async def test_who_is_answered(
    served: Served, path: str, headers: dict[str, str], status: int
) -> None:
    given = {name: value.format(token=served.token) for name, value in headers.items()}
    found, told, _ = await served.get(path.format(token=served.token), **given)
    assert found == status
    assert told["Referrer-Policy"] == "no-referrer"
    assert "default-src 'none'" in told["Content-Security-Policy"]


async def test_it_changes_nothing(served: Served) -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
        assert (await served.get(method=method))[0] == 405


async def test_the_token_leaves_the_url_and_is_a_cookie_from_then_on(served: Served) -> None:
    status, headers, _ = await served.get(f"//evil.example/a%0Ab?token={served.token}", Accept="*")
    assert (status, headers["Location"]) == (303, "/evil.example/a%0Ab")
    cookie, *flags = headers["Set-Cookie"].split("; ")
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(flags)
    status, headers, page = await served.get("/swarms/any", Cookie=f"other=1; {cookie}")
    assert status == 200
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert "<script>" not in page


async def test_a_link_of_another_site_is_followed_by_a_request_of_our_own(served: Served) -> None:
    status, _, page = await served.get("/", **{"Sec-Fetch-Site": "cross-site"})
    assert (status, 'http-equiv="refresh"' in page) == (401, True)
    status, _, page = await served.get("/", **{"Sec-Fetch-Site": "same-origin"})
    assert (status, "refresh" in page) == (401, False)


async def test_a_home_without_swarms_says_what_to_do(served: Served) -> None:
    status, _, text = await served.get("/pages/")
    assert status == 200
    assert "domyn-swarm up -c FILE" in text
    assert '"swarms":[]' in (await served.get("/api/swarms"))[2]


async def test_hostile_clients_do_not_stop_it(served: Served) -> None:
    first = [
        b"",
        b"GET / HTTP/1.1\r\nX-Slow: ",
        b"\x16\x03\x01\x02\x00" * 100,
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\nabc",
        b"GET /" + b"../" * 2000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ]
    with contextlib.ExitStack() as stack:
        for number in range(MAX_CONNECTIONS + 50):
            hostile = stack.enter_context(socket.create_connection(("127.0.0.1", served.port)))
            hostile.setblocking(False)
            with contextlib.suppress(OSError):
                hostile.send(first[number % len(first)])
            await asyncio.sleep(0)
        for _ in range(5):
            assert (await served.get("/pages/"))[0] == 200


async def test_many_tabs_cost_one_look_and_nobody_costs_none() -> None:
    taken: list[int] = []
    let_go = threading.Event()

    def take() -> int:
        taken.append(len(taken))
        let_go.wait(limit_s())
        return len(taken)

    poll = Polls().at(("it",), lambda: take, 3600.0)
    tabs = [asyncio.create_task(poll.result()) for _ in range(20)]
    await until_async(lambda: taken)
    let_go.set()
    assert {(await tab).value for tab in tabs} == {1}
    assert (await poll.result()).value == 1  # it is not due yet
    assert len(taken) == 1


async def test_what_cannot_be_asked_is_shown_as_it_was_known() -> None:
    answers: list[Any] = ["first", PlatformError("The queue is silent."), RuntimeError(), "again"]

    def take() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    poll = Polls().at(("it",), lambda: take, 0.0)
    first = await poll.result()
    assert (first.value, first.problem) == ("first", None)
    silent = await poll.result()
    assert (silent.value, silent.at, silent.problem) == ("first", first.at, "The queue is silent.")
    assert "its terminal shows why" in ((await poll.result()).problem or "")
    again = await poll.result()
    assert (again.value, again.problem) == ("again", None)


async def test_nobody_waits_for_a_platform_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = threading.Event()
    monkeypatch.setattr(board, "_WAIT_S", 0.05)

    def take_slowly() -> str:
        slow.wait(limit_s())
        raise SwarmNotFound("it")

    late = Polls().at(("late",), lambda: take_slowly, 3600.0)
    assert await late.result() == board.PollResult()
    slow.set()
    await until_async(lambda: late._running is None)
    assert (await late.result()).gone
