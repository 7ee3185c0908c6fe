"""Finds the limit of a server without gauges by the throughput of its answers.

Throughput is tokens of replies per second, which varies less than settled rows per second and is
comparable between rows of different lengths; if replies count no tokens, it is answers per second.
One limit is kept, with the throughput of its windows, and others are tried against it. A higher
limit with less throughput is beyond a cliff: its trial ends as soon as that is clear, and the next
one is nearer. A cliff may show late, after the answers in flight have grown for a while; so the
fastest limit of all is kept, and restored when a higher one turns out slower.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

LEAST = 1
"""No limit is less."""
RACE = 2.0  # factor of a step until the limit reaches the knee for the first time,
RACE_WORTH_IT = 0.1  # and the share of the added concurrency that must come back as throughput
_COSTS_NOTHING = 0.05  # of the throughput
_SLACK = 1.1  # times the estimated knee
_STEP = 1.25  # factor of a later trial, up or down;
_SMALL_STEP = 1.1  # down, beside a cliff,
_LEAST_STEP = 1.03  # and up half the way to the cliff, unless the factor is less than this
_FEW = 30  # requests: with fewer in flight any step is a large one
_WORTH_IT = 0.1
_SLOWER = 0.92  # of the throughput, with more in flight: a cliff
_SLOWER_WINDOWS = 2  # in a row
_NEWEST_COUNTS = 0.25  # of a limit's worth at least
_NOISE = 0.97  # of the fastest limit's throughput counts as equal
_FORGETS = 0.99  # decay of the fastest rate, per window: later requests may be different
_PLAINLY = 0.75  # of the expected answers: fewer end a trial before its window is over,
_SURE = 2.0  # if they are fewer by so many standard errors of the count,
_LATENCIES = 1.5  # but not before the requests in flight at its start have been answered
_CHANGED = 0.75  # of the kept limit's rate: less means that requests or server have changed
_LOOK_AGAIN = 2  # windows at rest before the next trial,
_LOOK_AGAIN_MOST = 16  # doubled after each trial that changed nothing, up to this


@dataclass
class Level:
    """What one limit is worth: its throughput, the newest windows counting most."""

    limit: int
    rate: float = 0.0
    windows: int = 0

    def add(self, rate: float) -> None:
        """Add the throughput of a window at this limit."""
        self.windows += 1
        self.rate += max(_NEWEST_COUNTS, 1 / self.windows) * (rate - self.rate)


class ThroughputSearch:
    """Tries limits and keeps the lowest one that is as fast as any."""

    def __init__(self, *, racing: bool) -> None:
        """`racing`: the limit doubles until it reaches the knee for the first time."""
        self._kept = Level(0)  # none yet
        self._answers_s = 0.0  # answers per second at the kept limit
        self._counts_tokens = False
        self._best: Level | None = None  # the fastest
        self._slower = 0  # windows in a row at another limit that were slower than the best
        self._tries = False  # the present limit is a trial, not the kept one
        self._racing = racing
        self._raced = False  # whether doubling has paid at all
        self._climbing = racing
        self._ceiling: float | None = None  # a higher limit that was slower
        self._resting = 0
        self._patience = _LOOK_AGAIN
        self._up_next = True

    @property
    def is_racing(self) -> bool:
        """Whether the limit still doubles with each step."""
        return self._racing

    def rest(self) -> None:
        """Pause the trials; they start again from the limit at that time."""
        self._kept = Level(0)
        self._tries = self._climbing = self._racing = False
        self._resting = 0

    def fails(self, limit: int, seconds: float, answered: int) -> bool:
        """Whether the answers so far show that the tried limit is beyond a cliff."""
        kept = self._kept
        if not kept.limit or limit < kept.limit or not self._answers_s:
            return False
        if seconds < _LATENCIES * kept.limit / self._answers_s:
            return False
        expected = self._answers_s * seconds
        return answered < _PLAINLY * expected - _SURE * math.sqrt(expected)

    def judge(self, limit: int, answers_s: float, tokens_s: float | None) -> float:
        """Return the limit from now on, after a window that used the present one up.

        Args:
            limit: of the window.
            answers_s: answers per second in it.
            tokens_s: tokens of those answers per second; None: replies count no tokens.
        """
        if tokens_s is not None and not self._counts_tokens:  # kept rates are of answers
            self._counts_tokens, self._best, self._tries = True, None, False
            self._kept = Level(0)
        if not self._kept.limit:
            self._kept = Level(limit)
        rate = answers_s
        if tokens_s is not None:
            rate = tokens_s
        elif self._answers_s and self._kept.rate:
            rate *= self._kept.rate / self._answers_s
        if self._tries:
            self._tries = False
            judged = self._raced_on if self._racing else self._after
            return judged(self._kept, limit, rate, answers_s)
        return self._stayed(self._kept, limit, rate, answers_s)

    def _stayed(self, kept: Level, limit: int, rate: float, answers_s: float) -> float:
        best = self._best
        if best is not None and limit != best.limit and rate < _SLOWER * best.rate:
            self._slower += 1
            if self._slower >= _SLOWER_WINDOWS:
                return self._gone_back(best)
        elif kept.windows and rate < _CHANGED * kept.rate:
            self._ceiling, self._climbing, self._up_next = float(limit), False, True
            self._patience, self._resting = _LOOK_AGAIN, 0
            self._keep(limit, rate, answers_s)
            return self._try(limit / _STEP)
        else:
            self._slower = 0
        return self._looked_around(kept, limit, rate, answers_s)

    def _looked_around(self, kept: Level, limit: int, rate: float, answers_s: float) -> float:
        kept.add(rate)
        self._answers_s += (answers_s - self._answers_s) / min(4, kept.windows)
        self._note_best(kept)
        if self._racing:
            return self._try(limit * RACE)
        if self._climbing:
            return self._higher(limit)
        self._resting += 1
        if self._resting < self._patience:
            return limit
        self._resting, self._up_next = 0, not self._up_next
        if self._up_next:
            return self._lower(limit)
        if self._ceiling is not None:
            self._ceiling = max(self._ceiling, limit * _SMALL_STEP**2)
        return self._higher(limit)

    def _higher(self, limit: int) -> float:
        """A step up, or half the way to the ceiling."""
        other = limit * _STEP
        if self._ceiling is not None:
            other = min(other, math.sqrt(limit * self._ceiling))
        if other < _LEAST_STEP * limit and limit > _FEW:
            self._climbing = False
            return limit
        return self._try(other)

    def _lower(self, limit: int) -> float:
        return self._try(limit / (_STEP if self._ceiling is None else _SMALL_STEP))

    def _note_best(self, level: Level) -> None:
        best = self._best
        if best is None or level.rate >= best.rate or level.limit == best.limit:
            self._best = Level(level.limit, level.rate, level.windows)
        else:
            best.rate *= _FORGETS

    def _is_as_good(self, limit: int, rate: float) -> bool:
        best = self._best
        if best is None:
            return True
        less = min(0.0, limit / best.limit - 1)
        return rate >= _NOISE * best.rate * (1 + _WORTH_IT * less)

    def _gone_back(self, best: Level) -> float:
        self._slower = self._resting = 0
        self._climbing = False
        if self._kept.limit > best.limit:
            self._ceiling = float(self._kept.limit)
        self._patience = min(_LOOK_AGAIN_MOST, 2 * self._patience)
        self._answers_s *= best.rate / max(1e-9, self._kept.rate)
        self._kept = Level(best.limit, best.rate, best.windows)
        return best.limit

    def _try(self, other: float) -> float:
        other = max(LEAST, round(other))
        self._tries = other != self._kept.limit
        if not self._tries:
            self._climbing = self._racing = False
        return other

    def _keep(self, limit: int, rate: float, answers_s: float) -> None:
        self._kept = Level(limit)
        self._kept.add(rate)
        self._answers_s = answers_s
        self._note_best(self._kept)

    def _after(self, kept: Level, limit: int, rate: float, answers_s: float) -> float:
        grown = limit / kept.limit - 1
        gained = rate / kept.rate - 1 if kept.rate > 0 else 1.0
        if gained >= _WORTH_IT * grown and self._is_as_good(limit, rate):  # both negative: no cost
            self._patience = _LOOK_AGAIN
            self._keep(limit, rate, answers_s)
            self._climbing = grown > 0
            if grown > 0:
                return self._higher(limit)
            return limit if gained <= 0 else self._try(limit / _STEP)
        self._climbing = False
        if grown > 0 and rate < _SLOWER * kept.rate:
            self._climbing = self._ceiling is None or limit < _LEAST_STEP * self._ceiling
            self._ceiling = float(limit)
        else:
            self._patience = min(_LOOK_AGAIN_MOST, 2 * self._patience)
        return kept.limit

    def _raced_on(self, kept: Level, limit: int, rate: float, answers_s: float) -> float:
        """Double while that pays; if it never did, halve while that costs nothing."""
        grown = limit / kept.limit - 1
        gained = rate / kept.rate - 1 if kept.rate > 0 else 1.0
        if grown > 0 and gained >= RACE_WORTH_IT * grown:
            self._raced = True
            self._keep(limit, rate, answers_s)
            return self._try(limit * RACE)
        if grown > 0 and not self._raced:
            return self._try(kept.limit / RACE)
        if grown < 0 and gained > _COSTS_NOTHING:  # the cliff lies between the two
            self._racing, self._climbing = False, True
            self._keep(limit, rate, answers_s)
            self._ceiling = float(kept.limit)
            return self._higher(limit)
        if grown < 0 and gained > -_COSTS_NOTHING:
            self._keep(limit, max(rate, kept.rate), answers_s)
            return self._try(limit / RACE)
        # Little's law: throughput times the latency of an idle server is the busy concurrency
        up = grown > 0
        ratio = 1 + gained if up else 1 / max(0.1, 1 + gained)
        low = kept.limit if up else limit
        self.rest()
        high = limit if up else kept.limit
        return min(high, low * max(1.0, ratio) * _SLACK)
