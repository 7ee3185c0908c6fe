"""The limit of one server that finds itself: climbs to the server's knee and stays there.

The knee is the least concurrency at which the server is as fast as it gets. Two sources tell where
it is, the first that is there wins:

- the engine's own gauges of requests running and waiting. Nothing waiting: there is room, climb.
  More waiting than a little: shrink by this job's share of the surplus, so that two jobs on one
  engine come to rest beside each other. Beyond some concurrency an engine may become slower, when
  its KV memory does not hold what runs, and requests are put back to be computed again. A fuller
  memory makes the climb gentle. Such preemptions shrink the limit at once, and so do generated
  tokens per second that fell twice in a row as the limit rose. Which of the two limits is kept is
  decided by tokens per second alone: those of the higher one count with its bad windows. Later a
  tenth more is tried, after a pause that doubles with each attempt that did not pay;
- otherwise what this job's answers bring (`throughput_search`): climb while more concurrency still
  buys throughput, step back when it does not, look up and down again, ever more rarely.

Replies that turn requests away (429) shrink the limit at once in either case. While more is in
flight than the limit allows, since it shrank, nothing is judged: that is not yet its effect.
"""

from __future__ import annotations

from typing import NamedTuple

from domyn_swarm.batch.run.kv_cliff import KvCliff
from domyn_swarm.batch.run.throughput_search import LEAST, RACE, ThroughputSearch
from domyn_swarm.engine_load import EngineLoad

FIRST_LIMIT = 64
MOST = 4096
_USED = 0.8  # of the limit: with less in flight nothing is learned of it
_CLIMB = 1.5  # with gauges, where there is room
_TURNED_AWAY = 0.7
_WAITING_SHARE = 0.10  # of the running requests: a queue this long keeps the engine full
_WAITING_FLOOR = 2.0
_ADMITTED_SHARE = 0.05  # this part may be about to be admitted
_EMPTY_WINDOWS = 3
_KV_FULL = 0.85  # of the KV memory: no climb leads beyond, but a step at a time
_CREEP = 0.02  # of all requests at the engine, the same for every job: so shares become equal


class Window(NamedTuple):
    """The measurements since the limit was last judged."""

    seconds: float
    settled: int  # answered requests
    turned_away: int
    in_flight: float  # calls of this job, mean over the window
    load: EngineLoad | None = None  # of the whole server, other jobs included; None: not known
    tokens: int = 0  # of the answers; 0: they hold none, or they are not counted


class Limiter:
    """Judges window after window; `limit` is the number of calls that may be in flight."""

    def __init__(self, first: int = FIRST_LIMIT, most: int = MOST, *, racing: bool = True) -> None:
        """`racing`: the knee has not been reached yet."""
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
        """Whether its steps are so large that little says where they lead, where no gauge does."""
        return self._throughput.is_racing

    def fails(self, seconds: float, answered: int) -> bool:
        """Whether so few answers make it plain, before a window is over, that it is too high."""
        return self._throughput.fails(self.limit, seconds, answered)

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
        """A higher limit. At the knee the queue is empty at times; if there is room, for long."""
        tells = load.tokens_s is not None and load.preemptions_s is None  # by nothing else
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
