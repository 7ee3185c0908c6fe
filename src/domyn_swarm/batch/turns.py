"""Whose turn it is, of the workers of one run, to have nothing beside its requests.

A row under which engines died is asked while nothing else is in flight, whichever process asks. A
worker that has such a row says so (`Alone`). The coordinator has all workers hold (`Hold`), hears
of each that nothing of it is in flight (`Held`), and gives the turn to the one that asked first
(`YourTurn`); when nobody wants it any more, all go on (`GoOn`). What crosses on the way is
recognised by its number.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from domyn_swarm.batch.link import Alone, GoOn, Held, Hold, Order, YourTurn

_Worker = TypeVar("_Worker", bound=Hashable)


@dataclass
class _Seat:
    """What is known of one worker."""

    told: int = 0  # the number of the last `Hold` that it was sent, unless it may go on
    held: bool = False  # nothing of it is in flight since
    wish: int = 0  # the number of the last turn that it wanted


class Turns(Generic[_Worker]):
    """The coordinator's end. Times are the event loop's."""

    def __init__(self, say: Callable[[_Worker, Order], None], now: Callable[[], float]) -> None:
        self._say = say
        self._now = now
        self._seats: dict[_Worker, _Seat] = {}
        self._queue: deque[_Worker] = deque()
        self._granted = False  # to the first of the queue
        self._holds = 0
        self._clear_at = 0.0  # until then a request may reach an engine that is known to be dead

    def join(self, worker: _Worker) -> None:
        """From now on it may have requests in flight."""
        self._seats[worker] = _Seat()
        self._advance()

    def leave(self, worker: _Worker) -> None:
        """It has ended, and what it had in flight with it."""
        self._seats.pop(worker, None)
        self._withdraw(worker)
        self._advance()

    def hear(self, worker: _Worker, report: Alone | Held) -> None:
        """What a worker said."""
        seat = self._seats.get(worker)
        if seat is None:
            return
        self._clear_at = max(self._clear_at, self._now() + report.rest_s)
        if isinstance(report, Held):
            seat.held = seat.held or (seat.told != 0 and report.number == seat.told)
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
                if seat.told:
                    seat.told, seat.held = 0, False
                    self._say(worker, GoOn())
            return
        for worker, seat in self._seats.items():
            if not seat.told:
                self._holds += 1
                seat.told, seat.held = self._holds, False
                self._say(worker, Hold(seat.told))
        first = self._queue[0]
        if not self._granted and all(
            seat.held for worker, seat in self._seats.items() if worker != first
        ):
            self._granted = True
            rest_s = max(0.0, self._clear_at - self._now())
            self._say(first, YourTurn(self._seats[first].wish, rest_s))
