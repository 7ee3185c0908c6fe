"""One batch run from input to published output: what workers and `run` call."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from domyn_swarm.batch.background import beside, in_thread
from domyn_swarm.batch.checkpoint.accounting import account_of, read_accounts, sum_up, write_account
from domyn_swarm.batch.checkpoint.checkpoint_folder import Checkpoint, forget_suspects
from domyn_swarm.batch.checkpoint.index import RowIndex
from domyn_swarm.batch.checkpoint.job_store import Asker, JobPlace
from domyn_swarm.batch.checkpoint.journal import SyncedSink
from domyn_swarm.batch.checkpoint.request_identity import JobIdentity
from domyn_swarm.batch.input.dataset import Dataset
from domyn_swarm.batch.outcomes.tally import Tally
from domyn_swarm.batch.outcomes.verdicts import Reading
from domyn_swarm.batch.output.output_plan import OutputPlan
from domyn_swarm.batch.output.publish import ResultsMissing, publish
from domyn_swarm.batch.run.coordinator import Coordinator
from domyn_swarm.batch.run.lookahead import LookAhead
from domyn_swarm.batch.run.pending import PendingRows, named_rows, pending_rows, still_pending
from domyn_swarm.batch.run.request_limits import Limits
from domyn_swarm.batch.run.runner import Events, Runner, Transform
from domyn_swarm.batch.run.sampling import take_census
from domyn_swarm.batch.run.session import EndpointAccess, open_session
from domyn_swarm.batch.run.sharing import Shared, SharedRows, count_shared
from domyn_swarm.batch.run.standing import Suspects
from domyn_swarm.batch.run.steering import Saturation, steer
from domyn_swarm.batch.run.worker_processes import WorkerPlan, WorkPlan
from domyn_swarm.batch.run.worth import Worth
from domyn_swarm.errors import JobError, TooManyFailures, disk_error, quantity
from domyn_swarm.logs import get_logger
from domyn_swarm.model import Accept, JobAccount, ReplyVerdict
from domyn_swarm.net.openai import OpenAIClient

_log = get_logger(__name__)

_MENDING_ROUNDS = 3


@dataclass(frozen=True)
class BatchPlan:
    """The parameters of one run."""

    dataset: Dataset
    output: OutputPlan
    identity: JobIdentity
    checkpoint_root: Path
    job_key: str  # of the input, see `job_store`
    asker: Asker
    work: WorkPlan
    workers: WorkerPlan | None = None  # None: this process settles the rows itself
    limit: int | None = None
    resume: bool = True
    again: frozenset[ReplyVerdict] | None = None  # settled rows to send again; empty: failed ones
    no_others: bool = False  # with `again`: rows without a result stay so
    dedup: bool = False  # rows of equal values share a request
    sent_columns: Sequence[str] = ()  # columns in requests, in their order; else all
    override: Mapping[str, Any] = field(default_factory=dict)  # parameters this run changed
    publishes: bool = True  # False: the caller reads the results from the checkpoint
    errors_count: bool = True  # False: later runs send the rows again that fail in this run
    only: Sequence[PendingRows] | None = None  # one row each: no others are sent; no publishing

    @property
    def place(self) -> JobPlace:
        """The location of its results, and of other jobs' results that it reads."""
        return JobPlace(self.checkpoint_root, self.identity, self.job_key)

    @property
    def folder(self) -> Path:
        """The folder of the checkpoint."""
        return self.place.folder

    @property
    def accept(self) -> Accept | None:
        """Which answers count."""
        return self.work.run_policy.accept

    @property
    def rows(self) -> int:
        """The number of rows of the run."""
        rows = self.dataset.rows
        return rows if self.limit is None else min(rows, self.limit)


class _RequestFactory(NamedTuple):
    """How rows are sent: a session, and the job's transform."""

    open_session: Callable[[], AbstractAsyncContextManager[tuple[OpenAIClient, Saturation]]]
    make_transform: Callable[[OpenAIClient], Transform]
    look_ahead: Callable[[], LookAhead]


