"""Syncing, and other work beside a run."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from domyn_swarm.batch.background import beside
from domyn_swarm.batch.checkpoint.journal import SyncedSink
from domyn_swarm.batch.outcomes.row_outcomes import Result, RowValue
from domyn_swarm.errors import JobError, TooManyFailures
from virtual_time import in_virtual_time, now_s

RESULT = Result(0, bytes(16), RowValue(b"{}", b"", 1, 0, 0, 0.0))


@dataclass
class Keeper:
    """What keeps results, and how many of them each sync made safe."""

    kept: int = 0
    syncs: list[int] = field(default_factory=list)
    refuses: bool = False

    def append(self, results: Sequence[Result]) -> None:
        self.kept += len(results)

    def sync(self) -> None:
        if self.refuses:
            raise JobError("Cannot write the checkpoint: Disk quota exceeded.", hint="")
        self.syncs.append(self.kept)


@in_virtual_time
async def test_it_syncs_by_seconds_and_only_what_is_new() -> None:
    keeper = Keeper()
    sink = SyncedSink(keeper, 1000)
    async with beside(sink.keep_syncing(5.0)):
        for _ in range(10):
            sink.append([RESULT])
            await asyncio.sleep(1.0)
        await asyncio.sleep(3600)
    assert keeper.syncs == [5, 10]


@in_virtual_time
async def test_it_syncs_by_rows_at_once() -> None:
    keeper = Keeper()
    sink = SyncedSink(keeper, 3)
    async with beside(sink.keep_syncing(3600.0)):
        for _ in range(7):
            sink.append([RESULT])
            await asyncio.sleep(0.01)
    assert keeper.syncs == [3, 6]


@in_virtual_time
async def test_a_run_that_ends_as_enough_was_kept_ends() -> None:
    sink = SyncedSink(Keeper(), 1)
    began = now_s()
    async with beside(sink.keep_syncing(60)):
        await asyncio.sleep(0.01)
        sink.append([RESULT])
        await asyncio.sleep(0)  # whoever syncs is woken, and cancelled before it runs
    assert now_s() - began < 60


@in_virtual_time
async def test_results_that_cannot_be_synced_end_the_run() -> None:
    sink = SyncedSink(Keeper(refuses=True), 1000)
    began = now_s()

    async def run() -> None:
        async with beside(sink.keep_syncing(1.0)):
            sink.append([RESULT])
            await asyncio.sleep(3600)

    with pytest.raises(JobError, match="Disk quota exceeded"):
        await run()
    assert now_s() - began < 3600


@in_virtual_time
async def test_an_error_of_the_run_itself_is_raised_as_it_is() -> None:
    failure = TooManyFailures("too many rows failed", hint="")
    failure.__cause__ = ValueError("the first")
    with pytest.raises(TooManyFailures) as raised:
        async with beside(asyncio.sleep(3600)):
            raise failure
    assert raised.value is failure
    assert isinstance(raised.value.__cause__, ValueError)


@in_virtual_time
async def test_of_two_errors_that_of_the_run_is_raised() -> None:
    async def fails() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            raise ValueError("while it is ended")

    async def run() -> None:
        async with beside(fails()):
            await asyncio.sleep(1)
            raise TooManyFailures("too many rows failed", hint="")

    with pytest.raises(TooManyFailures):
        await run()


@in_virtual_time
async def test_a_run_that_is_cancelled_is_cancelled_and_so_is_the_work_beside_it() -> None:
    ended: list[str] = []

    async def endless() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append("beside")

    async def run() -> None:
        async with beside(endless()):
            await asyncio.sleep(3600)

    running = asyncio.create_task(run())
    await asyncio.sleep(1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert ended == ["beside"]


@in_virtual_time
async def test_work_that_ends_before_the_run_does_not_end_it() -> None:
    began = now_s()
    async with beside(asyncio.sleep(1)):
        await asyncio.sleep(10)
    assert now_s() - began == 10
