"""The dashboard's data: polls the services, and shares each result between all clients."""

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
from domyn_swarm.services.jobs import JobService
from domyn_swarm.services.report_page import course_charts, drawn, render
from domyn_swarm.services.swarms import SwarmService
from domyn_swarm.services.time_series import replica_charts
from domyn_swarm.state import SwarmStore
from domyn_swarm.swarm.snapshot import JobList, JobSnapshot, SwarmList, SwarmSnapshot

_log = get_logger(__name__)

_T = TypeVar("_T")
_WAIT_S = 2.0  # after which a client gets the previous result
_AT_ONCE = 4  # reads, each on a thread
_KEPT = 64  # polls; the least recently requested one is dropped
_BUG = "The dashboard failed: its terminal shows why."


@dataclass(frozen=True)
class PollResult(Generic[_T]):
    """The last result of a poll."""

    value: _T | None = None  # None: none yet
    at: datetime | None = None  # when the read of this value began
    problem: str | None = None  # why a later read failed
    gone: bool = False  # the swarm or job does not exist


class Poll(Generic[_T]):
    """Reads something on demand, at the earliest `every_s` after the last read ended."""

    def __init__(self, take: Callable[[], _T], every_s: float, room: asyncio.Semaphore) -> None:
        self._take = take
        self._every_s = every_s
        self._room = room
        self._result: PollResult[_T] = PollResult()
        self._due_at = 0.0
        self._running: asyncio.Task[None] | None = None

    async def result(self) -> PollResult[_T]:
        """The latest result. Waits at most `_WAIT_S` for a read that is running or due."""
        loop = asyncio.get_running_loop()
        if self._running is None and loop.time() >= self._due_at:
            self._running = loop.create_task(self._poll())
        if self._running is not None:
            await asyncio.wait({self._running}, timeout=_WAIT_S)
        return self._result

    async def _poll(self) -> None:
        async with self._room:
            began = utc_now()
            try:
                self._result = PollResult(await _on_thread(self._take), began)
            except (SwarmNotFound, JobNotFound) as error:
                self._result = replace(self._result, problem=str(error), gone=True)
            except SwarmError as error:
                self._result = replace(self._result, problem=str(error))
            except OSError as error:
                self._result = replace(self._result, problem=words_of(error))
            except Exception:  # noqa: BLE001 - the boundary to a browser
                _log.exception("a read failed")
                self._result = replace(self._result, problem=_BUG)
        self._due_at = asyncio.get_running_loop().time() + self._every_s
        self._running = None


class Polls:
    """The polls of a dashboard by key; at most `_KEPT` of them are kept."""

    def __init__(self) -> None:
        self._room = asyncio.Semaphore(_AT_ONCE)
        self._polls: OrderedDict[tuple[str, ...], Poll[Any]] = OrderedDict()

    def at(
        self, key: tuple[str, ...], make: Callable[[], Callable[[], _T]], every_s: float
    ) -> Poll[_T]:
        """The poll of this key. `make` returns its read function, and is called once."""
        poll = self._polls.get(key)
        if poll is None:
            poll = self._polls[key] = Poll(make(), every_s, self._room)
        self._polls.move_to_end(key)
        if len(self._polls) > _KEPT:
            self._polls.popitem(last=False)
        return poll


