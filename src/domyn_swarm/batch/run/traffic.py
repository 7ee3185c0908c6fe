"""Requests in flight of one session: their number, and the turns of those that must run alone."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from domyn_swarm import open_files
from domyn_swarm.batch.run.link import Alone, GoOn, Held, Hold, Order, YourTurn
from domyn_swarm.errors import quantity

_ONCE_S = 2.0  # within this time failing connections have one cause
_REST_S = 30.0  # until turns that were withdrawn are given back,
_REST_MOST_S = 960.0  # the longest such time: it doubles each time that it was too short


class Connections:
    """As many turns as this process can have connections, or as the endpoint accepts requests;
    fewer once files run out.
    """

    def __init__(self, admits: int | None, notice: Callable[[str], None]) -> None:
        """`admits`: requests that the endpoint accepts from this process; None: unknown. `notice`
        is called once, when the first request has to wait.
        """
        own = open_files.connections()
        self._text = (
            f"no more than {_requests(own)} in flight at a time: this process may have "
            f"{open_files.limits().soft} files open; raise the hard limit (ulimit -Hn) for more"
        )
        if admits is not None and admits < own:
            own = max(1, admits)
            self._text = (
                f"no more than {_requests(own)} in flight at a time: the endpoint takes no more, "
                "by router.max_concurrent and queue_size, or for its node's limit of open files "
                "(see its log)"
            )
        self.most = own  # now
        self._in_use = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._taken_away = 0
        self._lowered_at = 0.0
        self._rest_s = _REST_S
        self._notice: Callable[[str], None] | None = notice
        self._lowered_notice: Callable[[str], None] | None = notice

    @property
    def full(self) -> bool:
        """Whether a request has to wait for `turn` before it begins."""
        return self._in_use >= self.most or bool(self._waiting)

    async def turn(self) -> None:
        """Wait for a turn, first come, first served. Enter it (`with`) before anything else is
        awaited.

        Not a semaphore of asyncio's, and no `async with`: usually no request waits, and a semaphore
        costs each row more than everything else between it and its client.
        """
        if self._notice is not None:
            notice, self._notice = self._notice, None
            notice(self._text)
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it was granted just before the cancellation
                self._in_use -= 1
                self._pass_on()
            raise
        self._in_use -= 1  # it was reserved until now

    def __enter__(self) -> None:
        """Begin a request."""
        self._in_use += 1

    def __exit__(self, *_: object) -> None:
        """End a request: the next one gets its turn."""
        self._in_use -= 1
        if (
            self._taken_away
            and asyncio.get_running_loop().time() >= self._lowered_at + self._rest_s
        ):
            self._taken_away -= 1
            self.most += 1
        if self._waiting:
            self._pass_on()

    def _pass_on(self) -> None:
        while self._waiting and self._in_use < self.most:
            turn = self._waiting.popleft()
            if not turn.done():  # else the waiting request was cancelled
                self._in_use += 1
                turn.set_result(None)

    def lower(self) -> None:
        """Reduce the number of turns: no connection could be opened for want of files. Each request
        that ends after a rest gives one back; the rest is longer each time.
        """
        now = asyncio.get_running_loop().time()
        if self._lowered_at and now - self._lowered_at < _ONCE_S:  # one cause fails many requests
            return
        self._rest_s = min(_REST_MOST_S, 2 * self._rest_s) if self._lowered_at else _REST_S
        self._lowered_at = now
        most = max(1, min(self.most, self._in_use) * 9 // 10)
        self._taken_away += self.most - most
        self.most = most
        if self._lowered_notice is not None:
            notice, self._lowered_notice = self._lowered_notice, None
            notice(
                "no connection could be opened: this process, or its machine, has no open file "
                f"left; no more than {_requests(most)} in flight at a time for now"
            )


def _requests(most: int) -> str:
    return quantity(most, "request is", "requests are")


_Worker = TypeVar("_Worker", bound=Hashable)


@dataclass
class _Seat:
    """The state of one worker."""

    hold: int = 0  # the number of the last `Hold` sent to it; 0: it may continue
    held: bool = False  # nothing of it has been in flight since
    wish: int = 0  # the number of the last turn that it requested


class Turns(Generic[_Worker]):
    """The coordinator's end. Times are the event loop's."""

    def __init__(self, say: Callable[[_Worker, Order], None], now: Callable[[], float]) -> None:
        self._say = say
        self._now = now
        self._seats: dict[_Worker, _Seat] = {}
        self._queue: deque[_Worker] = deque()
        self._granted = False  # whether the first of the queue has its turn
        self._holds = 0
        self._clear_at = 0.0  # until then a request may reach an engine that has ended

    def join(self, worker: _Worker) -> None:
        """Add a worker, which may have requests in flight from now on."""
        self._seats[worker] = _Seat()
        self._advance()

    def leave(self, worker: _Worker) -> None:
        """Remove a worker that has ended, with its requests in flight."""
        self._seats.pop(worker, None)
        self._withdraw(worker)
        self._advance()

    def hear(self, worker: _Worker, report: Alone | Held) -> None:
        """Process a worker's message."""
        seat = self._seats.get(worker)
        if seat is None:
            return
        self._clear_at = max(self._clear_at, self._now() + report.rest_s)
        if isinstance(report, Held):
            seat.held = seat.held or (seat.hold != 0 and report.number == seat.hold)
        elif report.wish:
            seat.wish = report.wish
            self._queue.append(worker)
        else:
            self._withdraw(worker)
        self._advance()

    def _withdraw(self, worker: _Worker) -> None:
        if worker in self._queue:
            self._granted = self._granted and self._queue[0] != worker
            self._queue.remove(worker)

    def _advance(self) -> None:
        if not self._queue:
            for worker, seat in self._seats.items():
                if seat.hold:
                    seat.hold, seat.held = 0, False
                    self._say(worker, GoOn())
            return
        for worker, seat in self._seats.items():
            if not seat.hold:
                self._holds += 1
                seat.hold, seat.held = self._holds, False
                self._say(worker, Hold(seat.hold))
        first = self._queue[0]
        if not self._granted and all(
            seat.held for worker, seat in self._seats.items() if worker != first
        ):
            self._granted = True
            rest_s = max(0.0, self._clear_at - self._now())
            self._say(first, YourTurn(self._seats[first].wish, rest_s))


