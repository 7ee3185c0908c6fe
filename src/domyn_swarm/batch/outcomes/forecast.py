"""Forecasts the remaining time of a job, with an interval: from the finished rows, the lengths of
the remaining prompts, and the number of rows in flight.

Rows are sorted into strata by the length of their input to the job, which is known of every row
before it is sent. The cost of a row is the time for which it holds a slot. The cost of the
remaining rows is the sum over strata of their number times the mean cost of finished rows. If few
rows of a stratum are finished, the mean is shrunk towards a line over all lengths, with the weight
of a few rows (credibility, Bühlmann and Gisler, *A Course in Credibility Theory*, 2005, chapter 3),
so that an input that is sorted by length is not taken for one of short prompts. By Little's law the
number of slots in use converts cost into time. At the end slots become empty one by one: the last
rows are drawn from a renewal process cut at a random moment (Cox, *Renewal Theory*, 1962, chapter
5): chosen in proportion to their costs, and at a uniformly distributed point of them.

Everything here is a function of numbers: no clock is read and no request sent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from domyn_swarm.batch.outcomes.strata import StratumSums
from domyn_swarm.model import TimeLeft

LEVEL = 0.8
"""The probability that the true value lies in an interval."""

_Floats = NDArray[np.float64]
_CREDIBLE_ROWS = 4.0  # the weight of the line over all lengths, in finished rows
_LEAST_ROWS = 3  # finished rows, before a forecast is made
_DRAWS = 200
_ENDING = 64  # slots that are drawn as they become empty: more hardly end later
_ROUNDS = 4  # of fitting the line
_UNEVEN = 0.07  # of the logarithm of a speed: the part that the past cannot predict
_UNKNOWN_CV = 0.5  # of costs, if no stratum has two finished rows


def _length_of(stratum: _Floats) -> _Floats:
    """A length in the middle of a stratum."""
    return np.asarray(2.0 ** ((stratum - 0.5) / 2), np.float64)


@dataclass(frozen=True)
class _Costs:
    """The costs of rows by stratum, estimated from finished rows. Arrays with one element per
    stratum.
    """

    left: _Floats  # remaining rows
    mean_s: _Floats
    variance: _Floats  # of one row's cost
    doubt: _Floats  # variance of the mean
    known: NDArray[np.bool_]  # whether a row of it is finished
    finished: int

    @property
    def sum_s(self) -> float:
        """Of the remaining rows."""
        return float(self.left @ self.mean_s)

    @property
    def log_deviation(self) -> float:
        """Of the logarithm of `sum_s`. The remaining rows differ from their mean, and the mean of
        the finished rows from theirs (Valliant, Dorfman and Royall, *Finite Population Sampling and
        Inference*, 2000, section 2.3). Errors of strata without finished rows are fully correlated.
        """
        if self.sum_s <= 0:
            return 0.0
        known = self.left * self.known
        unknown = self.left * ~self.known
        variance = float(known**2 @ self.doubt + self.left @ self.variance)
        variance += float(unknown @ np.sqrt(self.doubt)) ** 2
        return math.sqrt(math.log1p(variance / self.sum_s**2))


def _line(lengths: _Floats, means: _Floats, rows: _Floats) -> tuple[float, float]:
    """Intercept and slope, neither below 0, with least squared relative errors: weights are those
    of the previous round's line, since those of the means themselves would prefer low means
    (iteratively reweighted least squares; McCullagh and Nelder, *Generalized Linear Models*, 2nd
    edition, 2.5).
    """
    fitted = np.full_like(means, max(1e-9, float(rows @ means / rows.sum())))
    intercept, slope = 0.0, 0.0
    for _ in range(_ROUNDS):
        intercept, slope = _weighted_line(lengths, means, rows / np.maximum(fitted, 1e-9) ** 2)
        fitted = intercept + slope * lengths
    return intercept, slope


def _weighted_line(lengths: _Floats, means: _Floats, weight: _Floats) -> tuple[float, float]:
    whole = weight.sum()
    middle, mean = (weight @ lengths) / whole, (weight @ means) / whole
    spread = weight @ (lengths - middle) ** 2
    slope = float(weight @ ((lengths - middle) * (means - mean)) / spread) if spread > 0 else 0.0
    if slope <= 0:
        return float(mean), 0.0
    if mean - slope * middle >= 0:
        return float(mean - slope * middle), slope
    return 0.0, float((weight @ (lengths * means)) / (weight @ lengths**2))


def _drawn_to_line(strata: _Floats, rows: _Floats, sums: _Floats) -> tuple[_Floats, _Floats]:
    """The mean of each stratum, and the line over all lengths there."""
    known = rows > 0
    lengths = _length_of(strata)
    means = np.divide(sums, rows, out=np.zeros_like(sums), where=known)
    intercept, slope = _line(lengths[known], means[known], rows[known])
    line = intercept + slope * lengths
    return (sums + _CREDIBLE_ROWS * line) / (rows + _CREDIBLE_ROWS), line


def _costs(done: Mapping[int, StratumSums], rest: Mapping[int, float]) -> _Costs:
    names = sorted({name for name, one in done.items() if one.rows} | rest.keys())
    known = [done.get(name, StratumSums()) for name in names]
    strata = np.array(names, np.float64)
    rows = np.array([one.rows for one in known], np.float64)
    sums = np.array([one.seconds for one in known])
    squares = np.array([one.seconds_squared for one in known])
    mean_s, line = _drawn_to_line(strata, rows, sums)
    own = np.divide(sums, rows, out=np.ones_like(sums), where=rows > 0)
    scatter = np.maximum(0.0, squares - rows * own**2)  # of squares around the mean
    freedom = np.maximum(0.0, rows - 1)
    relative = relative_variance(known)
    variance = (scatter + _CREDIBLE_ROWS * relative * mean_s**2) / (freedom + _CREDIBLE_ROWS)
    of_line = relative * (line**2 / _CREDIBLE_ROWS + _leverage(strata, rows, line))
    doubt = np.where(rows > 0, np.minimum(variance / np.maximum(rows, 1), of_line), of_line)
    left = np.array([rest.get(name, 0.0) for name in names])
    return _Costs(left, mean_s, variance, doubt, rows > 0, int(rows.sum()))


def relative_variance(strata: Iterable[StratumSums]) -> float:
    """Of a row's cost, by its mean squared, at one length; few rows are combined with a prior."""
    known = [one for one in strata if one.rows and one.seconds > 0]
    scatter = sum(one.rows * (one.rows * one.seconds_squared / one.seconds**2 - 1) for one in known)
    freedom = sum(one.rows - 1 for one in known)
    unknown = _CREDIBLE_ROWS * _UNKNOWN_CV**2
    return max(0.0, float(scatter + unknown) / (freedom + _CREDIBLE_ROWS))


