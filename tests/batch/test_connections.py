"""How many requests of a session are in flight at most, for the files that they take."""

from __future__ import annotations

import asyncio

import pytest

from domyn_swarm import open_files
from domyn_swarm.batch.connections import Connections
from virtual_time import in_virtual_time


async def most_at_once(turns: Connections, requests: int) -> int:
    at_once, most = 0, 0

    async def request() -> None:
        nonlocal at_once, most
        async with turns:
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
