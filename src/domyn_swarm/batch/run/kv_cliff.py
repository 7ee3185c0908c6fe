"""Finds, by an engine's own gauges, the concurrency beyond which it becomes slower: its KV memory
does not hold all running requests, and some are preempted and computed again.
"""

from __future__ import annotations

from domyn_swarm.batch.run.throughput_search import LEAST, RACE_WORTH_IT, Level
from domyn_swarm.engine_load import EngineLoad

_KV_FADES = 0.95  # decay of the highest KV usage, per window
_KV_EMPTY = 0.4  # below this usage there is no cliff
_PREEMPTED = 0.02  # of the running requests, per second: more than the odd one
_SMOOTH = 0.7  # how much the newest window counts among preemptions
_SETTLED = 2  # windows until those of a lower limit show its effect
_STEP_BACK = 0.9
_RETREAT = 0.8  # if throughput has collapsed, or the last step back was not enough
_COLLAPSED = 0.6
_SLOWER = 0.92  # of the best tokens per second: less than this,
_SLOWER_WINDOWS = 2  # in so many windows in a row, is not noise
_FALLS = 2  # steps back in a row, after which the limit before them is not restored
_FASTER = 1.02
_HIGHER = 1.1  # times the best limit
_FORGETS = 0.99  # decay of the best rate, per window: later requests may be different
PAUSE = 10  # windows below a cliff before a slightly higher limit is tried,
PAUSE_MOST = 320  # doubled after each attempt that did not pay, up to this
_TRY_MORE = 1.1
_TRY_LESS = 0.95


