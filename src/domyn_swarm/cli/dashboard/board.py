"""What the dashboard looks at: the services, as `status`, `job list` and `top` ask them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from domyn_swarm.backends.endpoint.view import ReplicaEvent
from domyn_swarm.cli.dashboard.looks import Look, Looks
from domyn_swarm.cli.dashboard.pages import JOBS_SHOWN, job_page, overview, swarm_page
from domyn_swarm.errors import SwarmError
from domyn_swarm.model import FailureGroup, Record, utc_now
from domyn_swarm.services.jobs import JobService
from domyn_swarm.services.replica_course import replica_charts
from domyn_swarm.services.report_page import course_charts, drawn, render
from domyn_swarm.services.swarms import SwarmService
from domyn_swarm.state import SwarmStore
from domyn_swarm.swarm.snapshot import JobList, JobSnapshot, SwarmList, SwarmSnapshot

_HISTORY_S = 30.0  # that of a swarm whose replicas stay as they are is read so often
_HEAVY_S = 5.0  # between two looks at what reads a job's accounts or its whole checkpoint


@dataclass(frozen=True)
class Sight:
    """One look: the page as JSON, and the records that it shows, by name."""

    page: str
    records: dict[str, Record]


class Board:
    """The looks of one home. Reads; what it asks is what `status` and `job status` ask."""

    def __init__(self, store: SwarmStore, every_s: float) -> None:
        self._swarms = SwarmService(store)
        self._jobs = JobService(store)
        self._every_s = every_s
        self._looks = Looks()

    def everything(self) -> Look[Sight]:
        """All live swarms, and the newest jobs: `swarms` and `jobs`."""
        return self._looks.at(("",), lambda: self._everything, self._every_s)

    def swarm(self, name: str) -> Look[Sight]:
        """One `swarm`."""
        return self._looks.at(
            ("swarm", name), lambda: _SwarmLook(self._swarms, name).take, self._every_s
        )

    def job(self, job_id: str) -> Look[Sight]:
        """One `job`."""
        return self._looks.at(("job", job_id), lambda: _JobLook(self._jobs, job_id).take, _HEAVY_S)

    def report(self, job_id: str) -> Look[str]:
        """The report of a job, as HTML."""
        take: Callable[[], str] = lambda: render(self._jobs.gathered(job_id))  # noqa: E731
        return self._looks.at(("report", job_id), lambda: take, _HEAVY_S)

    def _everything(self) -> Sight:
        swarms = SwarmList(swarms=tuple(self._swarms.list()))
        newest = tuple(self._jobs.list(newest=JOBS_SHOWN))
        jobs = JobList(jobs=newest, left_out=max(0, self._jobs.count() - len(newest)))
        page = overview(swarms.swarms, jobs, utc_now())
        return Sight(page.model_dump_json(), {"swarms": swarms, "jobs": jobs})


class _SwarmLook:
    """Looks at one swarm, and reads its history when the states of its replicas have changed."""

    def __init__(self, service: SwarmService, name: str) -> None:
        self._service = service
        self._name = name
        self._history: tuple[ReplicaEvent, ...] = ()
        self._states: object = None  # as the history was read
        self._due_at = 0.0

    def take(self) -> Sight:
        """Raises what `SwarmService.status` does."""
        swarm = self._service.status(self._name)
        states = tuple((one.state, one.stale, one.restarts) for one in swarm.replicas)
        if states != self._states or time.monotonic() >= self._due_at:
            self._history = self._service.history(self._name) or self._history
            self._states, self._due_at = states, time.monotonic() + _HISTORY_S
        now = {one.index: one.state.value for one in swarm.replicas}
        ended = self._history and not swarm.phase.live
        until = self._history[-1].reported_at if ended else utc_now()
        charts = [drawn(one) for one in replica_charts(self._history, now, until)]
        return _sight(swarm, swarm_page(swarm, charts, utc_now()).model_dump_json())


class _JobLook:
    """Looks at one job, and groups its failures when more of its rows have failed."""

    def __init__(self, service: JobService, job_id: str) -> None:
        self._service = service
        self._job_id = job_id
        self._groups: tuple[FailureGroup, ...] = ()
        self._failed = 0  # rows, as they were grouped

    def take(self) -> Sight:
        """Raises what `JobService.status` does; what of its files cannot be read is said."""
        job = self._service.status(self._job_id)
        charts: list[str] = []
        note = ""
        if job.output is not None:  # no script
            try:
                gathered = self._service.gathered(self._job_id, failures=False)
                charts = [drawn(one) for one in course_charts(gathered)]
                self._group(job)
            except SwarmError as error:
                note = error.message
        return _sight(job, job_page(job, self._groups, charts, note).model_dump_json())

    def _group(self, job: JobSnapshot) -> None:
        if job.rows_failed != self._failed:
            self._groups = self._service.failures(self._job_id).groups
            self._failed = job.rows_failed


def _sight(record: SwarmSnapshot | JobSnapshot, page: str) -> Sight:
    kind = "swarm" if isinstance(record, SwarmSnapshot) else "job"
    return Sight(page, {kind: record})