class Colleagues(Protocol):
    """The other processes of the run, which have requests in flight at the same endpoint."""

    def want_turn(self, wish: int) -> None:
        """Request a turn, by a number of the caller's; 0: withdraw the request."""

    def say_held(self, number: int) -> None:
        """Report that nothing is in flight here, as the `Hold` with this number requested."""


class Traffic:
    """Counts the requests in flight. A request that must run alone waits until nothing else is in
    flight, and nothing else starts until it has ended, including requests of `colleagues`.
    """

    def __init__(self) -> None:
        self.in_flight = 0
        self.on_wait: Callable[[bool], None] = lambda _: None
        """Called when requests begin to wait for those that must run alone, and when they no longer
        do.
        """
        self.colleagues: Colleagues | None = None
        self.closed = False
        """Whether a request has to wait for `opened` before it starts."""
        self.turn_from = 0.0  # the event loop's time before which no request may run alone
        self._alone = 0  # requests that run alone, or wait for it
        self._held = 0  # the number of the present `Hold`; 0: none
        self._report_empty = False
        self._wishes = 0
        self._granted = asyncio.Event()
        self._few = 0
        self._turn = asyncio.Lock()
        self._free = asyncio.Event()
        self._free.set()
        self._empty = asyncio.Event()
        self._few_left = asyncio.Condition()

    async def opened(self) -> None:
        """Wait until requests may start beside others. Enter it (`with`) before anything else is
        awaited.
        """
        while self.closed:
            await self._free.wait()

    def __enter__(self) -> None:
        """Start a request that may run beside others."""
        self.in_flight += 1

    def __exit__(self, *_: object) -> None:
        """End it, whatever its result."""
        self.in_flight -= 1
        if not self.in_flight:
            self._empty.set()
            self._report()

    def hold(self, number: int) -> None:
        """Let no request start until `go_on`; `colleagues` are informed once nothing is in
        flight.
        """
        self._held, self._report_empty = number, True
        self._wait_or_go()
        if not self.in_flight:
            self._report()

    def go_on(self) -> None:
        """Let requests start again."""
        self._held, self._report_empty = 0, False
        self._wait_or_go()

    def take_turn(self, wish: int, rest_s: float) -> None:
        """After this number of seconds, let requests start that must run alone."""
        if self._alone and wish == self._wishes:
            self.turn_from = asyncio.get_running_loop().time() + rest_s
            self._granted.set()

    def _report(self) -> None:
        if self._report_empty and self.colleagues is not None:
            self._report_empty = False
            self.colleagues.say_held(self._held)

    def _wait_or_go(self) -> None:
        self.closed = bool(self._alone or self._held)
        if self.closed == self._free.is_set():
            self.on_wait(self.closed)
        if self.closed:
            self._free.clear()
        else:
            self._free.set()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """The body is the only request in flight."""
        self._alone += 1
        self._wait_or_go()
        if self._alone == 1:
            self._want_turn()
        try:
            async with self._turn:
                await self._granted.wait()
                while self.in_flight:
                    self._empty.clear()
                    await self._empty.wait()
                with self:
                    yield
        finally:
            self._alone -= 1
            if not self._alone:
                self._end_turn()
            self._wait_or_go()

    def _want_turn(self) -> None:
        if self.colleagues is None:
            self._granted.set()
        else:
            self._wishes += 1
            self.colleagues.want_turn(self._wishes)

    def _end_turn(self) -> None:
        self._granted.clear()
        if self.colleagues is not None:
            self.colleagues.want_turn(0)

    @asynccontextmanager
    async def beside(self) -> AsyncIterator[None]:
        """The body is a request that may run beside others."""
        await self.opened()
        with self:
            yield

    @asynccontextmanager
    async def among(self, most: Callable[[], int]) -> AsyncIterator[None]:
        """The body is one of at most this number of such requests; others may run beside them."""
        async with self._few_left:
            await self._few_left.wait_for(lambda: self._few < most())
            self._few += 1
        try:
            async with self.beside():
                yield
        finally:
            self._few -= 1
            async with self._few_left:
                self._few_left.notify_all()
