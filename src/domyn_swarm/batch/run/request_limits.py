"""The concurrency limits of one run: one for each replica if requests go to replicas directly, else
one for the endpoint. A function of the caller's clock.

Each limit is found by the gauges of its own replica, or by that replica's replies, so that replicas
of unequal speed get unequal shares. A call does not always have a request at a replica (a job's own
code takes time as well), so calls are attributed to replicas in proportion to their requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from domyn_swarm.batch.run.dispatch import AtReplica, Capacity
from domyn_swarm.batch.run.limiter import FIRST_LIMIT, MOST, Limiter, Window
from domyn_swarm.engine_load import EngineLoad

WINDOW_S = 0.5
"""The shortest window that is judged by the run's own throughput, in seconds; gauges are judged at
twice that.
"""
MOST_IN_ALL = 16_384
"""The most calls in flight of one run, however many replicas it has."""

_FIRST_EACH = 32  # per replica if there are many, at the start of the run
_LEAST_SETTLED = 8  # the throughput over fewer rows is noise
_ENOUGH = 3.0  # answers for each request in flight, not counting those of before the limit changed
_ENOUGH_TO_RACE = 2.0
_DRAINED = 1.1  # times the limit in flight, after it shrank
_LONGEST_S = 60.0
_GAUGED_S = 30.0  # after its last gauges, during which a replica is not judged by its replies
_ABSENT_KEPT = 1024  # replicas that left and may return


class ReplicaLoad(NamedTuple):
    """The load of one replica's engine, from the poll of this number."""

    look: int
    load: EngineLoad


class Loads(NamedTuple):
    """The gauges of engines: their sum, and those of each engine that answered."""

    together: EngineLoad
    each: Mapping[str, ReplicaLoad] = {}


class Sight(NamedTuple):
    """An observation of a run at one moment. Counts are since the run began."""

    at_s: float
    calls: float  # in flight
    settled: int  # rows
    turned_away: int  # requests
    replicas: Mapping[str, AtReplica] = {}  # by URL, if requests go to replicas directly
    tokens: int = 0  # generated, in all replies

    @property
    def everywhere(self) -> AtReplica:
        """All servers as one."""
        return AtReplica(round(self.calls), self.settled, self.turned_away, self.tokens)


@dataclass
class _Server:
    """One limit, and the window by which it is judged next."""

    limiter: Limiter
    began_s: float
    before: AtReplica  # when the window began
    in_flight: list[float] = field(default_factory=list)
    look: int = 0
    gauged_s: float | None = None
    has_changed: bool = False  # answers so far are to requests from before the limit changed

    def begin(self, at_s: float, at: AtReplica) -> None:
        """Begin another window."""
        self.began_s, self.before = at_s, at
        self.in_flight.clear()

    def judge(self, at_s: float, at: AtReplica, load: EngineLoad | None) -> bool:
        """Judge the window if it was long enough, and begin another; return whether it was."""
        seconds, done = at_s - self.began_s, at.answered - self.before.answered
        tokens = at.tokens - self.before.tokens
        if load is not None:
            self.gauged_s = at_s
        elif self._waits(at_s, at):
            return False
        mean = sum(self.in_flight) / len(self.in_flight)
        turned_away, limit = at.turned_away - self.before.turned_away, self.limiter.limit
        self.limiter.judge(Window(seconds, done, turned_away, mean, load, tokens))
        self.has_changed = self.limiter.limit != limit
        self.begin(at_s, at)
        return True

    def _waits(self, at_s: float, at: AtReplica) -> bool:
        """Whether the window is too short to be judged without gauges."""
        if self.gauged_s is not None and at_s - self.gauged_s < _GAUGED_S:
            return True
        seconds, done = at_s - self.began_s, at.answered - self.before.answered
        if seconds >= _LONGEST_S or (seconds >= WINDOW_S and self.limiter.fails(seconds, done)):
            return False
        return not self._tells(at_s, at)

    def _tells(self, at_s: float, at: AtReplica) -> bool:
        """Whether the window has enough answers to requests from under the present limit."""
        done, at_once = at.answered - self.before.answered, self.in_flight[-1]
        is_racing = self.limiter.is_racing
        if self.has_changed:
            drains = at_once > _DRAINED * self.limiter.limit + 1 and done < _ENOUGH * at_once
            if not drains and (is_racing or done >= at_once):
                self.has_changed = False
                self.begin(at_s, at)
            return False
        each = _ENOUGH_TO_RACE if is_racing else _ENOUGH
        return at_s - self.began_s >= WINDOW_S and done >= max(_LEAST_SETTLED, each * at_once)


