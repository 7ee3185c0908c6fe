"""Rows through a transform: a bounded window, no barriers, every result kept at once.

A pool of slots (coroutines that live as long as they are needed) reads from one source; a free slot
takes the next row whatever the others do. Results are handed to the sink a few at a time, and a
slot takes its next row only after its last result was handed over, so that a killed process has
lost at most one result per slot.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, cast

import msgspec

from domyn_swarm.batch.outcomes.histograms import SlowRow
from domyn_swarm.batch.outcomes.row_outcomes import (
    OneByOne,
    Result,
    Row,
    RowError,
    RowTrace,
    RowValue,
    current_trace,
)
from domyn_swarm.batch.outcomes.strata import StratumSums, characters_of
from domyn_swarm.batch.outcomes.tally import Tally
from domyn_swarm.batch.outcomes.verdicts import Reading, outcome_of
from domyn_swarm.batch.run.limiter import FIRST_LIMIT
from domyn_swarm.batch.run.standing import DEFAULT_LIMIT, FailureLimit
from domyn_swarm.errors import quantity
from domyn_swarm.logs import get_logger
from domyn_swarm.model import Accept
from domyn_swarm.net.request_errors import RequestError

_log = get_logger(__name__)

Transform = Callable[[list[Any]], Awaitable[Sequence[Any]]]
"""Items to values, one per item, in order. A value may be an exception: the error of that row."""

# Each hand-over costs a system call and a switch of threads; a slot waits for it.
_FLUSH_SHARE = 4  # results are handed over when a quarter of the slots wait for it,
_FLUSH_AFTER_S = 0.003  # or after this time, in seconds
_LOOK_S = 0.2  # poll interval in seconds during the grace period


Encode = Callable[[Any, RowTrace, float], bytes]
"""A job's value as the JSON object of the output columns, given its usage and its seconds.

An exception is the error of that row.
"""


class Sink(Protocol):
    """Receives settled rows."""

    def append(self, results: Sequence[Result]) -> None:
        """Keep results; once this returns, a killed process loses none of them."""


class Events:
    """Callbacks for callers; the defaults do nothing. Called on the event loop's thread."""

    def on_progress(self, done: int, total: int | None) -> None:
        """After each batch of settled rows: the number of settled rows, and of all rows."""

    def on_batch(self, results: Sequence[Result]) -> None:
        """Rows that were just kept."""

    def on_row_error(self, row: Row, error: RowError) -> None:
        """A row failed permanently."""

    def on_cancel(self) -> None:
        """The run was stopped before its end."""


@dataclass(frozen=True)
class RunPolicy:
    """How a run processes its rows."""

    concurrency: int | None  # calls in flight; None: set by the limiter
    rows_per_call: int = 1
    accept: Accept | None = None  # which answers count
    grace_s: float = 20.0  # seconds for requests in flight once the run is stopped
    failure_limit: FailureLimit | None = DEFAULT_LIMIT  # None: the caller judges failures


