"""The rows in the slots of replicas at a moment at which those are told to end: what is done of
them, what is left, and what of that is lost. See `campaign_simulation`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class Cut:
    """Rows that were in slots as those were told to end."""

    busy_s: float  # that the slots went on, together
    lost_s: float  # spent on rows that are asked again, together
    lost: int
    lasts_s: float  # until the last slot has ended


class Slots:
    """Draws rows whose cost has this mean and deviation, lognormal."""

    def __init__(self, draws: random.Random, in_flight: int, row_s: float, row_cv: float) -> None:
        """`in_flight`: the slots of one replica."""
        spread = math.log1p(row_cv**2)
        self._draws = draws
        self._in_flight = in_flight
        self._centre = math.log(row_s) + spread / 2  # chosen by cost: likely as long
        self.deviation = math.sqrt(spread)

    def rows(self, ages_s: Sequence[float]) -> tuple[list[float], list[float]]:
        """Of the row in each slot: what is done of it, and what is left.

        Args:
            ages_s: for how long each replica has had rows; none is older.
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
        """What becomes of them where they have so long to end."""
        done, left = self.rows(ages_s)
        lost = [gone + window_s for gone, one in zip(done, left, strict=True) if one > window_s]
        lasts_s = window_s if lost else max(left, default=0.0)
        return Cut(sum(min(one, window_s) for one in left), sum(lost), len(lost), lasts_s)
