"""Work in threads that ends before anybody goes on."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time

import pytest

from domyn_swarm.batch.background import beside, in_thread
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


async def test_who_goes_on_after_what_went_wrong_is_cancelled_all_the_same() -> None:
    """A report that cannot be written as a job ends is only warned of: the job waited for ever."""
    began, goes_on = threading.Event(), threading.Event()
    failures = 0

    def write() -> None:
        began.set()
        assert goes_on.wait(limit_s())
        raise OSError("the disk is full")

    async def report() -> None:
        nonlocal failures
        while True:
            try:
                await in_thread(write)
            except OSError:
                failures += 1
            await asyncio.sleep(0)

    async with asyncio.timeout(limit_s()):
        async with beside(report()):
            await asyncio.to_thread(began.wait, limit_s())
            asyncio.get_running_loop().call_later(0.05, goes_on.set)
    assert failures == 1


async def test_a_time_limit_is_told_as_one_after_what_went_wrong() -> None:
    def write() -> None:
        time.sleep(0.1)
        raise OSError("the disk is full")

    async def report() -> None:
        with contextlib.suppress(OSError):
            await in_thread(write)
        await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await report()


async def test_arguments_and_results_pass() -> None:
    assert await in_thread(sorted, [2, 1], reverse=True) == [2, 1]
