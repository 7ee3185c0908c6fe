"""The progress of the swarm's jobs, from the files that their workers rewrite every second, and the
replicas' time by use.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from domyn_swarm.backends.gpu_time import Use
from domyn_swarm.model import FINAL_REPLICA_STATES, JobProgress, Record, ReplicaReport, ReplicaState
from domyn_swarm.paths import JobPaths

_LOOKED_AT = 500  # the newest jobs; ids sort by time
_TOLD_FOR = timedelta(minutes=15)  # after its last report; every scraper has read it by then


class FollowedJob(Record):
    """A job that reported recently."""

    job_id: str
    progress: JobProgress


class JobsFolder:
    """Reads few files: a job that has ended is not read again. Blocking."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._over: set[str] = set()

    def read(self, now: datetime) -> list[FollowedJob]:
        """The jobs that reported in the last quarter of an hour, the oldest first."""
        try:
            names = sorted((one.name for one in self._folder.iterdir()), reverse=True)
        except OSError:  # no job was submitted yet
            return []
        found = []
        for name in names[:_LOOKED_AT]:
            job = None if name in self._over else self._read(name)
            if job is None:
                continue
            if now - job.progress.updated_at <= _TOLD_FOR:
                found.append(job)
            elif job.progress.state == "ended":
                self._over.add(name)
        self._over.intersection_update(names)
        return found[::-1]

    def _read(self, name: str) -> FollowedJob | None:
        path = JobPaths(self._folder / name).progress
        try:
            progress = JobProgress.model_validate_json(path.read_text("utf-8"))
        except (OSError, ValueError):  # not started, a script, or written by another version
            return None
        return FollowedJob(job_id=name, progress=progress)


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
        """Add a report; the time until it is counted by the report before it."""
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
        """All seconds so far. Whether rows waited while a replica was idle is judged, for the time
        since the last reading, by the present state of the jobs.
        """
        for replica in list(self._heard):
            self._pass(replica, now)
        use = Use.ROWS_WAIT if any(map(_has_rows, jobs)) else Use.NO_WORK
        for replica, seconds in self._idle.items():
            self._add(replica, use, seconds)
        self._idle.clear()
        return dict(self._seconds)


def _use_of(report: ReplicaReport) -> Use | None:
    """The use of a replica's time; None: it holds no resources any more."""
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
