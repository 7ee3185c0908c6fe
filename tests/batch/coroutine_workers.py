"""Workers of a coordinator that are coroutines: what they do with their rows is a test's choice.

The coordinator, its checkpoint and the links are the real ones.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from domyn_swarm.batch.checkpoint.checkpoint_folder import Checkpoint
from domyn_swarm.batch.checkpoint.job_store import Asker, JobPlace
from domyn_swarm.batch.checkpoint.journal import Journal
from domyn_swarm.batch.checkpoint.request_identity import JobIdentity
from domyn_swarm.batch.input.row_keys import RowKeys
from domyn_swarm.batch.outcomes.row_outcomes import Result, RowValue
from domyn_swarm.batch.outcomes.tally import Counters, Tally
from domyn_swarm.batch.run.asking import RetryPolicy
from domyn_swarm.batch.run.coordinator import Coordinator
from domyn_swarm.batch.run.link import (
    Begin,
    Counted,
    Limit,
    Link,
    NoMoreRows,
    Order,
    Report,
    Rows,
    Stop,
    Wanted,
)
from domyn_swarm.batch.run.pending import PendingRows
from domyn_swarm.batch.run.runner import Events, RunPolicy
from domyn_swarm.batch.run.standing import FailureLimit
from domyn_swarm.batch.run.worker_loop import RangeWorker
from domyn_swarm.batch.run.worker_processes import WorkerPlan, WorkerProcess, WorkPlan
from virtual_time import now_s

KEYS = RowKeys(["text"], None)
GRACE_S = 20.0


def digests(first: int, count: int) -> Any:
    return np.array([[number + 1, 1] for number in range(first, first + count)], np.uint64)


def source(rows: int, batch: int = 500) -> Iterator[PendingRows]:
    for first in range(0, rows, batch):
        count = min(batch, rows - first)
        ordinals = np.arange(first, first + count)
        texts = [f"p{number}" for number in ordinals.tolist()]
        columns = pa.RecordBatch.from_pydict({"text": texts})
        yield PendingRows(ordinals, digests(first, count), columns)


class Worker:
    """A worker in this process: a behaviour at the other end of a real link."""

    def __init__(self, number: int, link: Link[Report]) -> None:
        self.link = link
        self.number = number
        self.killed_at: float | None = None
        self.heard: list[Order] = []
        self.working: asyncio.Task[int] | None = None
        self._code: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    @property
    def name(self) -> str:
        return f"worker {self.number}"

    async def ended(self) -> int:
        return await asyncio.shield(self._code)

    def end(self, code: int) -> None:
        if not self._code.done():
            self._code.set_result(code)

    def kill(self) -> None:
        if not self._code.done():
            self.killed_at = now_s()
            if self.working is not None:
                self.working.cancel()
            self.end(-9)


Behaviour = Callable[[Worker, Link[Order], "Run"], Awaitable[int]]


class Died(Exception):
    """What a behaviour raises where its process would be gone."""


@dataclass
class Run:
    """One run over workers whose behaviour a test chooses, by the number of their start."""

    folder: Path
    behaviour: Callable[[int], Behaviour]
    rows: int = 1000
    workers: int = 4
    limit: int | None = 16
    started: list[Worker] = field(default_factory=list)
    asked: Counter[int] = field(default_factory=Counter)
    kept: Counter[int] = field(default_factory=Counter)
    at_once: int = 0
    most_at_once: int = 0
    tally: Tally = field(default_factory=Tally)
    failure_limit: FailureLimit | None = None
    may_start: Callable[[int], Awaitable[None]] | None = None
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        place = JobPlace(self.folder, JobIdentity({"job": "m:J"}), "0" * 16)
        self.checkpoint = Checkpoint(place, KEYS, Asker("j1"))
        self.policy = RunPolicy(self.limit, grace_s=GRACE_S, failure_limit=self.failure_limit)
        self.tally.rows_total = self.rows
        self.coordinator = Coordinator(
            self.checkpoint,
            self.policy,
            WorkerPlan(self.workers, self._start),
            tally=self.tally,
            events=Events(),
        )
        self._attempts = 0

    async def _start(self) -> WorkerProcess:
        attempt, self._attempts = self._attempts, self._attempts + 1
        if self.may_start is not None:
            await self.may_start(attempt)
        ours, theirs = socket.socketpair()
        here = await asyncio.open_unix_connection(sock=ours)
        there = await asyncio.open_unix_connection(sock=theirs)
        worker = Worker(len(self.started), Link(*here, Report))
        self.started.append(worker)
        link = Link(*there, Order)
        behaviour = self.behaviour(worker.number)
        worker.working = asyncio.create_task(self._work(worker, behaviour, link, there[1]))
        return worker

    async def _work(
        self, worker: Worker, behaviour: Behaviour, link: Link[Order], writer: asyncio.StreamWriter
    ) -> int:
        code = -9
        try:
            code = await behaviour(worker, link, self)
        except Died:
            code = 9
        finally:
            writer.close()
            worker.end(code)
        return code

    async def run(self, rows: Iterator[PendingRows] | None = None) -> None:
        try:
            await self.coordinator.run(source(self.rows) if rows is None else rows)
        finally:
            working = [one.working for one in self.started if one.working is not None]
            for one in working:
                one.cancel()
            await asyncio.gather(*working, return_exceptions=True)
            for worker in self.started:
                await worker.link.close()
            self.settled = self._settled()
            self.checkpoint.close()

    def _settled(self) -> int:
        index = self.checkpoint.index()
        try:
            return int(index.match(0, digests(0, self.rows)).found.sum())
        finally:
            index.frames.close()


def scripted(
    *,
    row_s: float = 0.1,
    dies_at: int | None = None,
    ends_at: int | None = None,
    on_stop: Callable[[], Awaitable[None]] | None = None,
    row: Callable[[int], None] = lambda _ordinal: None,
) -> Behaviour:
    """A worker that takes a handful, and settles one row after the other. It dies (or ends, as if
    all was well) when it has settled so many.
    """

    async def work(worker: Worker, link: Link[Order], run: Run) -> int:
        orders = link.listen()
        begin = await anext(orders)
        assert isinstance(begin, Begin)
        journal = Journal(Path(begin.folder), begin.generation, begin.writer)
        counters, settled, limit = Counters(), 0, begin.limit
        try:
            link.say(Wanted(limit))
            async for order in orders:
                worker.heard.append(order)
                match order:
                    case Rows():
                        pending = order.pending()
                        for ordinal in pending.ordinals.tolist():
                            if settled == dies_at:
                                raise Died
                            if settled == ends_at:
                                return 0
                            run.asked[ordinal] += 1
                            row(ordinal)
                            await asyncio.sleep(row_s)
                            value = RowValue(b"{}", b"", 1, 0, 0, row_s)
                            one = Result(ordinal, digests(ordinal, 1).tobytes(), value)
                            journal.append([one])
                            run.kept[ordinal] += 1
                            settled += 1
                            counters = msgspec.structs.replace(counters, rows_answered=settled)
                        link.say(Counted(counters, [order.number], limit, 1))
                        link.say(Wanted(limit))
                    case Limit():
                        limit = order.limit
                        link.say(Counted(counters, [], limit, 1))
                    case NoMoreRows():
                        return 0
                    case Stop():
                        if on_stop is not None:
                            await on_stop()
                        return 0
        finally:
            await asyncio.to_thread(journal.close)
        return 1

    return work


def real(row_s: Callable[[str], float], tally: Tally | None = None) -> Behaviour:
    """The real worker, over a transform that takes so long."""

    async def work(_worker: Worker, link: Link[Order], run: Run) -> int:
        async def transform(items: list[str]) -> Sequence[str]:
            run.asked.update(int(item[1:]) for item in items)
            run.at_once += 1
            run.most_at_once = max(run.most_at_once, run.at_once)
            try:
                await asyncio.sleep(row_s(items[0]))
            finally:
                run.at_once -= 1
            return items

        plan = WorkPlan(run.policy, RetryPolicy(), encode=lambda *_: b"{}", sync_s=5.0)
        await RangeWorker(link, KEYS, tally or Tally()).run(transform, plan)
        return 0

    return work
