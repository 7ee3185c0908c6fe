"""The limit of a server that says nothing of itself, by the throughput that it brings alone."""

from __future__ import annotations

from dataclasses import dataclass

from domyn_swarm.batch.run.limit_levels import LEAST

RACE = 2.0  # how fast it climbs until it has met the knee for the first time,
RACE_WORTH_IT = 0.1  # and the share of the added concurrency that must come back as throughput
_COSTS_NOTHING = 0.05  # of the throughput
_SLACK = 1.1  # over what the knee is then taken for
_LOOK_UP = 1.25  # without gauges, afterwards, when it looks around
_LOOK_DOWN = 0.8
_WORTH_IT = 0.1
_LOOK_AGAIN = 2  # windows at rest before the next look around,
_LOOK_AGAIN_MOST = 16  # twice as many each time that it changed nothing


@dataclass
class _Trial:
    """A limit that is being tried, and what to go back to."""

    from_limit: int
    from_rate: float


class ThroughputSearch:
    """A limit by nothing but the throughput that it brings."""

    def __init__(self, *, racing: bool) -> None:
        self._trial: _Trial | None = None
        self._racing = racing
        self._raced = False  # whether doubling has paid at all
        self._climbing = racing
        self._resting = 0
        self._patience = _LOOK_AGAIN
        self._up_next = True

    def rest(self) -> None:
        """Look around again in a while."""
        self._trial = None
        self._climbing = self._racing = False
        self._resting = 0

    def judge(self, limit: int, rate: float) -> float:
        """The limit from now on, after a window that used this one up."""
        if self._trial is not None:
            return self._after(self._trial, limit, rate)
        if self._climbing:
            return self._try(limit, limit * (RACE if self._racing else _LOOK_UP), rate)
        self._resting += 1
        if self._resting < self._patience:
            return limit
        self._resting, self._up_next = 0, not self._up_next
        return self._try(limit, limit * (_LOOK_DOWN if self._up_next else _LOOK_UP), rate)

    def _try(self, limit: int, other: float, rate: float) -> float:
        self._trial = _Trial(limit, rate)
        other = max(LEAST, round(other))
        if other == limit:
            self.rest()
        return other

    def _after(self, trial: _Trial, limit: int, rate: float) -> float:
        self._trial = None
        grown = limit / trial.from_limit - 1
        gained = rate / trial.from_rate - 1 if trial.from_rate > 0 else 1.0
        if self._racing:
            return self._raced_on(trial, limit, rate, gained)
        if gained >= _WORTH_IT * grown:  # both negative: less concurrency cost no throughput
            self._patience = _LOOK_AGAIN
            self._climbing = grown > 0
            return self._try(limit, limit * _LOOK_UP, rate) if grown > 0 else limit
        self._climbing = False
        self._patience = min(_LOOK_AGAIN_MOST, 2 * self._patience)
        return trial.from_limit

    def _raced_on(self, trial: _Trial, limit: int, rate: float, gained: float) -> float:
        """Double as long as it pays; when it never did, halve as long as that costs nothing."""
        grown = limit / trial.from_limit - 1
        if grown > 0 and gained >= RACE_WORTH_IT * grown:
            self._raced = True
            return self._try(limit, limit * RACE, rate)
        if grown > 0 and not self._raced:
            return self._try(trial.from_limit, trial.from_limit / RACE, trial.from_rate)
        if grown < 0 and gained > -_COSTS_NOTHING:
            return self._try(limit, limit / RACE, max(rate, trial.from_rate))
        # Little's law: so much concurrency is busy at the latency of an idle server
        up = grown > 0
        ratio = 1 + gained if up else 1 / max(0.1, 1 + gained)
        low = trial.from_limit if up else limit
        self.rest()
        return low * max(1.0, ratio) * _SLACK