class Runner:
    """One run over one source of pending rows."""

    def __init__(
        self,
        transform: Transform,
        sink: Sink,
        policy: RunPolicy,
        *,
        encode: Encode,
        tally: Tally,
        events: Events,
    ) -> None:
        self._transform = transform
        self._encode = encode
        self._sink = sink
        self._policy = policy
        self._tally = tally
        self._events = events
        self._ready: deque[Row] = deque()
        self._refilling = asyncio.Lock()
        self._exhausted = False
        self._fatal: BaseException | None = None
        self._settled: list[Result] = []
        self._judged: list[Result] = []  # the same with the outcomes that count
        self._kept: asyncio.Future[None] | None = None  # done once `_settled` is handed over
        self._reading = Reading(policy.accept)
        self._stopping = asyncio.Event()
        self._slots: set[asyncio.Task[None]] = set()
        self._traces: set[RowTrace] = set()  # of the slots that have rows
        self._all_left = asyncio.Event()
        self._ending = False  # from now on slots are cancelled by the runner, not by what they call
        self.limit = policy.concurrency or FIRST_LIMIT

    def set_limit(self, limit: int) -> None:
        """Set the number of calls in flight; slots are added at once and leave when free."""
        self.limit = self._tally.limit = limit
        while len(self._slots) < self.limit and not self._over:
            slot = asyncio.create_task(self._work())
            self._slots.add(slot)
            slot.add_done_callback(self._left)

    @property
    def calls(self) -> int:
        """The calls in flight, or about to start."""
        return len(self._slots)

    @property
    def _over(self) -> bool:
        """Whether no slot takes another row."""
        used_up = self._exhausted and not self._ready
        return used_up or self._stopping.is_set() or self._fatal is not None

    def _left(self, slot: asyncio.Task[None]) -> None:
        self._slots.discard(slot)
        if not slot.cancelled() and (error := slot.exception()) is not None:
            self._give_up(error)
        if not self._slots:
            self._all_left.set()

    def stop(self) -> None:
        """Take no more rows; `run` returns once those in flight are settled or out of time."""
        if not self._stopping.is_set():
            self._stopping.set()
            self._events.on_cancel()

    @property
    def stopped(self) -> bool:
        """Whether no more rows are taken."""
        return self._stopping.is_set()

    async def run(self, source: Iterator[list[Row]]) -> None:
        """Settle every row of the source, or until `stop`.

        Raises:
            TooManyFailures: more rows failed than the policy allows.
            JobError: the sink cannot keep results.
        """
        with ThreadPoolExecutor(1, thread_name_prefix="reader") as reader:
            self._source, self._reader = source, reader
            self._ahead = self._read_ahead()
            try:
                self.set_limit(self.limit)
                await self._until_over()
            finally:
                self._stopping.set()
                self._ending = True
                slots = list(self._slots)
                for slot in slots:
                    slot.cancel()
                await asyncio.gather(*slots, return_exceptions=True)
                self._flush()
                self._ahead.cancel()
                await asyncio.gather(self._ahead, return_exceptions=True)
        if self._fatal is not None:
            raise self._fatal

    async def _until_over(self) -> None:
        left = asyncio.create_task(self._all_left.wait())
        stop = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({left, stop}, return_when=asyncio.FIRST_COMPLETED)
            await self._grace(left)
        finally:
            left.cancel()
            stop.cancel()
            await asyncio.gather(left, stop, return_exceptions=True)

    async def _grace(self, left: asyncio.Task[bool]) -> None:
        """Return once the rows in flight are settled, or the grace period is over: at once if each
        of them waits for an endpoint that is unreachable.
        """
        now = asyncio.get_running_loop().time
        until = now() + self._policy.grace_s
        while not left.done() and (rest_s := until - now()) > 0:
            if self._traces and all(one.only_waits for one in self._traces):
                return
            await asyncio.wait({left}, timeout=min(_LOOK_S, rest_s))

    def _read_ahead(self) -> asyncio.Future[list[Row] | None]:
        loop = asyncio.get_running_loop()
        return loop.run_in_executor(self._reader, next, self._source, None)

    async def _take(self) -> list[Row]:
        """The next rows for one call; empty when the source is used up."""
        while not self._ready and not self._exhausted:
            async with self._refilling:
                if not self._ready and not self._exhausted:
                    batch = await self._ahead
                    if batch is None:
                        self._exhausted = True
                    else:
                        self._ready.extend(batch)
                        self._ahead = self._read_ahead()
        size = min(self._policy.rows_per_call, len(self._ready))
        if size == 1:
            return [self._ready.popleft()]
        return [self._ready.popleft() for _ in range(size)]

    async def _work(self) -> None:
        while not self._over:
            if len(self._slots) > self.limit:
                # Not counted from here on: of many slots that are free now only the surplus leaves.
                self._slots.discard(cast("asyncio.Task[None]", asyncio.current_task()))
                return
            rows = await self._take()
            if not rows or self._stopping.is_set():
                return
            if self._tally.first_row_at is None:
                self._tally.first_row_at = time.monotonic()
            begun = [self._tally.strata.begin(characters_of(row.item)) for row in rows]
            self._tally.reached = max(self._tally.reached, rows[-1].ordinal)
            self._tally.in_flight += len(rows)
            try:
                await self._call(rows, begun)
            finally:
                self._tally.in_flight -= len(rows)
            if self._kept is not None:
                await self._kept

    async def _call(self, rows: list[Row], begun: list[StratumSums]) -> None:
        """Send rows, which were counted as started by the caller, and settle them."""
        trace = RowTrace(rows)
        token = current_trace.set(trace)
        self._traces.add(trace)
        began = time.perf_counter()
        values: Sequence[Any]
        try:
            values = list(await self._transform([row.item for row in rows]))
            if len(values) != len(rows):
                returned = quantity(len(values), "value")
                raise ValueError(f"the job returned {returned} for {quantity(len(rows), 'item')}")
        except OneByOne:
            self._traces.discard(trace)
            for row, stratum in zip(rows, begun, strict=True):
                await self._call([row], [stratum])
            return
        except BaseException as error:  # noqa: BLE001 - the border to users' code
            self._pass_on(error)
            values = [error] * len(rows)
        finally:
            self._traces.discard(trace)
            current_trace.reset(token)
        latency_s = time.perf_counter() - began
        shares = trace.shares(len(rows))
        for row, value, share, stratum in zip(rows, values, shares, begun, strict=True):
            if len(rows) > 1 and not _is_blank(value):
                share.code &= ~1  # it is unknown whose reply was empty
            stratum.finish(latency_s, share.prompt_tokens, share.completion_tokens)
            self._settle(row, value, share, latency_s)

    def _pass_on(self, error: BaseException) -> None:
        """Raise an error of users' code that is meant for the runner; every other error is a row's:
        a cancelled task of theirs, the `sys.exit` of a library, a panic in Rust.
        """
        if self._ending:  # users' code may convert the cancellation; the row has not failed
            raise asyncio.CancelledError from error
        if isinstance(error, KeyboardInterrupt | GeneratorExit):
            raise error
        task = asyncio.current_task()
        while isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            task.uncancel()  # it cancelled itself

    def _settle(self, row: Row, value: Any, trace: RowTrace, latency_s: float) -> None:  # noqa: ANN401 - whatever a job returns
        output, error, code, shut_out = b"", b"", trace.code, False
        failure = value if isinstance(value, BaseException) else None
        if failure is None:
            try:
                output = self._encode(value, trace, latency_s)
            except BaseException as mismatch:  # noqa: BLE001 - as above
                self._pass_on(mismatch)
                failure = mismatch
        if failure is not None:
            if isinstance(failure, RequestError):
                code = 0  # the error explains why there is no answer; earlier replies do not
                shut_out = failure.may_meet_all
            error = msgspec.json.encode(_row_error(row, failure, trace))
        kept = RowValue(
            output,
            error,
            trace.attempts,
            trace.prompt_tokens,
            trace.completion_tokens,
            round(latency_s, 4),
            code,
        )
        counts = self._count(row, kept, shut_out=shut_out)
        failed = bool(counts.error)
        if latency_s > self._tally.slowest.floor_s:
            tokens = trace.completion_tokens
            slow = SlowRow(kept.latency_s, row.ordinal, trace.attempts, tokens, failed)
            self._tally.slowest.add(slow)
        result = Result(row.ordinal, row.digest, kept)
        self._settled.append(result)
        self._judged.append(
            result if counts is kept else msgspec.structs.replace(result, value=counts)
        )
        if len(self._settled) * _FLUSH_SHARE >= self.limit:
            self._flush()
        elif self._kept is None:
            loop = asyncio.get_running_loop()
            self._kept = loop.create_future()
            loop.call_later(_FLUSH_AFTER_S, self._flush)

    def _count(self, row: Row, kept: RowValue, *, shut_out: bool) -> RowValue:
        """Count a settled row; returns the outcome that counts."""
        self._tally.outcomes[outcome_of(kept)] += 1
        judged = self._reading.judged(kept) if kept.code else kept
        if judged.error:
            error = msgspec.json.decode(judged.error, type=RowError)
            self._tally.count_failure(row.ordinal, error, shut_out=shut_out)
            self._events.on_row_error(row, error)
        else:
            self._tally.rows_answered += 1
        return judged

    def _flush(self) -> None:
        if not self._settled:
            return
        results, self._settled = self._settled, []
        judged, self._judged = self._judged, []
        kept, self._kept = self._kept, None
        if kept is not None and not kept.done():
            kept.set_result(None)  # the slots go on after this callback, when all is handed over
        try:
            self._sink.append(results)
            limit = self._policy.failure_limit
            if limit is not None and (why := limit.reason_to_stop(self._tally)) is not None:
                self._give_up(why)
            self._events.on_batch(judged)
            self._events.on_progress(self._tally.rows_done, self._tally.rows_total)
        except Exception as error:  # noqa: BLE001 - a callback of the loop: `run` raises it
            self._give_up(error)

    def _give_up(self, error: BaseException) -> None:
        if self._fatal is None:
            self._fatal = error
            self._stopping.set()


def _is_blank(value: Any) -> bool:  # noqa: ANN401 - whatever a job returns
    return value is None or (isinstance(value, str) and not value.strip())


def _row_error(row: Row, cause: BaseException, trace: RowTrace) -> RowError:
    status = cause.status if isinstance(cause, RequestError) else None
    if not isinstance(cause, RequestError):
        _log.debug("row %d failed", row.ordinal, exc_info=cause)
    return RowError(type(cause).__name__, status, _message_of(cause), trace.attempts)


def _message_of(cause: BaseException) -> str:
    """The error's text in a form that can be kept: `str` of a user's error may return anything, or
    raise.
    """
    try:
        message = str(cause)[:2000]
    except Exception as error:  # noqa: BLE001 - the border to users' code
        message = f"{type(cause).__name__}, which cannot be printed: {type(error).__name__}"
    message = message.encode("utf-8", "backslashreplace").decode()
    return message or type(cause).__name__
