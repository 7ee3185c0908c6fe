"""The rows in the slots of replicas that are signalled to end: the finished and the remaining part
of each, and what is lost. See `campaign_simulation`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class Cut:
    """Rows that were in slots when the slots were signalled to end."""

    busy_s: float  # slot-seconds until the slots ended
    lost_s: float  # slot-seconds spent on rows that are sent again
    lost: int
    lasts_s: float  # seconds until the last slot has ended


class Slots:
    """Draws rows whose cost has this mean and standard deviation, lognormal."""

    def __init__(self, draws: random.Random, in_flight: int, row_s: float, row_cv: float) -> None:
        """`in_flight`: the slots of one replica."""
        spread = math.log1p(row_cv**2)
        self._draws = draws
        self._in_flight = in_flight
        self._centre = math.log(row_s) + spread / 2  # chosen by cost: a longer row is more likely
        self.deviation = math.sqrt(spread)

    def rows(self, ages_s: Sequence[float]) -> tuple[list[float], list[float]]:
        """For the row in each slot, the finished and the remaining part (seconds).

        Args:
            ages_s: how long each replica has had rows; no row is older.
        """
        draw, share = self._draws.lognormvariate, self._draws.random
        done, left = [], []
        for age_s in ages_s:
            for _ in range(self._in_flight):
                cost, gone = draw(self._centre, self.deviation), share()
                done.append(min(cost * gone, age_s))
                left.append(cost * (1 - gone))
        return done, left

    def cut(self, ages_s: Sequence[float], window_s: float) -> Cut:
        """The rows' fate when they have this long to end."""
        done, left = self.rows(ages_s)
        lost = [gone + window_s for gone, one in zip(done, left, strict=True) if one > window_s]
        lasts_s = window_s if lost else max(left, default=0.0)
        return Cut(sum(min(one, window_s) for one in left), sum(lost), len(lost), lasts_s)
