"""What the dashboard shows: the services' answers, asked once for everybody who asks meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Generic, TypeVar

from domyn_swarm.backends.endpoint.view import ReplicaEvent
from domyn_swarm.cli.dashboard.pages import JOBS_SHOWN, job_page, overview, swarm_page
from domyn_swarm.errors import JobNotFound, SwarmError, SwarmNotFound, words_of
from domyn_swarm.logs import get_logger
from domyn_swarm.model import FailureGroup, Record, utc_now
from domyn_swarm.services.courses import replica_charts
from domyn_swarm.services.jobs import JobService
from domyn_swarm.services.report_page import course_charts, drawn, render
from domyn_swarm.services.swarms import SwarmService
from domyn_swarm.state import SwarmStore
from domyn_swarm.swarm.snapshot import JobList, JobSnapshot, SwarmList, SwarmSnapshot

_log = get_logger(__name__)

_T = TypeVar("_T")
_WAIT_S = 2.0  # who asks gets what was known before when a look takes longer
_AT_ONCE = 4  # looks, each on a thread
_KEPT = 64  # of those that nobody has asked for, the oldest go
_BUG = "The dashboard failed: its terminal shows why."


@dataclass(frozen=True)
class Seen(Generic[_T]):
    """What is known of something, and since when."""

    value: _T | None = None  # None: nothing yet
    at: datetime | None = None  # when the look began that saw it
    problem: str | None = None  # why nothing newer is known
    gone: bool = False  # there is no such thing


class Look(Generic[_T]):
    """Something that is looked at. The next look begins `every_s` after the last one ended."""

    def __init__(self, take: Callable[[], _T], every_s: float, room: asyncio.Semaphore) -> None:
        self._take = take
        self._every_s = every_s
        self._room = room
        self._seen: Seen[_T] = Seen()
        self._due_at = 0.0
        self._running: asyncio.Task[None] | None = None

    async def seen(self) -> Seen[_T]:
        """What is known now; a look is waited for two seconds at most."""
        loop = asyncio.get_running_loop()
        if self._running is None and loop.time() >= self._due_at:
            self._running = loop.create_task(self._look())
        if self._running is not None:
            await asyncio.wait({self._running}, timeout=_WAIT_S)
        return self._seen

    async def _look(self) -> None:
        async with self._room:
            began = utc_now()
            try:
                self._seen = Seen(await _on_thread(self._take), began)
            except (SwarmNotFound, JobNotFound) as error:
                self._seen = replace(self._seen, problem=str(error), gone=True)
            except SwarmError as error:
                self._seen = replace(self._seen, problem=str(error))
            except OSError as error:
                self._seen = replace(self._seen, problem=words_of(error))
            except Exception:  # noqa: BLE001 - the boundary to a browser
                _log.exception("cannot look")
                self._seen = replace(self._seen, problem=_BUG)
        self._due_at = asyncio.get_running_loop().time() + self._every_s
        self._running = None


class Looks:
    """The looks of a dashboard, by what they are at; a bounded number of them is kept."""

    def __init__(self) -> None:
        self._room = asyncio.Semaphore(_AT_ONCE)
        self._looks: OrderedDict[tuple[str, ...], Look[Any]] = OrderedDict()

    def at(
        self, key: tuple[str, ...], make: Callable[[], Callable[[], _T]], every_s: float
    ) -> Look[_T]:
        """The look of this key; `make` makes what takes it, once."""
        look = self._looks.get(key)
        if look is None:
            look = self._looks[key] = Look(make(), every_s, self._room)
        self._looks.move_to_end(key)
        if len(self._looks) > _KEPT:
            self._looks.popitem(last=False)
        return look


async def _on_thread(work: Callable[[], _T]) -> _T:
    """As `asyncio.to_thread`, on a thread that the end of the program does not wait for: platforms
    may take a minute to answer.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_T] = loop.create_future()

    def settle(give: Callable[[Any], None], what: object) -> None:
        if not future.done():
            give(what)

    def run() -> None:
        give: Callable[[Any], None] = future.set_result
        what: object
        try:
            what = work()
        except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
            give, what = future.set_exception, error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, give, what)

    threading.Thread(target=run, name="look", daemon=True).start()
    return await future


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
