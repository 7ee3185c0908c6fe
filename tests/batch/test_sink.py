"""Syncing beside a run."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

from domyn_swarm.batch.rows import Result, RowValue
from domyn_swarm.batch.sink import SyncedSink, beside


class Keeper:
    """What keeps results, and tells of each sync."""

    def __init__(self) -> None:
        self.kept = 0
        self.synced = threading.Semaphore(0)

    def append(self, results: Sequence[Result]) -> None:
        self.kept += len(results)

    def sync(self) -> None:
        self.synced.release()


RESULT = Result(0, bytes(16), RowValue(b"{}", b"", 1, 0, 0, 0.0))


async def test_it_syncs_by_rows_and_by_seconds() -> None:
    keeper = Keeper()
    sink = SyncedSink(keeper, 2)
    async with beside(sink.keep_syncing(0.3)):
        sink.append([RESULT, RESULT])
        assert await asyncio.to_thread(keeper.synced.acquire, timeout=10)
        sink.append([RESULT])
        assert await asyncio.to_thread(keeper.synced.acquire, timeout=10)
    assert keeper.kept == 3


async def test_a_run_that_ends_as_enough_was_kept_ends() -> None:
    sink = SyncedSink(Keeper(), 1)
    async with asyncio.timeout(10):
        async with beside(sink.keep_syncing(60)):
            await asyncio.sleep(0.01)
            sink.append([RESULT])
            await asyncio.sleep(0)  # whoever syncs is woken, and cancelled before it runs
