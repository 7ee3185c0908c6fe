"""Finds the concurrency limit of one server: climbs to the server's knee and stays there.

The knee is the least concurrency at which the server reaches its highest throughput. It is found by
one of two sources, the first if it is available:

- the engine's own gauges of running and waiting requests. If none waits, there is room, and the
  limit climbs. If more than a few wait, it shrinks by this job's share of the surplus, so that two
  jobs on one engine converge. Beyond some concurrency an engine may become slower, because its KV
  memory does not hold all running requests and some are preempted and computed again. The limit
  climbs in smaller steps as the memory fills. It shrinks at once on preemptions, and when generated
  tokens per second fell twice in a row as the limit rose. Tokens per second alone decide which of
  the two limits is kept; the bad windows of the higher limit count. Later a limit a tenth higher is
  tried, after a pause that doubles with each attempt that did not pay;
- otherwise the throughput of this job's answers (`throughput_search`): the limit climbs while more
  concurrency still adds throughput and steps back when it does not; later trials of higher and
  lower limits become rarer.

Replies that reject requests (429) shrink the limit at once in either case. While more requests are
in flight than a limit that shrank allows, no window is judged: it does not show the effect yet.
"""

from __future__ import annotations

from typing import NamedTuple

from domyn_swarm.batch.run.kv_cliff import KvCliff
from domyn_swarm.batch.run.throughput_search import LEAST, RACE, ThroughputSearch
from domyn_swarm.engine_load import EngineLoad

FIRST_LIMIT = 64
MOST = 4096
_USED = 0.8  # of the limit: with fewer requests in flight a window says nothing about it
_CLIMB = 1.5  # with gauges, where there is room
_TURNED_AWAY = 0.7
_WAITING_SHARE = 0.10  # of the running requests: a queue this long keeps the engine full
_WAITING_FLOOR = 2.0
_ADMITTED_SHARE = 0.05  # this part may be about to be admitted
_EMPTY_WINDOWS = 3
_KV_FULL = 0.85  # of the KV memory: beyond it the limit only creeps
_CREEP = 0.02  # of all requests at the engine, the same for every job, so that shares become equal


class Window(NamedTuple):
    """The measurements since the limit was last judged."""

    seconds: float
    settled: int  # answered requests
    turned_away: int
    in_flight: float  # calls of this job, mean over the window
    load: EngineLoad | None = None  # of the whole server, other jobs included; None: not known
    tokens: int = 0  # of the answers; 0: none, or not counted


class Limiter:
    """Judges window after window; `limit` is the number of calls that may be in flight."""

    def __init__(self, first: int = FIRST_LIMIT, most: int = MOST, *, racing: bool = True) -> None:
        """`racing`: the limit doubles until it reaches the knee for the first time."""
        self.limit = min(first, most)
        self._most = most
        self._racing = racing
        self._throughput = ThroughputSearch(racing=racing)
        self._no_queue = 0  # windows without a queue
        self._waited = float("inf")  # in the last window
        self._cliff = KvCliff(self.limit)

    @property
    def is_firm(self) -> bool:
        """Whether more than the limit makes the server slower, rather than only its queue
        longer.
        """
        return self._cliff.ceiling is not None

    @property
    def is_racing(self) -> bool:
        """Whether the steps are so large that few answers show their effect, without gauges."""
        return self._throughput.is_racing

    def fails(self, seconds: float, answered: int) -> bool:
        """Whether so few answers came that the limit is too high, before the window is over."""
        return self._throughput.fails(self.limit, seconds, answered)

    def judge(self, window: Window) -> int:
        """Return the limit from now on. A window that did not use the limit up changes nothing."""
        if window.turned_away:
            self._set(self.limit * _TURNED_AWAY)
            self._racing = False
            self._throughput.rest()
        elif window.load is not None:
            if window.in_flight <= 1.1 * self.limit + 1:
                self._by_gauges(window, window.load)
        elif window.in_flight >= _USED * self.limit and window.seconds > 0:
            answers_s = window.settled / window.seconds
            tokens_s = window.tokens / window.seconds or None
            self._set(self._throughput.judge(self.limit, answers_s, tokens_s))
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
        """A higher limit. At the knee the queue is empty at times; with room, it stays empty."""
        tells = load.tokens_s is not None and load.preemptions_s is None  # tokens are all it shows
        if self._racing and tells and not self._cliff.was_worth_it():
            self._racing = False
            return self._cliff.looked_below()
        creep = self.limit + max(1.0, _CREEP * everyone)
        if self._no_queue < (1 if self._racing else _EMPTY_WINDOWS):
            return creep
        climb = self.limit * (RACE if self._racing else _CLIMB)
        if self._cliff.kv_peak:
            climb = min(climb, self.limit * _KV_FULL / self._cliff.kv_peak)
        return self._cliff.bounded(max(creep, climb))
