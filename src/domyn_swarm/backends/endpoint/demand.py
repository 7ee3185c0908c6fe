"""The demand on an elastic swarm: rows that its jobs have left, and how fast a place settles them;
requests of other clients, and clients that were rejected and will retry.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from domyn_swarm.backends.endpoint.collector import Collector
from domyn_swarm.backends.endpoint.doorkeeper import RETRY_AT_MOST_S, Doorkeeper
from domyn_swarm.backends.endpoint.elastic import EndingRows, Work
from domyn_swarm.backends.endpoint.supervision import Activity
from domyn_swarm.backends.endpoint.use_meter import JobsFolder
from domyn_swarm.model import JobProgress, utc_now
from domyn_swarm.paths import SwarmPaths
from domyn_swarm.probing import Clock

_SILENT_JOB_S = 20.0  # workers rewrite their progress every second
_ASKED_FOR_S = 10.0  # how long a job's request for replicas counts
_COMES_AGAIN_S = 600.0  # after this time a rejected client is assumed to have given up
_STILL_S = 2.0  # a request seen this recently may still be in flight


class Demand:
    """Measures the demand when asked to. `activity` asks the router; `door` stands in for the
    replicas while there are none.
    """

    def __init__(
        self,
        paths: SwarmPaths,
        collector: Collector,
        activity: Callable[[], Awaitable[Activity | None]],
        door: Doorkeeper | None,
        clock: Clock,
    ) -> None:
        self._collector = collector
        self._activity = activity
        self._door = door
        self._clock = clock
        self._jobs = _Jobs(paths, clock)
        self._requests: float | None = None
        self._looked = collector.drivers_looked
        self._asked_for_until = 0.0
        self._clients_at = self._work_at = self._jobs_at = -math.inf
        self._turned_away = 0
        self._awake_since: float | None = None  # when a replica began to serve
        self._awaited_until = -math.inf  # until when a rejected client may retry

    @property
    def rows_per_place_s(self) -> float | None:
        """The rows that one place settles per second; None: not known yet."""
        return self._jobs.speed.rows_per_place_s

    @property
    def rows_unsent(self) -> int:
        """Rows of jobs that are not in flight."""
        return self._jobs.unsent

    @property
    def may_be_in_flight(self) -> bool:
        """Whether any client may have a request in flight, judged without asking the engines."""
        lately = self._clock.monotonic() - self._clients_at < _STILL_S
        return lately or self._jobs.in_flight > 0

    async def look(self, ready: int) -> Work:
        """Measure the demand now; `ready` is the number of places that serve."""
        now = self._clock.monotonic()
        jobs = await asyncio.to_thread(self._jobs.look, ready)
        activity = await self._activity()
        self._collector.used_by_router = None if activity is None else activity.usable
        requests = 0.0 if self._door is None else float(self._door.held)
        if activity is not None:
            requests = max(requests, activity.in_flight)
            if self._requests is not None and activity.requests != self._requests:
                self._clients_at = now
            self._requests = activity.requests
        self._await_the_turned_away(now)
        if requests:
            self._clients_at = now
        if self._collector.drivers_looked != self._looked:
            self._looked = self._collector.drivers_looked
            self._asked_for_until = now + _ASKED_FOR_S
        if jobs.known:
            self._jobs_at = now
        asks = now < self._asked_for_until and now - self._jobs_at > _ASKED_FOR_S
        asks = asks or now < self._awaited_until or jobs.unknown
        if requests or jobs.left or asks:
            self._work_at = now
        return Work(
            rows_left=jobs.left,
            rows_unsent=jobs.unsent,
            requests=requests,
            asked_for=asks,
            quiet_s=now - self._work_at,
            clients_quiet_s=now - self._clients_at,
            ending=jobs.ending,
        )

    def _await_the_turned_away(self, now: float) -> None:
        """Keep a replica for rejected clients, once one serves, for the longest `Retry-After` that
        was sent: they will retry.
        """
        if not self._collector.serving_replicas():
            self._awake_since = None
        elif self._awake_since is None:
            self._awake_since = now
        if self._door is None:
            return
        if self._door.turned_away != self._turned_away:
            self._turned_away = self._door.turned_away
            self._awaited_until = now + _COMES_AGAIN_S
        if self._awake_since is not None:
            came = self._clients_at > self._awake_since
            until = self._awake_since + RETRY_AT_MOST_S
            self._awaited_until = -math.inf if came else min(self._awaited_until, until)


class _Sample(NamedTuple):
    at: float
    rows: float  # settled since the beginning
    place_s: float  # seconds of places that were ready, since the beginning


class RowSpeed:
    """The rows that one place settles per second, over the last `window_s`."""

    def __init__(self, window_s: float = 60.0, least_s: float = 5.0) -> None:
        self._window_s = window_s
        self._least_s = least_s
        self._samples: deque[_Sample] = deque()

    def add(self, now: float, rows: float, ready: int) -> None:
        """Add a sample: `rows` settled by `now` (seconds), and `ready` places that serve."""
        last = self._samples[-1] if self._samples else None
        if last is not None and rows < last.rows:  # the samples are of other jobs
            self._samples.clear()
            last = None
        place_s = 0.0 if last is None else last.place_s + (now - last.at) * ready
        self._samples.append(_Sample(now, rows, place_s))
        while len(self._samples) > 2 and now - self._samples[1].at >= self._window_s:
            self._samples.popleft()

    def forget(self) -> None:
        """Drop the samples: other jobs run from now on."""
        self._samples.clear()

    @property
    def rows_per_place_s(self) -> float | None:
        """Over the window; None: too few samples, or no row was settled."""
        if not self._samples:
            return None
        first, last = self._samples[0], self._samples[-1]
        place_s, rows = last.place_s - first.place_s, last.rows - first.rows
        return rows / place_s if place_s >= self._least_s and rows > 0 else None


class _Jobs:
    """The remaining rows of the swarm's jobs, by the progress files of their workers. A job whose
    worker has not written for a while, by this machine's clock, counts as not running.
    """

    def __init__(self, paths: SwarmPaths, clock: Clock) -> None:
        self._folder = JobsFolder(paths.jobs)
        self._clock = clock
        self._changed_at: dict[str, tuple[object, float]] = {}
        self._names: frozenset[str] = frozenset()
        self.speed = RowSpeed()
        self.left = self.unsent = self.in_flight = 0
        self.ending: tuple[EndingRows, ...] = ()
        self.known = self.unknown = False  # whether a running job has reported its rows, or has not

    def look(self, ready: int) -> _Jobs:
        """Read the jobs' progress files; `ready` is the number of places that serve. Blocking."""
        under_way = self._under_way()
        now = self._clock.monotonic()
        if under_way.keys() != self._names:
            self._names = frozenset(under_way)
            self.speed.forget()
        if under_way:
            settled = sum(one.rows_done - one.rows_resumed for one in under_way.values())
            self.speed.add(now, settled, ready)
        sized = [one for one in under_way.values() if one.rows_total is not None]
        self.known = bool(sized)
        self.unknown = len(sized) < len(under_way)
        self.in_flight = sum(one.in_flight for one in under_way.values())
        self.left = sum(max(0, (one.rows_total or 0) - one.rows_done) for one in sized)
        self.unsent = sum(_unsent(one) for one in sized)
        self.ending = tuple(
            EndingRows(one.ends_in_s, _unsent(one)) for one in sized if one.ends_in_s is not None
        )
        return self

    def _under_way(self) -> dict[str, JobProgress]:
        now, found = self._clock.monotonic(), {}
        jobs = self._folder.read(utc_now())
        for job in jobs:
            one = job.progress
            before = self._changed_at.get(job.job_id)
            if before is None:  # the job's worker may have ended long ago
                age_s = max(0.0, (utc_now() - one.updated_at).total_seconds())
                before = self._changed_at[job.job_id] = (one.updated_at, now - age_s)
            elif before[0] != one.updated_at:
                before = self._changed_at[job.job_id] = (one.updated_at, now)
            at_work = one.state in ("starting", "running", "paused")
            if at_work and now - before[1] < _SILENT_JOB_S:
                found[job.job_id] = one
        for gone in self._changed_at.keys() - {job.job_id for job in jobs}:
            del self._changed_at[gone]
        return found


def _unsent(job: JobProgress) -> int:
    return max(0, (job.rows_total or 0) - job.rows_done - job.in_flight)
