"""The concurrency limit of one server, found by measurement: it climbs to the knee and stays there.

The knee is the least concurrency at which the server reaches its full speed. It is located by one
of two sources, the first that is available:

- the engine's own gauges of requests running and waiting. If nothing waits there is room: climb. If
  more than a few wait, shrink by this job's share of the surplus, so that two jobs on one engine
  settle at equal shares. Beyond some concurrency an engine may become slower, when its KV memory
  does not hold what runs, and requests are preempted and computed again. A fuller memory makes the
  climb gentle. Such preemptions shrink the limit at once, and so do generated tokens per second
  that fell twice in a row as the limit rose. Which of the two limits is kept is decided by tokens
  per second alone: those of the higher limit count with its bad windows. Later a tenth more is
  tried, after a pause that doubles with each attempt that did not pay;
- otherwise this job's throughput: climb while more concurrency raises it, step back when it does
  not, try higher and lower limits again, at growing intervals while that changes nothing.

Refusals (429) shrink the limit at once in either case. While more requests are in flight than the
limit allows, after it shrank, nothing is judged: its effect has not begun.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from domyn_swarm.engine_load import EngineLoad

FIRST_LIMIT = 64
LEAST = 1
MOST = 4096

_USED = 0.8  # of the limit: windows with less in flight are not judged
_RACE = 2.0  # the factor of the climb until the knee is reached for the first time,
_RACE_WORTH_IT = 0.1  # and the share of the added concurrency that must come back as throughput
_COSTS_NOTHING = 0.05  # of the throughput
_SLACK = 1.1  # above the concurrency that is taken for the knee
_LOOK_UP = 1.25  # without gauges: the factor of later trials above the knee
_LOOK_DOWN = 0.8
_WORTH_IT = 0.1
_LOOK_AGAIN = 2  # windows at rest before the next trial,
_LOOK_AGAIN_MOST = 16  # the longest rest: it doubles after each trial that changed nothing
_CLIMB = 1.5  # with gauges: the factor of a climb
_TURNED_AWAY = 0.7
_WAITING_SHARE = 0.10  # of the running requests: a queue this long keeps the engine full
_WAITING_FLOOR = 2.0
_ADMITTED_SHARE = 0.05  # this part may be about to be admitted
_EMPTY_WINDOWS = 3
_KV_FULL = 0.85  # of the KV memory: above it the limit rises only step by step
_KV_FADES = 0.95  # factor per window of the peak of the used memory
_KV_EMPTY = 0.4  # below this use of the memory no cliff is possible
_PREEMPTED = 0.02  # of the running requests, per second: ignored below
_SMOOTH = 0.7  # the weight of the newest window among preemptions,
_LEVEL = 0.25  # and the least weight among the tokens per second at one limit
_SETTLED = 2  # windows after which the throughput of a lower limit is reliable
_STEP_BACK = 0.9
_RETREAT = 0.8  # factor after throughput collapsed, or if the last step back was too small
_COLLAPSED = 0.6
_SLOWER = 0.92  # of the best tokens per second: below it a window counts as slower,
_SLOWER_WINDOWS = 2  # twice in a row is not noise
_FALLS = 2  # in a row, after which the limit before the fall is discarded
_FASTER = 1.02
_HIGHER = 1.1  # times that limit
_FORGETS = 0.99  # factor per window of the best throughput: requests change over time
PAUSE = 10  # windows below a cliff before a little more is tried,
PAUSE_MOST = 320  # the longest pause: it doubles after each attempt that did not pay
_TRY_MORE = 1.1
_TRY_LESS = 0.95
_CREEP = 0.02  # of all requests at the engine, equal for every job, so that shares converge


class Window(NamedTuple):
    """The measurements since the limit was last judged."""

    seconds: float
    settled: int  # answered requests
    turned_away: int
    in_flight: float  # calls of this job, mean over the window
    load: EngineLoad | None = None  # of the whole server, including other jobs; None: unknown


@dataclass
class _Level:
    """The throughput at one limit, weighted towards the newest windows."""

    limit: int
    rate: float = 0.0
    windows: int = 0

    def add(self, rate: float) -> None:
        self.windows += 1
        self.rate += max(_LEVEL, 1 / self.windows) * (rate - self.rate)


@dataclass
class _Trial:
    """A limit on trial, and the limit to return to."""

    from_limit: int
    from_rate: float


class Limiter:
    """Judges window after window; `limit` is the number of calls that may be in flight."""

    def __init__(self, first: int = FIRST_LIMIT, most: int = MOST, *, racing: bool = True) -> None:
        """`racing`: the knee has not been reached yet."""
        self.limit = min(first, most)
        self._most = most
        self._racing = racing
        self._throughput = _ByThroughput(racing=racing)
        self._no_queue = 0  # windows without a queue
        self._waited = float("inf")  # in the last window
        self._cliff = _Cliff(self.limit)

    @property
    def is_firm(self) -> bool:
        """Whether more than the limit makes the server slower, rather than only its queue
        longer.
        """
        return self._cliff.ceiling is not None

    def judge(self, window: Window) -> int:
        """The limit from now on. A window in which the limit was not used up changes nothing."""
        if window.turned_away:
            self._set(self.limit * _TURNED_AWAY)
            self._racing = False
            self._throughput.rest()
        elif window.load is not None:
            if window.in_flight <= 1.1 * self.limit + 1:
                self._by_gauges(window, window.load)
        elif window.in_flight >= _USED * self.limit and window.seconds > 0:
            self._set(self._throughput.judge(self.limit, window.settled / window.seconds))
        return self.limit

    def _set(self, limit: float) -> None:
        self.limit = max(LEAST, min(self._most, round(limit)))

    def _by_gauges(self, window: Window, load: EngineLoad) -> None:
        is_used = window.in_flight >= _USED * self.limit
        rows_s = window.settled / window.seconds if window.seconds > 0 else 0.0
        lower_or_higher = self._cliff.judge(self.limit, rows_s, load, is_used=is_used)
        if lower_or_higher is not None:
            self._racing = False
            self._set(lower_or_higher)
            return
        waiting, everyone = load.waiting, load.running + load.waiting
        lasting, self._waited = min(waiting, self._waited), waiting
        enough = max(2 * _WAITING_FLOOR, 2 * _WAITING_SHARE * load.running)
        is_queue = waiting > max(_WAITING_FLOOR, _ADMITTED_SHARE * load.running)
        self._no_queue = 0 if is_queue else self._no_queue + 1
        if is_queue:
            self._racing = False
        if lasting > enough:
            share = min(1.0, window.in_flight / max(1.0, everyone))
            self._set(self.limit - (lasting - enough) * share)
        elif waiting <= enough and is_used:
            self._set(self._higher(load, everyone))

    def _higher(self, load: EngineLoad, everyone: float) -> float:
        """A higher limit. At the knee the queue is empty at times; if there is room, for long."""
        tells = load.tokens_s is not None and load.preemptions_s is None  # by nothing else
        if self._racing and tells and not self._cliff.was_worth_it():
            self._racing = False
            return self._cliff.looked_below()
        creep = self.limit + max(1.0, _CREEP * everyone)
        if self._no_queue < (1 if self._racing else _EMPTY_WINDOWS):
            return creep
        climb = self.limit * (_RACE if self._racing else _CLIMB)
        if self._cliff.kv_peak:
            climb = min(climb, self.limit * _KV_FULL / self._cliff.kv_peak)
        return self._cliff.bounded(max(creep, climb))


class _Cliff:
    """The concurrency beyond which an engine becomes slower, by preemptions and tokens per
    second.
    """

    def __init__(self, limit: int) -> None:
        self.ceiling: float | None = None  # None: no cliff is known
        self._pause = self._left = PAUSE
        self.kv_peak: float | None = None  # the highest recent use of the KV memory
        self._preempted_s = 0.0  # over the last windows
        self._counts_tokens = False
        self._best = _Level(limit)  # the fastest
        self._slower = 0  # consecutive windows slower than that, at a higher limit
        self._level = _Level(limit)
        self._above: _Level | None = None  # the higher limit that was left
        self._sinking = False  # since a higher limit was slower, without a preemption
        self._falls = 0  # consecutive reductions that were too small
        self._before: _Level | None = None  # the limit to return to if the attempt does not pay
        self._went_back = False  # in the last window
        self._raced_from = 0.0  # the throughput before the limit was doubled
        self._down_next = False

    def bounded(self, limit: float) -> float:
        """The limit, at most the ceiling."""
        return limit if self.ceiling is None else min(limit, self.ceiling)

    def judge(self, limit: int, rows_s: float, load: EngineLoad, *, is_used: bool) -> float | None:
        """Another limit, or None: as far as memory goes this limit may stay, or creep up. Rows
        count instead of tokens if the engine does not count tokens.
        """
        if not 0.95 * self._level.limit <= limit <= 1.05 * self._level.limit + 1:
            self._level = _Level(limit)
        if self._went_back:  # preempted requests are still computed again
            self._went_back = False
            return limit
        rate = self._rate(limit, rows_s, load.tokens_s)
        self._level.add(rate)
        if load.kv_usage is not None:  # answers that began together fill it together
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
        if not self._counts_tokens:  # its first counter: the recorded throughput was of rows
            self._counts_tokens = True
            self._level, self._above, self._before = _Level(limit), None, None
        return tokens_s

    def was_worth_it(self) -> bool:
        """Whether the last doubling raised the throughput."""
        before, self._raced_from = self._raced_from, self._level.rate
        return self._raced_from > (1 + _RACE_WORTH_IT) * before

    # -- back -----------------------------------------------------------------------------------

    def looked_below(self) -> float:
        """A lower limit, to test whether it is faster."""
        self._above, self._sinking = self._level, True
        return self._moved_to(self._level.limit * _RETREAT)

    def _retreated(self, limit: int, rate: float, *, sinking: bool) -> float:
        """A lower limit, at once."""
        before, level, self._before = self._before, self._level, None
        self._slower, self._best = 0, _Level(limit)
        self._preempted_s, self._sinking = 0.0, sinking
        if before is not None and level.rate <= before.rate:
            return self._gone_back(before)
        self._falls = 1 if level.windows > _SETTLED else self._falls + 1
        if sinking or self._falls == 1:
            self._above = level
        elif self._falls > _FALLS:  # its recorded throughput is out of date
            self._above = None
        if sinking:
            return self._moved_to(limit)
        usual = before.rate if before is not None else level.rate
        is_far = rate < _COLLAPSED * usual or (self._above is None and self.ceiling is not None)
        return self._moved_to(limit * (_RETREAT if is_far else _STEP_BACK))

    def _gone_back(self, before: _Level) -> float:
        self._pause = min(PAUSE_MOST, 2 * self._pause)
        self._level, self._before, self._above = before, None, None
        self._went_back = True
        self.ceiling, self._left = before.limit, self._pause
        return before.limit

    def _moved_to(self, limit: float) -> float:
        limit = max(LEAST, int(limit))
        self._level = _Level(limit)
        self.ceiling, self._left = limit, self._pause
        return limit

    def _compared(self, above: _Level) -> float | None:
        """The limit with more tokens per second, once the lower limit has settled."""
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
        """Whether fewer tokens are generated than at a lower limit. While requests wait for their
        prefill, an engine that counts preemptions is slow for that reason.
        """
        level, best = self._level, self._best
        if level.rate >= best.rate or not self._counts_tokens:
            self._best, self._slower = _Level(level.limit, level.rate), 0
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
        """In turn, a slightly higher limit when the pause is over, or a slightly lower one."""
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
        self._level = _Level(round(self.ceiling))
        return self.ceiling


class _ByThroughput:
    """A limit judged by throughput alone."""

    def __init__(self, *, racing: bool) -> None:
        self._trial: _Trial | None = None
        self._racing = racing
        self._raced = False  # whether doubling has paid so far
        self._climbing = racing
        self._resting = 0
        self._patience = _LOOK_AGAIN
        self._up_next = True

    def rest(self) -> None:
        """Schedule the next trial."""
        self._trial = None
        self._climbing = self._racing = False
        self._resting = 0

    def judge(self, limit: int, rate: float) -> float:
        """The limit after a window that used it up."""
        if self._trial is not None:
            return self._after(self._trial, limit, rate)
        if self._climbing:
            return self._try(limit, limit * (_RACE if self._racing else _LOOK_UP), rate)
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
        """Double as long as it pays; if it never did, halve as long as that costs nothing."""
        grown = limit / trial.from_limit - 1
        if grown > 0 and gained >= _RACE_WORTH_IT * grown:
            self._raced = True
            return self._try(limit, limit * _RACE, rate)
        if grown > 0 and not self._raced:
            return self._try(trial.from_limit, trial.from_limit / _RACE, trial.from_rate)
        if grown < 0 and gained > -_COSTS_NOTHING:
            return self._try(limit, limit / _RACE, max(rate, trial.from_rate))
        # Little's law: this concurrency is busy at the latency of an idle server
        up = grown > 0
        ratio = 1 + gained if up else 1 / max(0.1, 1 + gained)
        low = trial.from_limit if up else limit
        self.rest()
        return low * max(1.0, ratio) * _SLACK
