"""A clock for rules over time: an hour passes as soon as somebody sleeps for it."""

from __future__ import annotations

import heapq
import itertools
import os
from collections.abc import Callable
from pathlib import Path

_STARTED_AT = 1_000_000_000.0  # files are written later than that, by the real clock
_LONGEST_S = 60 * 86_400.0
_MOST_SLEEPS = 300_000


class VirtualClock:
    """A `Clock`. What is written in `folder` is dated by it: as of the moment before time next
    passes; until then such a file is from the future, and surely new.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._passed_s = 0.0
        self._planned: list[tuple[float, int, Callable[[], object]]] = []
        self._order = itertools.count()
        self._sleeps = 0

    def monotonic(self) -> float:
        return 5_000.0 + self._passed_s

    def time(self) -> float:
        return _STARTED_AT + self._passed_s

    def sleep(self, seconds: float, /) -> None:
        """Let time pass, and do what was planned for it on the way."""
        until = self._passed_s + seconds
        self._sleeps += 1
        assert until < _LONGEST_S, "it waits for ever"
        assert self._sleeps < _MOST_SLEEPS, "it waits for ever"
        while self._planned and self._planned[0][0] <= until:
            at, _, action = heapq.heappop(self._planned)
            self._pass_to(at)
            action()
        self._pass_to(until)

    def after(self, seconds: float, action: Callable[[], object]) -> None:
        """Plan an action for a moment from now."""
        heapq.heappush(self._planned, (self._passed_s + seconds, next(self._order), action))

    def until(self, condition: Callable[[], bool], *, every_s: float = 0.5) -> None:
        """Let time pass until a condition is true."""
        while not condition():
            self.sleep(every_s)

    def _pass_to(self, passed_s: float) -> None:
        if passed_s == self._passed_s:
            return
        self._date(self._folder)
        self._passed_s = passed_s

    def _date(self, folder: Path | str) -> None:
        if not os.path.isdir(folder):  # noqa: PTH112 - this runs a thousand times in an hour
            return
        for entry in os.scandir(folder):
            if entry.is_dir():
                self._date(entry.path)
            elif entry.stat().st_mtime > _STARTED_AT + _LONGEST_S:
                os.utime(entry, (self.time(), self.time()))
