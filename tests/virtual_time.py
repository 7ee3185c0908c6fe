"""Time that passes when nobody works: an hour of waiting costs a test milliseconds.

Two forms, for the two ways in which our code waits. `VirtualClock` stands in for the module `time`
where code is given a `Clock`. `in_virtual_time` runs a test in an event loop whose time jumps to
the next timer as soon as nothing else is left to do. Threads that the loop waits for
(`asyncio.to_thread`) and sockets take no time there; processes do, so they have no place in it.
"""

from __future__ import annotations

import asyncio
import functools
import heapq
import itertools
import os
import selectors
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, ParamSpec

from typing_extensions import override

_P = ParamSpec("_P")
_BEGAN_S = 1_000_000.0  # as on a machine that runs for days: 0 would hide what takes it for "never"
_EPOCH_S = 1_000_000_000.0  # real files are written later than that, by far more than `LONGEST_S`
LONGEST_S = 60 * 86_400.0
_MOST_SLEEPS = 300_000
_loops: list[asyncio.AbstractEventLoop] = []  # those of the tests that run


class VirtualClock:
    """A `probing.Clock`: `sleep` returns at once, that much later. Code that sleeps for months, or
    without end, fails its test.
    """

    def __init__(self) -> None:
        self.now = _BEGAN_S
        self._numbers = itertools.count()
        self._due: list[tuple[float, int, Callable[[], object]]] = []
        self._sleeps = 0

    def monotonic(self) -> float:
        """Seconds since some fixed moment."""
        return self.now

    def time(self) -> float:
        """Seconds since the epoch."""
        return _EPOCH_S + self.now - _BEGAN_S

    def sleep(self, seconds: float, /) -> None:
        """Let that much time pass, and in it do what is due (see `after`)."""
        until = self.now + max(0.0, seconds)
        self._sleeps += 1
        assert until < _BEGAN_S + LONGEST_S, "it waits for ever"
        assert self._sleeps < _MOST_SLEEPS, "it waits for ever"
        while self._due and self._due[0][0] <= until:
            at, _, action = heapq.heappop(self._due)
            self._pass_to(max(self.now, at))
            action()
        self._pass_to(max(self.now, until))

    def after(self, seconds: float, action: Callable[[], object]) -> None:
        """Do something while others sleep."""
        heapq.heappush(self._due, (self.now + seconds, next(self._numbers), action))

    def every(self, seconds: float, action: Callable[[], object]) -> None:
        """Do something again and again while others sleep."""

        def again() -> None:
            action()
            self.after(seconds, again)

        self.after(seconds, again)

    def until(self, condition: Callable[[], bool], *, every_s: float = 0.5) -> None:
        """Let time pass until a condition is true."""
        while not condition():
            self.sleep(every_s)

    def _pass_to(self, now: float) -> None:
        self.now = now


class FilingClock(VirtualClock):
    """Files in `folder` are dated by it: as of the moment before time next passes; until then such
    a file is from the future, and surely new.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    @override
    def _pass_to(self, now: float) -> None:
        if now != self.now:
            self._date(self._folder)
            self.now = now

    def _date(self, folder: Path | str) -> None:
        if not os.path.isdir(folder):  # noqa: PTH112 - this runs a thousand times in an hour
            return
        for entry in os.scandir(folder):
            if entry.is_dir():
                self._date(entry.path)
            elif entry.stat().st_mtime > _EPOCH_S + LONGEST_S:
                os.utime(entry, (self.time(), self.time()))


class _Selector(selectors.DefaultSelector):
    """Waits for no time: says how long it would have waited instead."""

    def __init__(self, passed: Callable[[float], None], busy: Callable[[], bool]) -> None:
        super().__init__()
        self._passed = passed
        self._busy = busy

    @override
    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """What is ready now; when nothing is, time passes, unless a thread still works."""
        ready = super().select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        if timeout is None or self._busy():
            return super().select(None)  # the thread wakes the loop when it is done
        self._passed(timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in virtual time. What waits without end in it fails its test."""

    def __init__(self) -> None:
        self._now = _BEGAN_S
        self._threads = 0
        self._passes = 0
        super().__init__(_Selector(self._pass, lambda: self._threads > 0))

    @override
    def time(self) -> float:
        """Seconds of the virtual clock."""
        return self._now

    def _pass(self, seconds: float) -> None:
        self._now += seconds
        self._passes += 1
        assert self._now < _BEGAN_S + LONGEST_S, "it waits for ever"
        assert self._passes < _MOST_SLEEPS, "it waits for ever"

    @override
    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Any, *args: Any
    ) -> asyncio.Future[Any]:
        """As every loop does; time stands still until it is done."""
        self._threads += 1
        running = super().run_in_executor(executor, func, *args)
        running.add_done_callback(self._thread_ended)
        return running

    def _thread_ended(self, _: object) -> None:
        self._threads -= 1


def in_virtual_time(
    test: Callable[_P, Coroutine[Any, Any, None]],
) -> Callable[_P, None]:
    """Make a test of a coroutine one that runs in a `VirtualLoop`."""

    @functools.wraps(test)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> None:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            _loops.append(runner.get_loop())
            try:
                runner.run(test(*args, **kwargs))
            finally:
                _loops.pop()

    return run


def now_s() -> float:
    """The time of the loop of this test; threads that it waits for may ask as well."""
    return _loops[-1].time()