class KvCliff:
    """The concurrency beyond which an engine becomes slower, by preemptions and tokens/s."""

    def __init__(self, limit: int) -> None:
        self.ceiling: float | None = None  # None: no cliff is known
        self._pause = self._left = PAUSE
        self.kv_peak: float | None = None  # the highest recent usage of the KV memory
        self._preempted_s = 0.0  # over the last windows
        self._counts_tokens = False
        self._best = Level(limit)  # the fastest
        self._slower = 0  # windows in a row that were slower than the best, at a higher limit
        self._level = Level(limit)
        self._above: Level | None = None  # the limit before, to be compared with the present one
        self._sinking = False  # stepped back because more was slower, without a preemption
        self._falls = 0  # steps back in a row, none of which was enough
        self._before: Level | None = None  # restored if the attempt at a higher limit does not pay
        self._went_back = False  # in the last window
        self._raced_from = 0.0  # the rate before the limit was doubled
        self._down_next = False

    def bounded(self, limit: float) -> float:
        """The limit, or the ceiling if that is lower."""
        return limit if self.ceiling is None else min(limit, self.ceiling)

    def judge(self, limit: int, rows_s: float, load: EngineLoad, *, is_used: bool) -> float | None:
        """Return another limit, or None if memory allows this one to stay or to creep up. The rate
        is rows per second if the engine does not count tokens.
        """
        if not 0.95 * self._level.limit <= limit <= 1.05 * self._level.limit + 1:
            self._level = Level(limit)
        if self._went_back:  # requests that were preempted before are still being computed again
            self._went_back = False
            return limit
        rate = self._rate(limit, rows_s, load.tokens_s)
        self._level.add(rate)
        if load.kv_usage is not None:  # answers that began together fill the memory together
            self.kv_peak = max(load.kv_usage, _KV_FADES * (self.kv_peak or 0.0))
        self._preempted_s += _SMOOTH * ((load.preemptions_s or 0.0) - self._preempted_s)
        if self._preempted_s > _PREEMPTED * load.running:
            return self._retreated(limit, rate, sinking=False)
        if self._above is not None:
            return self._compared(self._above)
        if self._is_slower(load, is_used=is_used):
            if self._slower < _SLOWER_WINDOWS:
                return limit
            return self._retreated(self._best.limit, rate, sinking=True)
        return self._more(limit) if self.ceiling is not None and is_used else None

    def _rate(self, limit: int, rows_s: float, tokens_s: float | None) -> float:
        if tokens_s is None:
            return self._level.rate if self._counts_tokens else rows_s
        if not self._counts_tokens:  # the first token count: kept rates are of rows
            self._counts_tokens = True
            self._level, self._above, self._before = Level(limit), None, None
        return tokens_s

    def was_worth_it(self) -> bool:
        """Whether the last doubling made it faster."""
        before, self._raced_from = self._raced_from, self._level.rate
        return self._raced_from > (1 + RACE_WORTH_IT) * before

    # -- back -----------------------------------------------------------------------------------

    def looked_below(self) -> float:
        """A lower limit, to measure whether it is faster."""
        self._above, self._sinking = self._level, True
        return self._moved_to(self._level.limit * _RETREAT)

    def _retreated(self, limit: int, rate: float, *, sinking: bool) -> float:
        """A lower limit, effective at once."""
        before, level, self._before = self._before, self._level, None
        self._slower, self._best = 0, Level(limit)
        self._preempted_s, self._sinking = 0.0, sinking
        if before is not None and level.rate <= before.rate:
            return self._gone_back(before)
        self._falls = 1 if level.windows > _SETTLED else self._falls + 1
        if sinking or self._falls == 1:
            self._above = level
        elif self._falls > _FALLS:  # its rate no longer holds
            self._above = None
        if sinking:
            return self._moved_to(limit)
        usual = before.rate if before is not None else level.rate
        is_far = rate < _COLLAPSED * usual or (self._above is None and self.ceiling is not None)
        return self._moved_to(limit * (_RETREAT if is_far else _STEP_BACK))

    def _gone_back(self, before: Level) -> float:
        self._pause = min(PAUSE_MOST, 2 * self._pause)
        self._level, self._before, self._above = before, None, None
        self._went_back = True
        self.ceiling, self._left = before.limit, self._pause
        return before.limit

    def _moved_to(self, limit: float) -> float:
        limit = max(LEAST, int(limit))
        self._level = Level(limit)
        self.ceiling, self._left = limit, self._pause
        return limit

    def _compared(self, above: Level) -> float | None:
        """Return the limit with more tokens per second, once the lower one has settled. None: the
        lower one stays.
        """
        level = self._level
        if level.windows <= _SETTLED:
            return level.limit
        self._above = None
        if above.rate > level.rate:
            self._level = above
            self.ceiling, self._left = above.limit, self._pause
            return above.limit
        if self._sinking and level.limit > LEAST and level.rate > _FASTER * above.rate:
            self._above = level  # the best known limit may lie beyond the cliff as well
            return self._moved_to(level.limit * _RETREAT)
        return None

    def _is_slower(self, load: EngineLoad, *, is_used: bool) -> bool:
        """Whether fewer tokens are generated than at a lower limit. An engine that counts
        preemptions is not judged while requests wait: prefill makes it slower.
        """
        level, best = self._level, self._best
        if level.rate >= best.rate or not self._counts_tokens:
            self._best, self._slower = Level(level.limit, level.rate), 0
            return False
        best.rate *= _FORGETS
        reads = load.waiting > 0 and load.preemptions_s is not None
        has_room = self.kv_peak is not None and self.kv_peak < _KV_EMPTY
        is_higher = level.limit >= _HIGHER * best.limit and is_used
        if reads or has_room or not is_higher or level.rate >= _SLOWER * best.rate:
            self._slower = 0
            return False
        self._slower += 1
        return True

    # -- and on ---------------------------------------------------------------------------------

    def _more(self, limit: int) -> float | None:
        """A slightly higher or a slightly lower limit, in turn, when the pause is over."""
        if self.kv_peak is not None and self.kv_peak < _KV_EMPTY:
            self.ceiling, self._before, self._pause = None, None, PAUSE
            return None
        self._left -= 1
        if self._left > 0:
            return None
        if self._before is not None:
            if self._level.rate <= self._before.rate:
                return self._gone_back(self._before)
            self._pause = max(PAUSE, self._pause // 2)
        elif self._down_next:
            self._down_next = False
            self._above, self._sinking = self._level, False
            return self._moved_to(limit * _TRY_LESS)
        self._down_next = True
        self._before, self._left = self._level, PAUSE
        self.ceiling = limit * _TRY_MORE + 1
        self._level = Level(round(self.ceiling))
        return self.ceiling
