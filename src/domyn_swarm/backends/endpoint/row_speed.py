"""How fast the replicas of an elastic swarm settle the rows of its jobs."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple


class _Sample(NamedTuple):
    at: float
    rows: float  # settled since the beginning
    place_s: float  # seconds of places that were ready, since the beginning


class Speed:
    """The rows that one place settles per second, over the last `window_s`."""

    def __init__(self, window_s: float = 60.0, least_s: float = 5.0) -> None:
        self._window_s = window_s
        self._least_s = least_s
        self._samples: deque[_Sample] = deque()

    def saw(self, now: float, rows: float, ready: int) -> None:
        """So many rows are settled by now, and so many places are ready; `now` counts seconds."""
        last = self._samples[-1] if self._samples else None
        if last is not None and rows < last.rows:  # other jobs: what was measured was of others
            self._samples.clear()
            last = None
        place_s = 0.0 if last is None else last.place_s + (now - last.at) * ready
        self._samples.append(_Sample(now, rows, place_s))
        while len(self._samples) > 2 and now - self._samples[1].at >= self._window_s:
            self._samples.popleft()

    def forget(self) -> None:
        """Other jobs are at work from now on."""
        self._samples.clear()

    @property
    def rows_per_place_s(self) -> float | None:
        """None: there is too little to say, or nothing was settled."""
        if not self._samples:
            return None
        first, last = self._samples[0], self._samples[-1]
        place_s, rows = last.place_s - first.place_s, last.rows - first.rows
        return rows / place_s if place_s >= self._least_s and rows > 0 else None