def _leverage(strata: _Floats, rows: _Floats, line: _Floats) -> _Floats:
    """The variance of the line at each stratum, where rows have a relative variance of 1."""
    lengths = _length_of(strata)
    at = np.stack([np.ones_like(lengths), lengths])
    weight = rows / np.maximum(line, 1e-9) ** 2
    inverse = np.linalg.pinv((at * weight) @ at.T, hermitian=True)
    return np.asarray(np.einsum("is,ij,js->s", at, inverse, at), np.float64)


def mean_costs(done: Mapping[int, StratumSums], strata: Iterable[int]) -> dict[int, float]:
    """The mean cost of a row of each stratum, in seconds."""
    names = sorted(done.keys() | set(strata))
    found = _costs(done, dict.fromkeys(names, 1.0)).mean_s.tolist()
    return dict(zip(names, found, strict=True))


def tokens_left(
    done: Mapping[int, StratumSums], rest: Mapping[int, float]
) -> tuple[int, int] | None:
    """Tokens in and out of the remaining rows; None: the endpoint does not report tokens."""
    names = sorted({name for name, one in done.items() if one.rows} | rest.keys())
    known = [done.get(name, StratumSums()) for name in names]
    rows = np.array([one.rows for one in known], np.float64)
    if not any(one.prompt_tokens or one.completion_tokens for one in known):
        return None
    strata, left = np.array(names, np.float64), np.array([rest.get(name, 0.0) for name in names])

    def whole(sums: Sequence[int]) -> int:
        means, _ = _drawn_to_line(strata, rows, np.array(sums, np.float64))
        return round(float(left @ means))

    return whole([one.prompt_tokens for one in known]), whole(
        [one.completion_tokens for one in known]
    )


