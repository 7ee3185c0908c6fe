"""The limit of a server that says nothing of itself, by what its answers say.

Throughput is tokens of replies per second, which varies less than the rows that happen to end and
means the same when other rows are asked; or answers, where replies count no tokens.
One limit is kept, with what it is worth by the windows that were spent there; others are tried
against it. Where more brings less, there is a cliff: a trial ends as soon as that is plain, and the
next one is nearer. A cliff may show late, when what is in flight has grown for a while; so the
fastest limit of all is remembered, and gone back to from a higher one that turns out slower.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

LEAST = 1
"""No limit is less."""
RACE = 2.0  # how fast it climbs until it has met the knee for the first time,
RACE_WORTH_IT = 0.1  # and the share of the added concurrency that must come back as throughput
_COSTS_NOTHING = 0.05  # of the throughput
_SLACK = 1.1  # over what the knee is then taken for
_STEP = 1.25  # up or down, afterwards, when it looks around;
_SMALL_STEP = 1.1  # beside a cliff down,
_LEAST_STEP = 1.03  # and up half the way to it, unless that is less than this
_FEW = 30  # requests: with less in flight any step is a large one
_WORTH_IT = 0.1
_SLOWER = 0.92  # of the throughput, with more in flight: a cliff
_SLOWER_WINDOWS = 2  # in a row
_NEWEST_COUNTS = 0.25  # of a limit's worth at least
_NOISE = 0.97  # of its throughput may be missing
_FORGETS = 0.99  # how the fastest fades with each window: what is asked changes
_PLAINLY = 0.75  # of the answers: so few are plain before a window is over,
_SURE = 2.0  # standard errors of a count,
_LATENCIES = 1.5  # but not before what was under way has been answered
_CHANGED = 0.75  # of what the kept limit is worth: something else is asked, or less is there
_LOOK_AGAIN = 2  # windows at rest before the next look around,
_LOOK_AGAIN_MOST = 16  # twice as many each time that it changed nothing


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
    """Tries limits, and keeps the least one that is as fast as any."""

    def __init__(self, *, racing: bool) -> None:
        """`racing`: the knee has not been met yet."""
        self._kept = Level(0)  # none is, yet
        self._answers_s = 0.0  # there
        self._counts_tokens = False
        self._best: Level | None = None  # the fastest
        self._slower = 0  # windows in a row, at a higher limit than that
        self._tries = False  # another limit than the one that is kept
        self._racing = racing
        self._raced = False  # whether doubling has paid at all
        self._climbing = racing
        self._ceiling: float | None = None  # was slower
        self._resting = 0
        self._patience = _LOOK_AGAIN
        self._up_next = True

    @property
    def is_racing(self) -> bool:
        """Whether its steps are large ones."""
        return self._racing

    def rest(self) -> None:
        """Look around again in a while, from wherever the limit is by then."""
        self._kept = Level(0)
        self._tries = self._climbing = self._racing = False
        self._resting = 0

    def fails(self, limit: int, seconds: float, answered: int) -> bool:
        """Whether it is plain that the limit that is tried is beyond a cliff."""
        kept = self._kept
        if not kept.limit or limit < kept.limit or not self._answers_s:
            return False
        if seconds < _LATENCIES * kept.limit / self._answers_s:
            return False
        expected = self._answers_s * seconds
        return answered < _PLAINLY * expected - _SURE * math.sqrt(expected)

    def judge(self, limit: int, answers_s: float, tokens_s: float | None) -> float:
        """The limit from now on, after a window that used this one up.

        Args:
            limit: that of the window.
            answers_s: in it.
            tokens_s: in those answers; None: they count none.
        """
        if tokens_s is not None and not self._counts_tokens:  # what was kept is of answers
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
        """A step up, or half the way to where it was slower."""
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
        """Double as long as it pays; when it never did, halve as long as that costs nothing."""
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
        # Little's law: so much concurrency is busy at the latency of an idle server
        up = grown > 0
        ratio = 1 + gained if up else 1 / max(0.1, 1 + gained)
        low = kept.limit if up else limit
        self.rest()
        high = limit if up else kept.limit
        return min(high, low * max(1.0, ratio) * _SLACK)
