"""Concurrency that finds itself: climbs to the server's knee and stays there.

The knee is the least concurrency at which the server is as fast as it gets. Two sources tell where
it is, the first that is there wins:

- the engines' own gauges of requests running and waiting, summed over the endpoint. Nothing
  waiting: there is room, climb. More waiting than a little: shrink by this job's share of the
  surplus, so that two jobs on one endpoint come to rest beside each other;
- otherwise this job's throughput: climb while more concurrency still buys throughput, step back
  when it does not, look up and down again once in a while.

Replies that turn requests away (429) shrink the limit at once in either case.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

FIRST_LIMIT = 64
LEAST = 1
MOST = 4096

_RACE = 2.0  # how fast it climbs until it has met the knee for the first time,
_RACE_WORTH_IT = 0.25  # and the share of the added concurrency that must come back as throughput
_COSTS_NOTHING = 0.1  # of the throughput
_SLACK = 1.1  # over what the knee is then taken for
_CLIMB = 1.5  # the same afterwards, when it looks around
_WORTH_IT = 0.1
_TURNED_AWAY = 0.7
_WAITING_SHARE = 0.10  # of the running requests: a queue this long keeps the engine full
_WAITING_FLOOR = 2.0
_EMPTY_WINDOWS = 3
_LOOK_AGAIN = 12  # windows at rest before the next look around
_DROP = 0.8
_CREEP = 0.02  # of all requests at the endpoint, the same for every job: so shares become equal


class Window(NamedTuple):
    """What happened since the limit was last judged."""

    seconds: float
    settled: int  # requests answered
    turned_away: int
    in_flight: float  # mean over the window
    running: float | None = None  # gauges of the whole endpoint, other jobs included
    waiting: float | None = None


@dataclass
class _Trial:
    """A limit that is being tried, and what to go back to."""

    from_limit: int
    from_rate: float


class Limiter:
    """Judges one window after the other; `limit` is how many requests may be in flight."""

    def __init__(self, first: int = FIRST_LIMIT, most: int = MOST) -> None:
        self.limit = min(first, most)
        self._most = most
        self._trial: _Trial | None = None
        self._resting = 0
        self._climbing = True
        self._racing = True
        self._no_queue = 0  # windows without one
        self._raced = False  # whether doubling has paid at all

    def judge(self, window: Window) -> int:
        """The limit from now on. A window in which the limit was not used up changes nothing."""
        if window.turned_away:
            self._set(self.limit * _TURNED_AWAY)
            self._rest()
        elif window.running is not None and window.waiting is not None:
            self._by_gauges(window, window.running, window.waiting)
        elif window.in_flight >= 0.8 * self.limit and window.seconds > 0:
            self._by_throughput(window.settled / window.seconds)
        return self.limit

    def _set(self, limit: float) -> None:
        self.limit = max(LEAST, min(self._most, round(limit)))

    def _rest(self) -> None:
        self._trial = None
        self._climbing = self._racing = False
        self._resting = 0

    # -- the server's gauges ------------------------------------------------------------------

    def _by_gauges(self, window: Window, running: float, waiting: float) -> None:
        enough = max(2 * _WAITING_FLOOR, 2 * _WAITING_SHARE * running)
        everyone = running + waiting
        self._no_queue = 0 if waiting else self._no_queue + 1
        if waiting:
            self._racing = False
        if waiting > enough:
            share = min(1.0, window.in_flight / max(1.0, everyone))
            self._set(self.limit - (waiting - enough) * share)
        elif window.in_flight >= 0.8 * self.limit:
            # At the knee the queue runs empty now and then; without one for long there is room.
            far_from_the_knee = self._no_queue >= (1 if self._racing else _EMPTY_WINDOWS)
            creep = max(1.0, _CREEP * everyone)
            self._set(self.limit * _CLIMB if far_from_the_knee else self.limit + creep)

    # -- this job's own throughput --------------------------------------------------------------

    def _by_throughput(self, rate: float) -> None:
        if self._trial is not None:
            self._end_trial(self._trial, rate)
        elif self._climbing:
            self._try(self.limit * (_RACE if self._racing else _CLIMB), rate)
        else:
            self._resting += 1
            if self._resting >= 2 * _LOOK_AGAIN:
                self._resting = 0
                self._try(self.limit * _DROP, rate)
            elif self._resting == _LOOK_AGAIN:
                self._try(self.limit * _CLIMB, rate)

    def _try(self, limit: float, rate: float) -> None:
        self._trial = _Trial(self.limit, rate)
        self._set(limit)
        if self.limit == self._trial.from_limit:
            self._rest()

    def _end_trial(self, trial: _Trial, rate: float) -> None:
        self._trial = None
        grown = self.limit / trial.from_limit - 1
        gained = rate / trial.from_rate - 1 if trial.from_rate > 0 else 1.0
        if self._racing:
            self._race_on(trial, rate, grown, gained)
        elif grown > 0:
            self._climbing = gained >= _WORTH_IT * grown
            if self._climbing:
                self._try(self.limit * _CLIMB, rate)
            else:
                self._set(trial.from_limit)
        elif gained < _WORTH_IT * grown:  # both negative: less concurrency cost throughput
            self._set(trial.from_limit)

    def _race_on(self, trial: _Trial, rate: float, grown: float, gained: float) -> None:
        """Double as long as it pays; when it never did, halve as long as that costs nothing."""
        if grown > 0 and gained >= _RACE_WORTH_IT * grown:
            self._raced = True
            self._try(self.limit * _RACE, rate)
        elif grown > 0 and not self._raced:
            self._set(trial.from_limit)
            self._try(self.limit / _RACE, trial.from_rate)
        elif grown < 0 and gained > -_COSTS_NOTHING:
            self._try(self.limit / _RACE, trial.from_rate)
        else:  # Little's law: so much concurrency is busy at the latency of an idle server
            up = grown > 0
            ratio = 1 + gained if up else 1 / max(0.1, 1 + gained)
            low = trial.from_limit if up else self.limit
            self._rest()
            self._set(low * max(1.0, ratio) * _SLACK)
