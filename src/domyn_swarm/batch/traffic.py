"""Requests in flight of one session, and the turns of those that must not be beside others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol


class Colleagues(Protocol):
    """The other processes of the run, which have requests in flight at the same endpoint."""

    def want_turn(self, wish: int) -> None:
        """Ask for a turn, by a number of one's own; 0: it is not wanted any more."""

    def say_held(self, number: int) -> None:
        """Report that nothing is in flight here, as this `Hold` asked for."""


class Traffic:
    """Counts what is in flight. A request that has to be alone waits until nothing else is, and
    nothing else begins until it has ended: nothing of `colleagues` either.
    """

    def __init__(self) -> None:
        self.in_flight = 0
        self.on_wait: Callable[[bool], None] = lambda _: None
        """Hears when requests begin to wait for those that have to be alone, and when no more."""
        self.colleagues: Colleagues | None = None
        self.turn_from = 0.0  # the event loop's time before which nobody who is alone may begin
        self._alone = 0  # requests that are, or want to be
        self._held = 0  # the number of the `Hold` that is in force; 0: none
        self._report_empty = False
        self._wishes = 0
        self._granted = asyncio.Event()
        self._few = 0
        self._turn = asyncio.Lock()
        self._free = asyncio.Event()
        self._free.set()
        self._empty = asyncio.Event()
        self._few_left = asyncio.Condition()

    async def __aenter__(self) -> None:
        """Begin a request that may be beside others."""
        while self._alone or self._held:
            await self._free.wait()
        self.in_flight += 1

    async def __aexit__(self, *_: object) -> None:
        """It has ended, however it did."""
        self._leave()

    def _leave(self) -> None:
        self.in_flight -= 1
        if not self.in_flight:
            self._empty.set()
            self._report()

    def hold(self, number: int) -> None:
        """Let nothing begin until `go_on`; the colleagues hear when nothing is in flight."""
        self._held, self._report_empty = number, True
        self._wait_or_go()
        if not self.in_flight:
            self._report()

    def go_on(self) -> None:
        """Let requests begin again."""
        self._held, self._report_empty = 0, False
        self._wait_or_go()

    def take_turn(self, wish: int, rest_s: float) -> None:
        """Let those begin that have to be alone, after so many seconds."""
        if self._alone and wish == self._wishes:
            self.turn_from = asyncio.get_running_loop().time() + rest_s
            self._granted.set()

    def _report(self) -> None:
        if self._report_empty and self.colleagues is not None:
            self._report_empty = False
            self.colleagues.say_held(self._held)

    def _wait_or_go(self) -> None:
        waits = bool(self._alone or self._held)
        if waits == self._free.is_set():
            self.on_wait(waits)
        if waits:
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
                self.in_flight += 1
                try:
                    yield
                finally:
                    self._leave()
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
    async def among(self, most: Callable[[], int]) -> AsyncIterator[None]:
        """The body is one of at most so many that came this way; others may be beside them."""
        async with self._few_left:
            await self._few_left.wait_for(lambda: self._few < most())
            self._few += 1
        try:
            async with self:
                yield
        finally:
            self._few -= 1
            async with self._few_left:
                self._few_left.notify_all()
