"""One run over several processes: the coordinator reads rows, hands out chunks and counts results.
Rows without a result in the journal of a worker that ended go to another worker.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import msgspec
import numpy as np

from domyn_swarm.batch.checkpoint.checkpoint_folder import Checkpoint
from domyn_swarm.batch.outcomes.tally import Counters, Tally
from domyn_swarm.batch.run.dispatch import AtReplica, Capacity
from domyn_swarm.batch.run.limiter import FIRST_LIMIT
from domyn_swarm.batch.run.link import (
    Alone,
    Begin,
    Counted,
    Failed,
    Held,
    Limit,
    NoMoreRows,
    Order,
    Stop,
    Wanted,
    pack,
)
from domyn_swarm.batch.run.pending import PendingRows
from domyn_swarm.batch.run.runner import Events, RunPolicy
from domyn_swarm.batch.run.traffic import Turns
from domyn_swarm.batch.run.worker_processes import (
    AfterDeath,
    WorkerDeaths,
    WorkerPlan,
    WorkerProcess,
)
from domyn_swarm.errors import JobError, PlatformError
from domyn_swarm.logs import get_logger

_log = get_logger(__name__)

_END_S = 15.0  # seconds for a worker to end, beyond the grace period
_LAST_SHARE = 4  # a chunk is at most this fraction of the rows that each worker will still get


@dataclass(eq=False)
class _Worker:
    """The coordinator's record of one worker process."""

    process: WorkerProcess
    writer: int = 0  # the number of its journal; 0: it has not started
    counters: Counters = field(default_factory=Counters)
    held: dict[int, PendingRows] = field(default_factory=dict)  # chunks that are not settled
    share: int = 0  # its share of the calls in flight
    limit: int = 0  # its present limit; 0: it has not started
    informed: tuple[int, Mapping[str, Capacity]] = (0, {})  # the limit and capacities last sent
    at_replicas: Mapping[str, AtReplica] = field(default_factory=dict)
    calls: int = 0  # calls that it may have in flight: above the limit until it has followed it
    leaving: bool = False  # it was sent `NoMoreRows`