class BatchRun:
    """A run that can be stopped. Use it once."""

    def __init__(self, plan: BatchPlan, tally: Tally, events: Events) -> None:
        self._plan = plan
        self._tally = tally
        self._events = events
        self._running: Runner | Coordinator | None = None
        self._stop_early = False
        self._limits = Limits()
        self._checkpoint: Checkpoint | None = None

    async def keep_account(self, job_id: str, *, ended: bool = False) -> JobAccount | None:
        """Write the account of this run so far; returns the account of all runs once it has ended.

        None: the run has not begun, or the account cannot be written.
        """
        if self._checkpoint is None:
            return None
        folder, generation = self._checkpoint.folder, self._checkpoint.generation
        account = account_of(
            self._tally,
            job_id,
            dict(self._plan.override),
            ended=ended,
            retry_failed=self._plan.again is not None,
        )
        try:
            await in_thread(write_account, folder, generation, account)
            return sum_up(await in_thread(read_accounts, folder)) if ended else None
        except OSError as error:  # a full disk ends a run where results are written
            _log.warning("cannot keep the account of this run: %s", error)
            return None

    def stop(self) -> None:
        """Take no more rows; those in flight may finish within the grace period, all are kept."""
        self._stop_early = True
        if self._running is not None:
            self._running.stop()

    @property
    def stopped(self) -> bool:
        """Whether the run ended because of `stop`."""
        return self._stop_early

    async def run(
        self, access: EndpointAccess, make_transform: Callable[[OpenAIClient], Transform]
    ) -> bool:
        """Settle every row and publish. True when the output was published.

        Raises:
            JobError: the run cannot go on; everything settled is kept.
        """
        plan, work = self._plan, self._plan.work
        self._tally.rows_total = plan.rows
        self._tally.timeout_s = work.retry_policy.timeout_s
        checkpoint = await in_thread(
            Checkpoint,
            plan.place,
            plan.output.keys,
            plan.asker,
            accept=plan.accept,
            again=plan.again,
        )
        self._checkpoint = checkpoint
        try:
            if not plan.resume:
                await in_thread(checkpoint.ask_again)
            elif plan.again is not None:
                await in_thread(forget_suspects, checkpoint.folder)
            suspects = Suspects()
            suspects.keep_in(checkpoint.folder)
            worth = Worth(self._tally.dispatched)
            opening = partial(
                open_session,
                *(access, work.retry_policy, self._tally, work.notice, suspects),
                worth=worth,
            )
            keys = plan.output.keys
            look_ahead = partial(
                LookAhead,
                access.dispatch,
                keys,
                plan.sent_columns or keys.input_columns,
                self._tally.dispatched,
                pays=worth.pays,
            )
            async with beside(in_thread(checkpoint.tidy)):
                return await self._settle_all(
                    checkpoint, _RequestFactory(opening, make_transform, look_ahead)
                )
        except OSError as error:
            if error.errno is None:  # not an error of a disk
                raise
            raise disk_error(error, checkpoint.folder) from error
        finally:
            await in_thread(checkpoint.close)

    async def _settle_all(self, checkpoint: Checkpoint, factory: _RequestFactory) -> bool:
        """Run, publish, and send rows again whose results turned out to be unreadable. True:
        published.
        """
        plan = self._plan
        opened = checkpoint.asked_before if plan.no_others else checkpoint.settled
        with _opened(await in_thread(opened)) as index:
            keys = plan.output.keys
            retried = Reading(plan.accept, plan.again).asked_again if plan.no_others else None
            source = pending_rows(plan.dataset, keys, index, plan.limit, self._tally, again=retried)
            if plan.only is not None:
                source = still_pending(plan.only, index)
            shared: SharedRows | None = None
            if plan.dedup and plan.only is None:
                shared = await in_thread(
                    SharedRows, plan.dataset, keys, index, plan.limit, again=retried
                )
                self._tally.rows_waiting = shared.waiting
                source = shared.without(source)
            await self._run(checkpoint, factory, source)
        if shared is not None and not self._stop_early:
            await self._share(checkpoint, shared)
        if plan.no_others and not self._stop_early:
            self._check_whole()
        for _ in range(_MENDING_ROUNDS):
            if self._stop_early or not plan.publishes:
                return False
            checkpoint.check_held()
            with _opened(await in_thread(checkpoint.index)) as index:
                try:
                    counts = await in_thread(
                        publish,
                        plan.dataset,
                        plan.output,
                        index,
                        plan.limit,
                        checkpoint.check_held,
                    )
                except ResultsMissing as missing:
                    ordinals = missing.ordinals
                else:
                    self._tally.published(counts.rows_failed, counts.verdicts)
                    return True
            lost = quantity(len(ordinals), "result")
            plan.work.notice(f"{lost} cannot be read; sending those rows again")
            self._tally.rows_resumed -= min(len(ordinals), self._tally.rows_resumed)
            again = named_rows(plan.dataset, plan.output.keys, plan.limit, ordinals)
            await self._run(checkpoint, factory, again)
        raise JobError(
            f"The checkpoint {checkpoint.folder} loses what is written to it.",
            hint="Check that disk, or choose another with --checkpoint-dir.",
        )

    async def _share(self, checkpoint: Checkpoint, shared: SharedRows) -> None:
        """Copy results to the rows that share a request."""

        def keep_next() -> list[Shared] | None:
            copies = next(found, None)
            if copies is not None:
                checkpoint.append([one.result for one in copies])
            return copies

        with _opened(await in_thread(checkpoint.shareable)) as index:
            found = shared.results(index)
            while not self._stop_early and (kept := await in_thread(keep_next)) is not None:
                judged = count_shared(kept, Reading(self._plan.accept), self._tally, self._events)
                self._events.on_batch(judged)
                self._events.on_progress(self._tally.rows_done, self._tally.rows_total)

    def _check_whole(self) -> None:
        """Refuse to publish if rows were never sent, which only a resume may do."""
        tally = self._tally
        left = (tally.rows_total or 0) - tally.rows_done
        if left > 0:
            now = tally.rows_answered + tally.rows_failed
            raise JobError(
                f"The rows to retry were sent again ({now}, of which {tally.rows_failed} failed); "
                f"{left} of {tally.rows_total} rows have never been sent, so nothing was "
                "published.",
                hint=f"`domyn-swarm job resume {self._plan.asker.job_id}` asks them.",
            )

    async def _run(
        self, checkpoint: Checkpoint, factory: _RequestFactory, source: Iterator[PendingRows]
    ) -> None:
        """Settle the rows of the source. The endpoint is used only here."""
        if self._stop_early:
            return
        async with factory.open_session() as (client, saturation):
            transform = factory.make_transform(client)
            await self._settle(checkpoint, transform, saturation, source, factory.look_ahead())

    async def _settle(
        self,
        checkpoint: Checkpoint,
        transform: Transform,
        saturation: Saturation,
        source: Iterator[PendingRows],
        ahead: LookAhead,
    ) -> None:
        work, workers = self._plan.work, self._plan.workers
        plan = self._plan
        census = take_census(
            self._tally.forecaster.census, plan.dataset, plan.output.keys, plan.limit
        )
        meanwhile: list[Coroutine[None, None, None]] = [checkpoint.keep_held(), census]
        running: Runner | Coordinator
        if workers is None:
            sink = SyncedSink(checkpoint, work.sync_rows)
            meanwhile.append(sink.keep_syncing(work.sync_s))
            running = Runner(
                transform,
                ahead.learning(sink),
                work.run_policy,
                encode=work.encode,
                tally=self._tally,
                events=self._events,
            )
            rows = (pending.rows(self._plan.output.keys) for pending in ahead.ordered(source))
            settling = running.run(rows)
        else:
            running = Coordinator(
                checkpoint,
                work.run_policy,
                workers,
                tally=self._tally,
                events=self._events,
            )
            settling = running.run(ahead.ordered(source))
            # The workers' requests and connections, not this process's.
            placing = None if saturation.placing is None else running
            saturation = Saturation(saturation.read, placing)
        self._running = running
        if work.run_policy.concurrency is None:
            rows_per_call = work.run_policy.rows_per_call
            meanwhile.append(steer(running, self._tally, self._limits, saturation, rows_per_call))
        try:
            async with beside(*meanwhile):
                await settling
            limit = work.run_policy.failure_limit
            if limit is not None and (why := limit.reason_at_end(self._tally)) is not None:
                raise why
        except TooManyFailures:
            await in_thread(checkpoint.void_failures)
            raise
        finally:
            if not self._plan.errors_count:
                await in_thread(checkpoint.void_failures)


@contextlib.contextmanager
def _opened(index: RowIndex) -> Iterator[RowIndex]:
    try:
        yield index
    finally:
        index.frames.close()