@dataclass(frozen=True)
class Pace:
    """The recent speed of the run."""

    slots: float  # rows in flight, on average
    level: float = 1.0  # the recent cost of rows relative to their average cost
    deviation: float = 0.0  # of the logarithm of the speed over the remaining time
    freedom: float = math.inf  # degrees of freedom of `deviation`


def time_left(
    done: Mapping[int, StratumSums],
    rest: Mapping[int, float],
    pace: Pace,
    *,
    begun: bool,
    seed: int = 0,
) -> TimeLeft | None:
    """The time that the remaining rows take; None: too few are finished. Deterministic.

    Args:
        done: the finished rows.
        rest: the remaining rows, including those in flight, by stratum.
        pace: the number of rows in flight, and the variation of the speed.
        begun: whether as many of them are in flight already.
        seed: of the draws.
    """
    rows = sum(rest.values())
    finished = sum(one.rows for one in done.values())
    if rows <= 0:
        return TimeLeft(0.0, 0.0, 0.0)
    if finished < _LEAST_ROWS or pace.slots <= 0:
        return None
    costs, draws = _costs(done, rest), np.random.default_rng(seed)
    slots = max(1.0, min(pace.slots, rows))
    freedom = max(3.0, min(pace.freedom, costs.finished - 2.0))
    deviation = math.hypot(_UNEVEN, max(costs.log_deviation, pace.deviation))
    sums = costs.sum_s * np.exp(deviation * draws.standard_t(freedom, _DRAWS))
    if rows <= pace.slots:  # each remaining row has a slot
        taken = _ends(costs, round(rows), costs.left, draws, cut=begun).max(axis=1)
    else:
        ends = _ends(costs, round(slots), costs.left * costs.mean_s, draws, cut=True)
        even = sums / slots - ends.mean(axis=1) - (_mean_cut_s(costs) if begun else 0.0)
        taken = np.maximum(even, 0.0) + ends.max(axis=1)
    taken *= pace.level
    low, middle, high = np.quantile(taken, [(1 - LEVEL) / 2, 0.5, (1 + LEVEL) / 2])
    return TimeLeft(float(middle), float(low), float(high))


def _mean_cut_s(costs: _Costs) -> float:
    """The average work done on a row in flight, in seconds; as much remains."""
    squares = costs.left @ (costs.variance + costs.mean_s**2)
    return float(squares / (2 * costs.sum_s)) if costs.sum_s else 0.0


def _ends(
    costs: _Costs, slots: int, weight: _Floats, draws: np.random.Generator, *, cut: bool
) -> _Floats:
    """The remaining time of the last row of each slot, in seconds, by draw and slot; `cut`: part of
    it is done.
    """
    size = _DRAWS, min(max(slots, 1), _ENDING)
    if weight.sum() <= 0:
        return np.zeros(size)
    at = draws.choice(len(weight), size=size, p=weight / weight.sum())
    mean_s = np.maximum(costs.mean_s, 1e-9)
    spread = np.log1p(costs.variance / mean_s**2)  # of a lognormal cost
    centre = np.log(mean_s) + (spread / 2 if cut else -spread / 2)  # cut: chosen by cost
    found = np.exp(centre[at] + np.sqrt(spread)[at] * draws.standard_normal(size))
    return np.asarray(found * draws.random(size) if cut else found, np.float64)
