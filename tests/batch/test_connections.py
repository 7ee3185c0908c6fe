"""How many requests of a session are in flight at most, for the files that they take."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from domyn_swarm import open_files
from domyn_swarm.batch.run.traffic import Connections
from domyn_swarm.net.http import open_client
from model_server import KEY
from patience import limit_s, until_async
from virtual_time import in_virtual_time


async def most_at_once(turns: Connections, requests: int) -> int:
    at_once, most = 0, 0

    async def request() -> None:
        nonlocal at_once, most
        if turns.full:
            await turns.turn()
        with turns:
            at_once += 1
            most = max(most, at_once)
            await asyncio.sleep(1)
            at_once -= 1

    await asyncio.gather(*[request() for _ in range(requests)])
    return most


@pytest.mark.parametrize(
    ("admits", "requests", "most", "said"),
    [
        (None, 100, 100, None),
        (None, 101, 100, "may have 256 files open"),
        (500, 500, 100, "may have 256 files open"),
        (7, 20, 7, "the endpoint takes no more"),
        (0, 3, 1, "the endpoint takes no more"),
    ],
)
def test_no_more_are_in_flight_than_there_are_files_for_and_that_is_said_once(
    monkeypatch: pytest.MonkeyPatch,
    admits: int | None,
    requests: int,
    most: int,
    said: str | None,
) -> None:
    monkeypatch.setattr(open_files, "connections", lambda: 100)
    monkeypatch.setattr(open_files, "limits", lambda: open_files.Limits(256, 256))

    @in_virtual_time
    async def run() -> None:
        notices: list[str] = []
        turns = Connections(admits, notices.append)
        assert await most_at_once(turns, requests) == most
        assert await most_at_once(turns, requests) == most
        assert len(notices) == (said is not None)
        assert all(str(said) in notice for notice in notices)

    run()


@in_virtual_time
async def test_turns_go_by_arrival_and_none_is_lost_with_who_gives_up() -> None:
    turns, served = Connections(1, lambda _: None), []

    async def request(name: str) -> None:
        if turns.full:
            await turns.turn()
        with turns:
            served.append(name)
            await asyncio.sleep(1)
        if name == "a":
            tasks["c"].cancel()  # as its turn has come: it goes on to the next

    tasks = {name: asyncio.create_task(request(name)) for name in "abcde"}
    await asyncio.sleep(0.5)
    tasks["b"].cancel()  # while it waits
    await asyncio.wait(tasks.values(), timeout=60)
    assert served == ["a", "d", "e"]
    assert [name for name, task in tasks.items() if task.cancelled()] == ["b", "c"]
    assert await most_at_once(turns, 3) == 1


@in_virtual_time
async def test_where_files_run_out_fewer_are_in_flight_until_they_come_back() -> None:
    notices: list[str] = []
    turns = Connections(100, notices.append)
    assert await most_at_once(turns, 90) == 90

    async def fail() -> None:
        if turns.full:
            await turns.turn()
        with turns:
            await asyncio.sleep(0.5)
            turns.lower()

    await asyncio.gather(*[fail() for _ in range(50)])  # of one cause
    assert turns.most == 45
    assert await most_at_once(turns, 300) == 45
    assert [one for one in notices if "no more than 45 requests" in one] == notices[:1]
    await asyncio.gather(*[fail() for _ in range(20)])
    assert turns.most == 18
    await asyncio.sleep(40)  # the rest is twice as long by now
    assert await most_at_once(turns, 100) == 18
    await asyncio.sleep(60)
    await most_at_once(turns, 200)
    assert turns.most == 100
    assert await most_at_once(turns, 300) == 100
    assert len([one for one in notices if "has no open file left" in one]) == 1


async def test_of_idle_connections_to_one_server_few_are_kept(
    server: Any, answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_files, "connections", lambda: 100)
    server.behave = lambda _prompt, _nth: answer(delay_s=0.3)
    client = open_client(KEY, use_proxy=False)
    port = urlsplit(server.url).port

    def kept() -> int:
        found = psutil.Process().net_connections("tcp")
        return sum(
            one.status == "ESTABLISHED" and bool(one.raddr) and one.raddr.port == port
            for one in found
        )

    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x"}]}).encode()
    url = f"{server.url}/v1/chat/completions"
    try:
        asking = [client.request("POST", url, body, limit_s()) for _ in range(150)]
        replies = await asyncio.gather(*asking)
        assert {reply.status for reply in replies} == {200}
        await until_async(lambda: kept() <= 64)
        assert kept() > 0
    finally:
        await client.close()


ASKS = """
import asyncio, json, sys
from domyn_swarm.batch.run.session import EndpointAccess, open_session
from domyn_swarm.batch.run.asking import RetryPolicy
from domyn_swarm.batch.outcomes.tally import Tally

url, key, requests = sys.argv[1], sys.argv[2], int(sys.argv[3])

async def main():
    tally, notices = Tally(), []
    session = open_session(EndpointAccess(lambda: url, key), RetryPolicy(), tally, notices.append)
    async with session as (client, _):
        ask = client.chat.completions.create
        prompts = [[{"role": "user", "content": str(nth)}] for nth in range(requests)]
        await asyncio.gather(*[ask(model="m", messages=prompt) for prompt in prompts])
    print(json.dumps([tally.requests, tally.retries, notices]))

asyncio.run(main())
"""


def test_a_process_with_few_files_asks_each_once(server: Any, answer: Any) -> None:
    server.behave = lambda _prompt, _nth: answer(delay_s=0.3)
    program = 'ulimit -Sn 160 && ulimit -Hn 160 && exec "$0" -c "$@"'
    argv = ["/bin/sh", "-c", program, sys.executable, ASKS, server.url, KEY, "400"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=limit_s(), check=False)
    assert done.returncode == 0, done.stderr
    requests, retries, notices = json.loads(done.stdout)
    assert (requests, retries) == (400, 0)
    assert set(server.asked.values()) == {1}
    assert 20 < server.most_at_once < 160
    assert [notice for notice in notices if "may have 160 files open" in notice] == notices
    assert len(notices) == 1
