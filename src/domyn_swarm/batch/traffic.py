"""Requests in flight of one session, and the turns of those that must not be beside others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


class Traffic:
    """Counts what is in flight. A request that has to be alone waits until nothing else is, and
    nothing else begins until it has ended.
    """

    def __init__(self, on_alone: Callable[[bool], None] = lambda _: None) -> None:
        """`on_alone` is told when the first request wants to be alone, and when the last was."""
        self.in_flight = 0
        self._on_alone = on_alone
        self._alone = 0  # requests that are, or want to be
        self._few = 0
        self._turn = asyncio.Lock()
        self._free = asyncio.Event()
        self._empty = asyncio.Event()
        self._few_left = asyncio.Condition()

    async def __aenter__(self) -> None:
        """Begin a request that may be beside others."""
        while self._alone:
            await self._free.wait()
        self.in_flight += 1

    async def __aexit__(self, *_: object) -> None:
        """It has ended, however it did."""
        self._leave()

    def _leave(self) -> None:
        self.in_flight -= 1
        if self._alone and not self.in_flight:
            self._empty.set()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """The body is the only request in flight."""
        if not self._alone:
            self._free.clear()
            self._on_alone(True)
        self._alone += 1
        try:
            async with self._turn:
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
                self._on_alone(False)
                self._free.set()

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