class Limits:
    """The limits of a run, in total and per replica."""

    def __init__(self, first: int = FIRST_LIMIT) -> None:
        self._whole: _Server | None = None
        self._first = first
        self._servers: dict[str, _Server] = {}
        self._absent: dict[str, _Server] = {}

    @property
    def total(self) -> int:
        """Calls in flight, at most."""
        if self._servers:
            limits = [one.limiter.limit for one in self._servers.values()]
            return min(MOST_IN_ALL, sum(limits))
        return self._first if self._whole is None else self._whole.limiter.limit

    @property
    def capacities(self) -> dict[str, Capacity]:
        """The limit of each replica; empty if there is one limit for all."""
        return {
            url: Capacity(server.limiter.limit, server.limiter.is_firm)
            for url, server in self._servers.items()
        }

    def skip(self, sight: Sight) -> None:
        """Discard the time until now: the run was paused."""
        self._follow(sight)
        for url, server in self._servers.items():
            at = sight.replicas[url]
            server.begin(sight.at_s, at)
        if self._whole is not None:
            self._whole.begin(sight.at_s, sight.everywhere)

    def observe(self, sight: Sight, loads: Loads | None) -> bool:
        """Add an observation, with gauges if they were polled just now. Returns whether a limit was
        judged, or replicas came or went.
        """
        changed = self._follow(sight)
        if self._whole is not None:
            self._whole.in_flight.append(sight.calls)
            together = None if loads is None else loads.together
            judged = self._whole.judge(sight.at_s, sight.everywhere, together)
            return changed or judged
        requests = sum(one.in_flight for one in sight.replicas.values())
        calls_each = sight.calls / requests if requests else 0.0
        for url, server in self._servers.items():
            at = sight.replicas[url]
            server.in_flight.append(at.in_flight * calls_each)
            load = _newer(server, None if loads is None else loads.each.get(url))
            changed |= server.judge(sight.at_s, at, load)
        return changed

    # -- replicas that come and go -------------------------------------------------------------

    def _follow(self, sight: Sight) -> bool:
        if not sight.replicas:
            return self._one_for_all(sight)
        if sight.replicas.keys() == self._servers.keys():
            return False
        for url in self._servers.keys() - sight.replicas.keys():
            self._absent[url] = self._servers.pop(url)
        while len(self._absent) > _ABSENT_KEPT:
            self._absent.pop(next(iter(self._absent)))
        first, racing = self._for_new(len(sight.replicas))
        for url, at in sight.replicas.items():
            if url not in self._servers:
                server = self._absent.pop(url, None)
                if server is None:
                    limiter = Limiter(first, racing=racing)
                    server = _Server(limiter, sight.at_s, at)
                server.begin(sight.at_s, at)
                self._servers[url] = server
        self._whole = None
        return True

    def _for_new(self, replicas: int) -> tuple[int, bool]:
        """The limit of a new replica, and whether it races from there."""
        known = [one.limiter.limit for one in self._servers.values()]
        if known:  # it is probably like the others
            return -(-sum(known) // len(known)), False
        return max(_FIRST_EACH, self.total // replicas), True

    def _one_for_all(self, sight: Sight) -> bool:
        if self._whole is not None:
            return False
        raced = bool(self._servers)
        limiter = Limiter(min(MOST, self.total), racing=not raced)
        self._absent.update(self._servers)
        self._servers = {}
        self._whole = _Server(limiter, sight.at_s, sight.everywhere)
        return raced


def _newer(server: _Server, known: ReplicaLoad | None) -> EngineLoad | None:
    """The load of a replica; None: not known, or judged already."""
    if known is None or known.look == server.look:
        return None
    server.look = known.look
    return known.load