async def _on_thread(work: Callable[[], _T]) -> _T:
    """As `asyncio.to_thread`, but on a daemon thread, which does not delay the program's end:
    platforms may take a minute to answer.
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
        except BaseException as error:  # noqa: BLE001 - raised by the await
            give, what = future.set_exception, error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nothing waits any more
            loop.call_soon_threadsafe(settle, give, what)

    threading.Thread(target=run, name="poll", daemon=True).start()
    return await future


_HISTORY_S = 30.0  # between reads of a swarm's history while no state changes
_HEAVY_S = 5.0  # between reads of a job's accounts or its whole checkpoint


@dataclass(frozen=True)
class PageData:
    """A page as JSON, and the records that it shows, by name."""

    page: str
    records: dict[str, Record]


class Board:
    """The polls of one home. They only read, as `status` and `job status` do."""

    def __init__(self, store: SwarmStore, every_s: float) -> None:
        self._swarms = SwarmService(store)
        self._jobs = JobService(store)
        self._every_s = every_s
        self._polls = Polls()

    def everything(self) -> Poll[PageData]:
        """All live swarms and the newest jobs: the records `swarms` and `jobs`."""
        return self._polls.at(("",), lambda: self._everything, self._every_s)

    def swarm(self, name: str) -> Poll[PageData]:
        """One swarm: the record `swarm`."""
        return self._polls.at(
            ("swarm", name), lambda: _SwarmReader(self._swarms, name).take, self._every_s
        )

    def job(self, job_id: str) -> Poll[PageData]:
        """One job: the record `job`."""
        return self._polls.at(
            ("job", job_id), lambda: _JobReader(self._jobs, job_id).take, _HEAVY_S
        )

    def report(self, job_id: str) -> Poll[str]:
        """The report of a job, as HTML."""
        take: Callable[[], str] = lambda: render(self._jobs.gathered(job_id))  # noqa: E731
        return self._polls.at(("report", job_id), lambda: take, _HEAVY_S)

    def _everything(self) -> PageData:
        swarms = SwarmList(swarms=tuple(self._swarms.list()))
        newest = tuple(self._jobs.list(newest=JOBS_SHOWN))
        jobs = JobList(jobs=newest, left_out=max(0, self._jobs.count() - len(newest)))
        page = overview(swarms.swarms, jobs, utc_now())
        return PageData(page.model_dump_json(), {"swarms": swarms, "jobs": jobs})


class _SwarmReader:
    """Reads one swarm, and its history whenever the states of its replicas have changed."""

    def __init__(self, service: SwarmService, name: str) -> None:
        self._service = service
        self._name = name
        self._history: tuple[ReplicaEvent, ...] = ()
        self._states: object = None  # of the replicas when the history was read
        self._due_at = 0.0

    def take(self) -> PageData:
        """Raises what `SwarmService.status` does."""
        swarm = self._service.status(self._name)
        states = tuple(
            (replica.state, replica.stale, replica.restarts) for replica in swarm.replicas
        )
        if states != self._states or time.monotonic() >= self._due_at:
            self._history = self._service.history(self._name) or self._history
            self._states, self._due_at = states, time.monotonic() + _HISTORY_S
        now = {replica.index: replica.state.value for replica in swarm.replicas}
        ended = self._history and not swarm.phase.live
        until = self._history[-1].reported_at if ended else utc_now()
        charts = [drawn(chart) for chart in replica_charts(self._history, now, until)]
        return _page_data(swarm, swarm_page(swarm, charts, utc_now()).model_dump_json())


class _JobReader:
    """Reads one job, and groups its failures whenever more of its rows have failed."""

    def __init__(self, service: JobService, job_id: str) -> None:
        self._service = service
        self._job_id = job_id
        self._groups: tuple[FailureGroup, ...] = ()
        self._failed = 0  # rows that have been grouped

    def take(self) -> PageData:
        """Raises what `JobService.status` does. Other unreadable files become a note."""
        job = self._service.status(self._job_id)
        charts: list[str] = []
        note = ""
        if job.output is not None:  # None: the job is a script
            try:
                gathered = self._service.gathered(self._job_id, failures=False)
                charts = [drawn(chart) for chart in course_charts(gathered)]
                self._group(job)
            except SwarmError as error:
                note = error.message
        return _page_data(job, job_page(job, self._groups, charts, note).model_dump_json())

    def _group(self, job: JobSnapshot) -> None:
        if job.rows_failed != self._failed:
            self._groups = self._service.failures(self._job_id).groups
            self._failed = job.rows_failed


def _page_data(record: SwarmSnapshot | JobSnapshot, page: str) -> PageData:
    kind = "swarm" if isinstance(record, SwarmSnapshot) else "job"
    return PageData(page, {kind: record})
