"""One worker process of a run over several: requests rows from its coordinator and reports to
it.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from typing_extensions import override

from domyn_swarm.batch.background import beside, in_thread
from domyn_swarm.batch.checkpoint.journal import Journal, SyncedSink
from domyn_swarm.batch.input.row_keys import RowKeys
from domyn_swarm.batch.outcomes.row_outcomes import Result, Row
from domyn_swarm.batch.outcomes.tally import Tally
from domyn_swarm.batch.run.link import (
    Alone,
    Begin,
    Counted,
    GoOn,
    Held,
    Hold,
    Limit,
    Link,
    NoMoreRows,
    Order,
    Rows,
    Stop,
    Wanted,
    YourTurn,
)
from domyn_swarm.batch.run.runner import Events, Runner, Transform
from domyn_swarm.batch.run.standing import Suspects
from domyn_swarm.batch.run.steering import Placing
from domyn_swarm.batch.run.traffic import Colleagues, Traffic
from domyn_swarm.batch.run.worker_processes import WorkPlan

_REPORT_S = 0.25
_REPLICAS_S = 5.0  # seconds between reports of the counters per replica
_PLACED_EVERY = 2  # in reports: how often the requests in flight per replica are included
_LOOK_UP_S = 0.1
_MOST_WANTED = 256


class RangeWorker(Events, Colleagues):
    """The worker's end of the link: a source of rows, a callback, a reporter. Use it once."""

    def __init__(
        self,
        link: Link[Order],
        keys: RowKeys,
        tally: Tally,
        suspects: Suspects | None = None,
        traffic: Traffic | None = None,
    ) -> None:
        self._link = link
        self.placing: Placing | None = None  # set if requests go to replicas directly
        self._keys = keys
        self._tally = tally
        self._suspects = Suspects() if suspects is None else suspects
        self._traffic = traffic or Traffic()
        self._traffic.colleagues = self
        self._chunks: queue.SimpleQueue[Rows | None] = queue.SimpleQueue()
        self._of: dict[int, int] = {}  # ordinal → its chunk
        self._left: Counter[int] = Counter()  # unsettled rows of each chunk
        self._settled: list[int] = []
        self._replicas_told_at = -_REPLICAS_S
        self._reports = 0
        self._stopped = False
        self._runner: Runner | None = None

    async def run(self, transform: Transform, work: WorkPlan) -> None:
        """Settle the rows that the coordinator hands out.

        Raises:
            JobError: results cannot be kept.
            ConnectionError: the coordinator has ended.
        """
        orders = self._link.listen()
        begin = await anext(orders, None)
        if not isinstance(begin, Begin):
            raise ConnectionError("the coordinator is gone")
        self._suspects.keep_in(Path(begin.folder))
        journal = await in_thread(Journal, Path(begin.folder), begin.generation, begin.writer)
        sink = SyncedSink(journal, work.sync_rows)
        policy = replace(work.run_policy, concurrency=begin.limit, failure_limit=None)
        runner = self._runner = Runner(
            transform, sink, policy, encode=work.encode, tally=self._tally, events=self
        )
        try:
            async with beside(sink.keep_syncing(work.sync_s), self._report()):
                await self._until_over(runner, policy.rows_per_call, orders)
        finally:
            try:
                await in_thread(journal.close)
            finally:
                self._send_report(last=True)

    async def _until_over(
        self, runner: Runner, rows_per_call: int, orders: AsyncIterator[Order]
    ) -> None:
        if self._stopped:
            return
        source = self._source(asyncio.get_running_loop(), runner, rows_per_call)
        working = asyncio.create_task(runner.run(source))
        listening = asyncio.create_task(self._listen(runner, orders))
        try:
            await asyncio.wait({working, listening}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                listening.result()
                raise ConnectionError("the coordinator is gone")
            await working
        finally:
            self._chunks.put(None)
            for task in (working, listening):
                task.cancel()
            await asyncio.gather(working, listening, return_exceptions=True)

    async def _listen(self, runner: Runner, orders: AsyncIterator[Order]) -> None:
        async for order in orders:
            match order:
                case Rows():
                    self._chunks.put(order)
                case NoMoreRows():
                    self._chunks.put(None)
                case Limit(limit=limit, capacities=capacities):
                    if self.placing is not None:
                        self.placing.set_capacities(capacities)
                    runner.set_limit(limit)
                case Hold(number=number):
                    self._traffic.hold(number)
                case YourTurn(wish=wish, rest_s=rest_s):
                    self._traffic.take_turn(wish, rest_s)
                case GoOn():
                    self._traffic.go_on()
                case Stop():
                    self.stop()
                case Begin():
                    raise ValueError("a run begins once")

    @override
    def want_turn(self, wish: int) -> None:
        self._link.say(Alone(wish, self._rest_s()))

    @override
    def say_held(self, number: int) -> None:
        self._link.say(Held(number, self._rest_s()))

    def _rest_s(self) -> float:
        return self._suspects.rest_s(asyncio.get_running_loop().time())

    def stop(self) -> None:
        """Take no more rows, let those in flight finish."""
        self._stopped = True
        if self._runner is not None:
            self._runner.stop()
        self._chunks.put(None)

    def _source(
        self, loop: asyncio.AbstractEventLoop, runner: Runner, rows_per_call: int
    ) -> Iterator[list[Row]]:
        """Chunks as the runner takes them, on its reader's thread."""
        while True:
            half = runner.limit * rows_per_call // 2
            wanted = max(rows_per_call, min(_MOST_WANTED, half))
            loop.call_soon_threadsafe(self._link.say, Wanted(wanted))
            chunk = self._next(runner)
            if chunk is None:
                return
            rows = chunk.pending().rows(self._keys)
            self._left[chunk.number] = len(rows)
            self._of.update(dict.fromkeys((row.ordinal for row in rows), chunk.number))
            yield rows

    def _next(self, runner: Runner) -> Rows | None:
        while not runner.stopped:  # it may end for reasons of its own, and waits for this thread
            with contextlib.suppress(queue.Empty):
                return self._chunks.get(timeout=_LOOK_UP_S)
        return None

    @override
    def on_batch(self, results: Sequence[Result]) -> None:
        """Record which chunks are settled now."""
        for result in results:
            number = self._of.pop(result.ordinal)
            self._left[number] -= 1
            if not self._left[number]:
                del self._left[number]
                self._settled.append(number)

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(_REPORT_S)
            self._send_report()

    def _send_report(self, *, last: bool = False) -> None:
        now = asyncio.get_running_loop().time()
        replicas = None
        if last or now - self._replicas_told_at >= _REPLICAS_S:
            self._replicas_told_at = now
            replicas = self._tally.replies.sums.replicas.copied()
        settled, self._settled = self._settled, []
        runner = self._runner
        limit, calls = (0, 0) if runner is None else (runner.limit, runner.calls)
        counters = self._tally.counters(with_replicas=False)
        self._reports += 1
        placed = None
        if self.placing is not None and self._reports % _PLACED_EVERY == 0:
            placed = dict(self.placing.at_replicas())
        self._link.say(Counted(counters, settled, limit, calls, replicas, placed))
