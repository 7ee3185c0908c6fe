"""Work in threads that ends before anybody goes on."""

from __future__ import annotations

import asyncio
import threading

import pytest

from domyn_swarm.batch.background import in_thread
from patience import limit_s


async def cancelled_while_it_runs(fails: bool) -> tuple[asyncio.Task[str], threading.Event]:
    began, goes_on = threading.Event(), threading.Event()

    def work() -> str:
        began.set()
        assert goes_on.wait(limit_s())
        if fails:
            raise OSError("the disk is full")
        return "done"

    task = asyncio.create_task(in_thread(work))
    await asyncio.to_thread(began.wait, limit_s())
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    return task, goes_on


async def test_a_cancellation_waits_for_the_thread() -> None:
    task, goes_on = await cancelled_while_it_runs(fails=False)
    goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_what_went_wrong_comes_before_the_cancellation() -> None:
    task, goes_on = await cancelled_while_it_runs(fails=True)
    goes_on.set()
    with pytest.raises(OSError, match="the disk is full"):
        await task


async def test_arguments_and_results_pass() -> None:
    assert await in_thread(sorted, [2, 1], reverse=True) == [2, 1]
