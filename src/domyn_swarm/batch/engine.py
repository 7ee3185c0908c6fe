"""One batch run from input to published output: what workers and `run` call."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from domyn_swarm.batch.checkpoint import Checkpoint
from domyn_swarm.batch.dataset import Dataset
from domyn_swarm.batch.identity import JobIdentity
from domyn_swarm.batch.index import RowIndex
from domyn_swarm.batch.limiter import Limiter
from domyn_swarm.batch.publish import OutputPlan, ResultsMissing, publish
from domyn_swarm.batch.rows import Result
from domyn_swarm.batch.runner import Events, Runner, RunPolicy, Transform
from domyn_swarm.batch.session import EndpointGate, RequestSession, RetryPolicy
from domyn_swarm.batch.source import PendingRows, named_rows, pending_rows
from domyn_swarm.batch.steering import ReadGauges, metrics_reader, steer
from domyn_swarm.batch.tally import Tally
from domyn_swarm.errors import JobError, TooManyFailures
from domyn_swarm.net.http import open_client
from domyn_swarm.net.openai import OpenAIClient

_MENDING_ROUNDS = 3


@dataclass(frozen=True)
class EndpointAccess:
    """Where requests go. `locate` is asked again whenever nobody answers."""

    locate: Callable[[], str]
    key: str | None
    use_proxy: bool = False
    gauges: ReadGauges | None = None  # None: the endpoint's own /metrics, where it has them


@dataclass(frozen=True)
class BatchPlan:
    """Everything one run needs."""

    dataset: Dataset
    output: OutputPlan
    identity: JobIdentity
    checkpoint_root: Path
    run_policy: RunPolicy
    retry_policy: RetryPolicy
    limit: int | None = None
    resume: bool = True
    retry_failed: bool = False  # ask rows again that earlier runs gave up
    sync_rows: int = 5_000
    sync_s: float = 1.0
    notice: Callable[[str], None] = field(default=lambda _: None)

    @property
    def rows(self) -> int:
        """How many rows the run is about."""
        rows = self.dataset.rows
        return rows if self.limit is None else min(rows, self.limit)


class BatchRun:
    """A run that can be told to stop. Use it once."""

    def __init__(self, plan: BatchPlan, tally: Tally, events: Events) -> None:
        self._plan = plan
        self._tally = tally
        self._events = events
        self._runner: Runner | None = None
        self._stop_early = False
        self._limiter = Limiter()
        self._gauges: ReadGauges | None = None

    def stop(self) -> None:
        """Take no more rows, let those in flight finish within the grace period, keep all."""
        self._stop_early = True
        if self._runner is not None:
            self._runner.stop()

    @property
    def stopped(self) -> bool:
        """Whether the run ended because it was told to."""
        return self._stop_early

    async def run(
        self, access: EndpointAccess, make_transform: Callable[[OpenAIClient], Transform]
    ) -> bool:
        """Settle every row and publish. True when the output was published.

        Raises:
            JobError: the run cannot go on; everything settled is kept.
        """
        plan = self._plan
        self._tally.rows_total = plan.rows
        checkpoint = await asyncio.to_thread(
            Checkpoint,
            plan.checkpoint_root,
            plan.identity,
            plan.output.keys,
        )
        try:
            if not plan.resume:
                checkpoint.forget()
            elif plan.retry_failed:
                checkpoint.void_earlier_failures()
            tidying = asyncio.to_thread(checkpoint.tidy)
            async with self._session(access) as client, _beside(tidying):
                await self._settle_all(checkpoint, make_transform(client))
            return not self._stop_early
        finally:
            await asyncio.to_thread(checkpoint.close)

    @asynccontextmanager
    async def _session(self, access: EndpointAccess) -> AsyncIterator[OpenAIClient]:
        http = open_client(access.key, use_proxy=access.use_proxy)

        def on_state(paused: str | None) -> None:
            self._tally.paused = paused
            self._plan.notice(paused or "the endpoint answers again; going on")

        gate = EndpointGate(http, access.locate, self._plan.retry_policy, on_state)
        self._gauges = access.gauges or metrics_reader(http, lambda: gate.url)
        try:
            yield OpenAIClient(RequestSession(http, gate, self._plan.retry_policy, self._tally))
        finally:
            await gate.close()
            await http.close()

    async def _settle_all(self, checkpoint: Checkpoint, transform: Transform) -> None:
        """Run, publish, and ask again whatever turned out to be unreadable."""
        plan = self._plan
        with _opened(checkpoint.index()) as index:
            keys = plan.output.keys
            source = pending_rows(plan.dataset, keys, index, plan.limit, self._tally)
            await self._run(checkpoint, transform, source)
        for _ in range(_MENDING_ROUNDS):
            if self._stop_early:
                return
            with _opened(checkpoint.index()) as index:
                try:
                    await asyncio.to_thread(publish, plan.dataset, plan.output, index, plan.limit)
                except ResultsMissing as missing:
                    ordinals = missing.ordinals
                else:
                    return
            plan.notice(f"{len(ordinals)} results cannot be read; asking those rows again")
            self._tally.rows_resumed -= min(len(ordinals), self._tally.rows_resumed)
            again = named_rows(plan.dataset, plan.output.keys, plan.limit, ordinals)
            await self._run(checkpoint, transform, again)
        raise JobError(
            f"The checkpoint {checkpoint.folder} loses what is written to it.",
            hint="Check that disk, or choose another with --checkpoint-dir.",
        )

    async def _run(
        self, checkpoint: Checkpoint, transform: Transform, source: Iterator[PendingRows]
    ) -> None:
        sink = _SyncedSink(checkpoint, self._plan.sync_rows)
        runner = self._runner = Runner(
            transform,
            sink,
            self._plan.run_policy,
            encode=self._plan.output.schema.encode,
            tally=self._tally,
            events=self._events,
        )
        if self._stop_early:
            return
        beside = [sink.keep_syncing(self._plan.sync_s)]
        if self._plan.run_policy.concurrency is None:
            beside.append(steer(runner, self._tally, self._limiter, self._gauges))
        try:
            async with _beside(*beside):
                await runner.run(pending.rows(self._plan.output.keys) for pending in source)
        except TooManyFailures:
            checkpoint.void_failures()
            raise


@asynccontextmanager
async def _beside(*work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Run endless work while the body runs."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.contextmanager
def _opened(index: RowIndex) -> Iterator[RowIndex]:
    try:
        yield index
    finally:
        index.frames.close()


class _SyncedSink:
    """A checkpoint that is synced to the disk by rows or seconds, whichever comes first."""

    def __init__(self, checkpoint: Checkpoint, sync_rows: int) -> None:
        self._checkpoint = checkpoint
        self._sync_rows = sync_rows
        self._unsynced = 0
        self._enough = asyncio.Event()

    def append(self, results: Sequence[Result]) -> None:
        """See `runner.Sink.append`."""
        self._checkpoint.append(results)
        self._unsynced += len(results)
        if self._unsynced >= self._sync_rows:
            self._enough.set()

    async def keep_syncing(self, every_s: float) -> None:
        """Sync until cancelled; what the last sync missed is synced when the journal closes."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._enough.wait(), every_s)
            self._enough.clear()
            if self._unsynced:
                self._unsynced = 0
                await asyncio.to_thread(self._checkpoint.sync)
