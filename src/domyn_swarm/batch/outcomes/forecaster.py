"""Follows a running job, and forecasts its remaining time: see `forecast`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from domyn_swarm.batch.outcomes.forecast import Pace, mean_costs, relative_variance, time_left
from domyn_swarm.batch.outcomes.strata import Census, Strata, StratumSums
from domyn_swarm.model import TimeLeft

_WINDOW_ROWS = 30  # finished in a window, before it is used instead of the whole run
_MARKS = 64
_PIECES = 6  # of a window, whose speeds give the variation of the speed


@dataclass(frozen=True)
class _Mark:
    """The progress of a run at one moment."""

    at_s: float
    slot_s: float  # seconds in flight, summed over rows
    strata: dict[int, StratumSums]


class Forecaster:
    """Follows one run by periodic samples, and forecasts its remaining time.

    Forecasts use the last half of the run, or all of it while that is short: speeds change as
    replicas come and go.
    """

    def __init__(self) -> None:
        self.census = Census()
        self._marks: list[_Mark] = []
        self._every_s = 0.0
        self._last: _Mark | None = None

    def look(self, now_s: float, in_flight: int, strata: Strata) -> None:
        """Record the progress of the run. Call it once a second, from its first row on."""
        last = self._last
        slot_s = 0.0 if last is None else last.slot_s + in_flight * (now_s - last.at_s)
        self._last = _Mark(now_s, slot_s, strata.copied())
        if not self._marks or now_s - self._marks[-1].at_s >= self._every_s:
            self._marks.append(self._last)
        if len(self._marks) > _MARKS:
            self._marks = self._marks[::2]
            self._every_s = 2 * self._every_s or 2 * (now_s - self._marks[0].at_s) / _MARKS

    @property
    def slots(self) -> float | None:
        """Rows in flight, on average over the last half of the run; None: not known yet."""
        window = self._window()
        if window is None:
            return None
        return (window[-1].slot_s - window[0].slot_s) / (window[-1].at_s - window[0].at_s)

    def time_left(self, rows: int, reached: int) -> TimeLeft | None:
        """The time that the remaining rows take; None: not known yet.

        Args:
            rows: remaining, including those in flight.
            reached: the position of the last row that was started.
        """
        if rows <= 0:
            return TimeLeft(0.0, 0.0, 0.0)
        window = self._window()
        if window is None:
            return None
        whole = Strata()
        whole.add(window[-1].strata)
        if not whole.rows:
            return None
        rest = Counter(whole.in_flight)
        waiting = max(0.0, rows - sum(rest.values()))
        ahead = self.census.beyond(reached + 1, round(waiting))
        if not ahead:  # unknown: assumed to be like the started ones
            begun = sum(one.begun for one in whole.values())
            ahead = {name: waiting * one.begun / begun for name, one in whole.items()}
        rest.update(ahead)
        return time_left(whole, rest, _pace(window, whole, rest), begun=True)

    def _window(self) -> list[_Mark] | None:
        """The marks of the last half of the run."""
        if self._last is None or len(self._marks) < 2:
            return None
        marks = [one for one in self._marks if one.at_s < self._last.at_s] + [self._last]
        half_s = (marks[0].at_s + marks[-1].at_s) / 2
        at = max(0, sum(one.at_s <= half_s for one in marks) - 1)
        while at and _rows_between(marks[at], marks[-1]) < _WINDOW_ROWS:
            at -= 1
        return marks[at:]


def _pace(window: Sequence[_Mark], whole: Strata, rest: Mapping[int, float]) -> Pace:
    """The speed in a window. Its variation is estimated from the batch means of its pieces (Law,
    *Simulation Modeling and Analysis*, 5th edition, section 9.5.3), each the cost of its finished
    rows, at the average cost of rows of these lengths.
    """
    first, last = window[0], window[-1]
    span_s = last.at_s - first.at_s
    slots = (last.slot_s - first.slot_s) / span_s
    names = sorted(whole.keys() | rest.keys())
    costs = mean_costs(whole, names)

    def cost_s(after: _Mark, before: _Mark) -> float:
        done = Strata()
        done.add(after.strata, before.strata)
        return float(sum(one.rows * costs[name] for name, one in done.items() if one.rows))

    level = _level(first, last, cost_s(last, first), whole)
    pieces = [_nearest(window, first.at_s + span_s * at / _PIECES) for at in range(_PIECES + 1)]
    speeds = [
        cost_s(after, before) / (after.at_s - before.at_s)
        for before, after in pairwise(pieces)
        if after.at_s > before.at_s
    ]
    mean = sum(speeds) / max(1, len(speeds))
    if len(speeds) < _PIECES or mean <= 0:
        return Pace(slots, level)
    spread = sum((one / mean - 1) ** 2 for one in speeds) / (len(speeds) - 1)
    whole_s = sum(count * costs[name] for name, count in rest.items()) / mean
    ahead = min(1.0, span_s / _PIECES / whole_s) if whole_s > 0 else 1.0
    deviation = math.sqrt(spread * (1 / len(speeds) + ahead))
    return Pace(slots, level, deviation, len(speeds) - 1.0)


def _level(first: _Mark, last: _Mark, expected_s: float, whole: Strata) -> float:
    """The cost of the rows finished in a window, relative to that of such rows in the whole run.

    Rows that take long are still in flight: the time that they have held their slots counts in
    part. Counting all of it is right for exponential costs, whose rate is all that is known of a
    row; counting none of it for constant costs.
    """
    done = Strata()
    done.add(last.strata, first.strata)
    if expected_s <= 0 or done.rows == 0:
        return 1.0
    held_s = last.slot_s - first.slot_s - done.seconds
    uneven = min(1.0, relative_variance(whole.values()))
    return max(1e-9, done.seconds + uneven * held_s) / expected_s


def _rows_between(before: _Mark, after: _Mark) -> int:
    return sum(one.rows for one in after.strata.values()) - sum(
        one.rows for one in before.strata.values()
    )


def _nearest(marks: Sequence[_Mark], at_s: float) -> _Mark:
    return min(marks, key=lambda one: abs(one.at_s - at_s))
