"""What replicas' time goes to, as the collector hears it: for its metrics, which begin anew with
its program. The ledger is what the watchdogs write themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from domyn_swarm.backends.endpoint.job_progress import FollowedJob
from domyn_swarm.backends.gpu_time import Use
from domyn_swarm.model import FINAL_REPLICA_STATES, ReplicaReport, ReplicaState

_USES = {
    ReplicaState.PENDING: Use.QUEUED,
    ReplicaState.STARTING: Use.STARTING,
    ReplicaState.DRAINING: Use.DRAINING,
    ReplicaState.RESTARTING: Use.DEAD,
    ReplicaState.UNHEALTHY: Use.DEAD,
}


class _Heard(NamedTuple):
    at: float
    report: ReplicaReport
    counted_s: float = 0.0  # of the time since then


class UseMeter:
    """Counts seconds of each replica by use. `now` is the caller's monotonic clock."""

    def __init__(self, stale_after_s: float) -> None:
        self._stale_after_s = stale_after_s
        self._heard: dict[int, _Heard] = {}
        self._seconds: dict[tuple[int, Use], float] = {}
        self._idle: dict[int, float] = {}  # since the last reading

    def heard(self, report: ReplicaReport, now: float) -> None:
        """Take in a report; until it came, the one before it held."""
        self._pass(report.replica, now)
        self._heard[report.replica] = _Heard(now, report)

    def _pass(self, replica: int, now: float) -> None:
        last = self._heard.get(replica)
        use = None if last is None else _use_of(last.report)
        if last is None or use is None:
            return
        since_s = now - last.at
        known_s = max(0.0, min(since_s, self._stale_after_s) - last.counted_s)
        if use is Use.NO_WORK:
            self._idle[replica] = self._idle.get(replica, 0.0) + known_s
        else:
            self._add(replica, use, known_s)
        self._add(replica, Use.UNKNOWN, max(0.0, since_s - last.counted_s - known_s))
        self._heard[replica] = last._replace(counted_s=since_s)

    def _add(self, replica: int, use: Use, seconds: float) -> None:
        if seconds:
            self._seconds[replica, use] = self._seconds.get((replica, use), 0.0) + seconds

    def read(self, jobs: Iterable[FollowedJob], now: float) -> Mapping[tuple[int, Use], float]:
        """All seconds so far. Whether rows waited while a replica was idle is judged by the jobs as
        they are now, for the time since the last reading.
        """
        for replica in list(self._heard):
            self._pass(replica, now)
        use = Use.ROWS_WAIT if any(map(_has_rows, jobs)) else Use.NO_WORK
        for replica, seconds in self._idle.items():
            self._add(replica, use, seconds)
        self._idle.clear()
        return dict(self._seconds)


def _use_of(report: ReplicaReport) -> Use | None:
    """None: it holds nothing any more."""
    if report.state in FINAL_REPLICA_STATES:
        return None
    running, waiting = report.requests_running, report.requests_waiting
    if report.state is not ReplicaState.READY:
        busy = report.state is ReplicaState.UNHEALTHY and running
        return Use.WORKING if busy else _USES[report.state]
    if running is None:
        return Use.UNKNOWN
    return Use.WORKING if running or waiting else Use.NO_WORK


def _has_rows(job: FollowedJob) -> bool:
    one = job.progress
    at_work = one.state in ("starting", "running", "paused")
    return at_work and (one.rows_total is None or one.rows_done + one.in_flight < one.rows_total)