class Coordinator:
    """Runs rows through worker processes. Use it once."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        policy: RunPolicy,
        workers: WorkerPlan,
        *,
        tally: Tally,
        events: Events,
    ) -> None:
        self._checkpoint = checkpoint
        self._policy = policy
        self._start_process = workers.start
        self._count = workers.count
        self._tally = tally
        self._events = events
        self._workers: list[_Worker] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._ready: deque[PendingRows] = deque()
        self._reading = asyncio.Lock()
        self._exhausted = False
        self._chunks = 0
        self._handed_out = 0
        self._deaths = WorkerDeaths(workers.count)
        self._turns: Turns[_Worker] = Turns(_send, lambda: asyncio.get_running_loop().time())
        self._fatal: BaseException | None = None
        self._stopping = asyncio.Event()
        self._over = asyncio.Event()  # no further workers have to be started
        self._capacities: Mapping[str, Capacity] = {}
        self._gone_at_replicas: dict[str, AtReplica] = {}  # of workers that have ended
        self.limit = policy.concurrency or FIRST_LIMIT

    def set_limit(self, limit: int) -> None:
        """Set the limit of calls in flight over all workers; each worker has at least one."""
        self.limit = self._tally.limit = limit
        living = len(self._workers)
        for at, worker in enumerate(self._workers):
            worker.share = max(1, limit // living + (at < limit % living))
            worker.limit = min(worker.limit, worker.share)
        self._give_out()

    def set_capacities(self, capacities: Mapping[str, Capacity]) -> None:
        """Distribute requests in proportion to these, from each worker's next limit on."""
        self._capacities = capacities

    def at_replicas(self) -> dict[str, AtReplica]:
        """Requests now and in total, at each replica: of all workers together, as last reported."""
        found = {url: AtReplica(0, 0, 0) for worker in self._workers for url in worker.at_replicas}
        for at_replicas in (self._gone_at_replicas, *(one.at_replicas for one in self._workers)):
            for url in found.keys() & at_replicas.keys():
                found[url] = found[url].plus(at_replicas[url])
        return found

    def _give_out(self) -> None:
        """Raise workers' limits as others, whose share shrank, get below theirs."""
        free = self.limit - sum(worker.calls for worker in self._workers)
        for worker in self._workers:
            more = min(worker.share - worker.limit, free)
            if more <= 0:
                continue
            begins = not worker.limit
            worker.limit += more
            free -= max(0, worker.limit - worker.calls)
            worker.calls = max(worker.calls, worker.limit)
            if begins:
                folder, generation, worker.writer = self._checkpoint.writer()
                begin = Begin(folder, generation, worker.writer, worker.limit)
                worker.process.link.say(begin)
                worker.informed = worker.limit, {}
                self._turns.join(worker)
        for worker in self._workers:
            self._inform(worker)

    def _inform(self, worker: _Worker) -> None:
        """Send the worker its limit, and its share of the replicas' capacities, if they changed."""
        wanted = worker.limit, self._capacities
        if worker.limit and worker.informed != wanted:
            worker.informed = wanted
            part = worker.limit / max(1, self.limit)
            own = {url: one._replace(limit=one.limit * part) for url, one in wanted[1].items()}
            worker.process.link.say(Limit(worker.limit, own))

    def _note_calls(self, worker: _Worker, limit: int, calls: int) -> None:
        if limit == worker.limit:  # else this report is older than the worker's limit
            worker.calls = max(limit, calls)
            self._give_out()

    def stop(self) -> None:
        """Take no more rows; `run` returns once those in flight are settled or out of time."""
        if not self._stopping.is_set():
            self._end()
            self._events.on_cancel()

    def _end(self) -> None:
        self._stopping.set()
        self._over.set()

    async def run(self, source: Iterator[PendingRows]) -> None:
        """Settle every row of the source, or until `stop`.

        Raises:
            TooManyFailures: more rows failed than the policy allows.
            JobError: workers keep dying, or their results cannot be kept.
        """
        with ThreadPoolExecutor(1, thread_name_prefix="reader") as reader:
            self._source, self._reader = source, reader
            stopping = asyncio.create_task(self._stop_when_told())
            try:
                await self._fill()
                for _ in range(min(self._count, self.limit) if self._ready else 0):
                    self._tasks.add(asyncio.create_task(self._employ()))
                while self._tasks:
                    await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
                    self._tasks = {task for task in self._tasks if not _finished(task)}
            finally:
                stopping.cancel()
                for task in self._tasks:
                    task.cancel()
                ends = await asyncio.gather(stopping, *self._tasks, return_exceptions=True)
                for error in ends:
                    if isinstance(error, Exception):  # one that came as it was cancelled, too
                        self._give_up(error)
                for worker in self._workers:
                    worker.process.kill()
        if self._fatal is not None:
            raise self._fatal

    async def _stop_when_told(self) -> None:
        await self._stopping.wait()
        for worker in self._workers:
            worker.process.link.say(Stop())
        await asyncio.sleep(self._policy.grace_s + _END_S)
        for worker in self._workers:
            _log.warning("%s does not end; killing it", worker.process.name)
            worker.process.kill()

    # -- workers ---------------------------------------------------------------------------------

    async def _employ(self) -> None:
        """Run one worker from its start to its end, unless no rows are left for it."""
        process = await self._started()
        if process is not None:
            worker = _Worker(process)
            self._workers.append(worker)
            self.set_limit(self.limit)
            await self._attend(worker)

    async def _started(self) -> WorkerProcess | None:
        """A started worker; None if the run ends before there is room for it.

        Raises:
            PlatformError: there is no room, and no other worker is running.
        """
        while not self._nothing_left():
            starting = asyncio.ensure_future(self._start_process())
            over = asyncio.ensure_future(self._over.wait())
            try:
                await asyncio.wait({starting, over}, return_when=asyncio.FIRST_COMPLETED)
                if starting.done():
                    return starting.result()
            except PlatformError as error:
                if not self._workers:
                    raise
                _log.warning("%s Going on with %d workers.", error.message, len(self._workers))
            finally:
                over.cancel()
                starting.cancel()
        return None

    def _nothing_left(self) -> bool:
        """Rows held by a worker return to the queue only if it ends, and then it is replaced."""
        return self._stopping.is_set() or (self._exhausted and not self._ready)

    async def _attend(self, worker: _Worker) -> None:
        """Serve one worker until it has ended."""
        async for report in worker.process.link.listen():
            match report:
                case Wanted(rows=rows):
                    await self._hand_out(worker, rows)
                case Counted():
                    self._take_in(worker, report)
                case Alone() | Held():
                    self._turns.hear(worker, report)
                case Failed(message=message, hint=hint):
                    self._give_up(JobError(message, hint=hint))
        code = await worker.process.ended()
        self._workers.remove(worker)
        for url, at in worker.at_replicas.items():
            before = self._gone_at_replicas.get(url, AtReplica(0, 0, 0))
            self._gone_at_replicas[url] = before.plus(at._replace(in_flight=0))
        self._turns.leave(worker)
        gone = worker.counters.ended()
        self._count_in(worker, gone)
        await worker.process.link.close()
        if self._stopping.is_set():
            return
        if code != 0 or worker.held:
            await self._replace(worker, code)
        elif self._workers:
            self.set_limit(self.limit)

    async def _replace(self, worker: _Worker, code: int) -> None:
        """Take back the unsettled rows of a worker that ended; start a replacement."""
        left = await asyncio.to_thread(self._unsettled, worker)
        ordinals = [one for pending in left for one in pending.ordinals.tolist()]
        held = sum(len(pending.ordinals) for pending in worker.held.values())
        verdict = self._deaths.count(
            settled_any=_rows_settled(worker.counters) > 0 or len(ordinals) < held,
            left=ordinals,
            others=any(not one.leaving for one in self._workers),
        )
        self._ready.extendleft(reversed(left))
        match verdict:
            case AfterDeath.GIVE_UP:
                self._give_up(self._deaths.reason(code))
            case AfterDeath.GO_ON_WITHOUT:
                _log.warning(
                    "%s ended with %d, as those before it that settled nothing; going on with %d",
                    *(worker.process.name, code, len(self._workers)),
                )
                self.set_limit(self.limit)
            case AfterDeath.REPLACE:
                _log.warning("%s ended with %d; replacing it", worker.process.name, code)
                if not self._stopping.is_set():
                    self._over.clear()
                self._tasks.add(asyncio.create_task(self._employ()))

    def _unsettled(self, worker: _Worker) -> list[PendingRows]:
        """The unsettled rows of a worker that ended, by its own journal: no other had them."""
        if not worker.held:
            return []
        index = self._checkpoint.settled_by(worker.writer)
        try:
            left = []
            for pending in worker.held.values():
                first, last = int(pending.ordinals.min()), int(pending.ordinals.max())
                window = np.zeros((last - first + 1, 2), np.uint64)
                window[pending.ordinals - first] = pending.digests
                found = index.match(first, window).found[pending.ordinals - first]
                if not found.all():
                    left.append(pending.some(np.flatnonzero(~found)))
            return left
        finally:
            index.frames.close()

    # -- rows ------------------------------------------------------------------------------------

    async def _hand_out(self, worker: _Worker, rows: int) -> None:
        await self._fill()
        if self._stopping.is_set() or not self._ready:
            self._over.set()
            worker.leaving = True
            worker.process.link.say(NoMoreRows())
            return
        size = min(rows, self._fair_share())
        pending = self._ready.popleft()
        if len(pending.ordinals) > size:
            self._ready.appendleft(pending.some(np.arange(size, len(pending.ordinals))))
            pending = pending.some(np.arange(size))
        self._chunks += 1
        self._handed_out += len(pending.ordinals)
        worker.held[self._chunks] = pending
        worker.process.link.say(pack(self._chunks, pending))

    def _fair_share(self) -> int:
        """The size of a chunk: it shrinks towards the end, so that no worker keeps others idle."""
        tally = self._tally
        left = (tally.rows_total or 0) - tally.rows_resumed - tally.rows_waiting - self._handed_out
        size = max(1, left // (_LAST_SHARE * self._count))
        calls = -(-size // self._policy.rows_per_call)
        return calls * self._policy.rows_per_call

    async def _fill(self) -> None:
        """Read the next rows, if any are left."""
        loop = asyncio.get_running_loop()
        async with self._reading:
            if not self._ready and not self._exhausted:
                pending = await loop.run_in_executor(self._reader, next, self._source, None)
                if pending is None:
                    self._exhausted = True
                else:
                    self._ready.append(pending)

    # -- counting --------------------------------------------------------------------------------

    def _take_in(self, worker: _Worker, report: Counted) -> None:
        self._note_calls(worker, report.limit, report.calls)
        if report.at_replicas is not None:
            worker.at_replicas = report.at_replicas
        for number in report.settled:
            settled = worker.held.pop(number, None)
            if settled is not None:
                self._deaths.settled(settled.ordinals.tolist())
        replicas = worker.counters.replicas if report.replicas is None else report.replicas
        self._count_in(worker, msgspec.structs.replace(report.counters, replicas=replicas))

    def _count_in(self, worker: _Worker, counters: Counters) -> None:
        before, worker.counters = worker.counters, counters
        if _rows_settled(counters) and not _rows_settled(before):
            self._deaths.first_rows_settled()
        self._tally.add(counters, before)
        paused = (one.counters.paused for one in self._workers)
        self._tally.paused = next((why for why in paused if why), None)
        self._events.on_progress(self._tally.rows_done, self._tally.rows_total)
        limit = self._policy.failure_limit
        if limit is not None and (why := limit.reason_to_stop(self._tally)) is not None:
            self._give_up(why)
        try:
            self._checkpoint.check_held()
        except JobError as error:
            self._give_up(error)

    def _give_up(self, error: BaseException) -> None:
        if self._fatal is None:
            self._fatal = error
            self._end()


def _send(worker: _Worker, order: Order) -> None:
    worker.process.link.say(order)


def _rows_settled(counters: Counters) -> int:
    return counters.rows_answered + counters.rows_failed


def _finished(task: asyncio.Task[None]) -> bool:
    """Whether a task has ended; raises its exception."""
    if task.done():
        task.result()
    return task.done()
