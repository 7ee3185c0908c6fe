"""Has an elastic swarm run as many replicas as there is work for: what `elastic` decides is done.

Every second it looks at what jobs and clients want and at what runs, and writes down what shall run
before it asks the platform for it. A replica that goes leaves the router's list first; once drivers
and router have surely followed, and its engine says that it has no request, it is told to end. So
none of its requests is lost, however long they take.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import NamedTuple, Protocol

from domyn_swarm.backends.endpoint.activity import Activity
from domyn_swarm.backends.endpoint.collector import Collector
from domyn_swarm.backends.endpoint.doorkeeper import RETRY_AT_MOST_S, Doorkeeper
from domyn_swarm.backends.endpoint.elastic import (
    Bounds,
    ElasticState,
    Measured,
    Place,
    PlaceState,
    Speed,
    Work,
    decide,
    read_state,
)
from domyn_swarm.backends.endpoint.job_progress import JobsFolder
from domyn_swarm.backends.endpoint.spec import ElasticSpec, EndpointSpec
from domyn_swarm.errors import PlatformError
from domyn_swarm.logs import get_logger
from domyn_swarm.model import JobProgress, ReplicaReport, ReplicaState, utc_now
from domyn_swarm.paths import SwarmPaths, write_private
from domyn_swarm.probing import Clock

_log = get_logger(__name__)

_LOOK_S = 1.0
_AT_LEAST_S = 0.2  # between two looks, however many requests come
_LEFT_S = 1.5  # so long after a replica left the lists drivers have surely followed
_SILENT_JOB_S = 20.0  # workers rewrite their progress every second
_ASKED_FOR_S = 10.0  # a job that asked for replicas wants them for so long
_FAILED_RESTS_S = 600.0
_COMES_AGAIN_S = 600.0  # who was turned away for so long ago has given up
_APPEARS_S = 90.0  # what was asked for so long ago and is not there has ended
_SILENT_S = 30.0  # an engine that has gauges and does not answer for so long answers nobody
_AGAIN_S = 30.0  # between attempts to start what could not be started
_AT_WORK = (ReplicaState.READY, ReplicaState.UNHEALTHY, ReplicaState.DRAINING)


class Placed(NamedTuple):
    """What a platform has in one place."""

    runs: bool  # else it waits in the queue
    ends_in_s: float = math.inf


class ElasticPlatform(Protocol):
    """What is asked of the platform. Called from threads."""

    @property
    def per_place(self) -> int:
        """How many replicas it starts and ends together."""

    def places(self) -> Mapping[int, Placed]:
        """What runs or waits of the swarm's replicas.

        Raises:
            PlatformError: the platform cannot be asked.
        """

    def start(self, places: Collection[int]) -> None:
        """See that each of these runs or waits. Idempotent.

        Raises:
            PlatformError: some could not be started.
        """

    def release(self, places: Collection[int]) -> None:
        """Have these end: what waits at once, what runs once it has drained. Idempotent.

        Raises:
            PlatformError: the platform cannot be asked.
        """


class Elasticity:
    """`activity` asks the router; `door` stands in for the replicas while there are none."""

    def __init__(
        self,
        paths: SwarmPaths,
        spec: EndpointSpec,
        platform: ElasticPlatform,
        collector: Collector,
        activity: Callable[[], Awaitable[Activity | None]],
        *,
        door: Doorkeeper | None = None,
        clock: Clock = time,
    ) -> None:
        if spec.elastic is None:
            raise ValueError("the swarm is not elastic")
        self._paths = paths
        self._platform = platform
        self._collector = collector
        self._activity = activity
        self._door = door
        self._clock = clock
        self._per_place = platform.per_place
        self._elastic: ElasticSpec = spec.elastic
        self._replicas = spec.replicas
        self._has_gauges = spec.metrics_path is not None and spec.running_metric is not None
        self._bounds = Bounds(
            least=math.ceil(spec.elastic.least / self._per_place),
            most=math.ceil(spec.replicas / self._per_place),
            keep_s=spec.elastic.keep_s,
        )
        self._jobs = _Jobs(paths, clock)
        self._state, self._restored = self._restore(spec.tag)
        self._idle_since: dict[int, float] = {}
        self._absent_since: dict[int, float] = {}  # places that are wanted, and nowhere
        self._left_at: dict[int, float] = {}  # places that are not wanted any more
        self._released: set[int] = set()
        self._try_again_at = 0.0
        self._requests: float | None = None
        self._looked: int = collector.drivers_looked
        self._asked_for_until = 0.0
        self._clients_at = self._work_at = self._jobs_at = -math.inf
        self._came = asyncio.Event() if door is None else door.came
        self._turned_away = 0
        self._awake_since: float | None = None  # some replica serves
        self._awaited_until = -math.inf  # who was turned away may come again until then
        self._announce()

    def _restore(self, tag: str) -> tuple[ElasticState, bool]:
        state = read_state(self._paths, tag)
        if state is not None:
            return state, True
        first = tuple(range(self._bounds.least))  # `up` has asked for these
        now = self._clock.time()
        return ElasticState(tag=tag, wanted=first, asked_at=dict.fromkeys(first, now)), False

    async def run(self) -> None:
        """Decide and do, until cancelled."""
        while True:
            try:
                await self.look()
            except (PlatformError, OSError, ValueError) as error:  # looked at again
                _log.warning("cannot see to the number of replicas now: %s", error)
            except Exception:  # noqa: BLE001 - the endpoint serves all the same
                _log.exception("cannot see to the number of replicas now")
            await asyncio.sleep(_AT_LEAST_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S - _AT_LEAST_S):
                    await self._came.wait()
            self._came.clear()

    def expected_s(self) -> float | None:
        """In how many seconds a replica will serve, if all goes as it went; None: not known."""
        start_s = self._state.start_s
        since = [self._asked_s(one) for one in self._state.wanted]
        return None if start_s is None else max(0.0, start_s - max(since, default=0.0))

    def why_not(self) -> str | None:
        """Why no replica will serve for now: those that were started have failed, or none can be
        started.
        """
        if self._state.trouble:
            return f"no replica can be started: {self._state.trouble}"
        failures = self._collector.failures()
        wanted = len(self._collector.wanted)
        return (
            f"its replicas failed: {failures[0]}" if failures and len(failures) >= wanted else None
        )

    # -- one look ---------------------------------------------------------------------------------

    async def look(self) -> None:
        """Decide once, and do it.

        Raises:
            PlatformError, OSError: what is to be known, or done, cannot be.
        """
        placed = await asyncio.to_thread(self._platform.places)
        work, speed = await self._work()
        places = await self._places(placed)
        measured = Measured(
            rows_per_place_s=speed,
            start_s=self._state.start_s,
            full_at=self._elastic.full_at * self._per_place,
        )
        state, now = self._state, self._clock.time()
        resting = {one for one, until in state.failed_until.items() if until > now}
        leaving = placed.keys() - set(state.wanted)
        found = decide(work, places, self._bounds, measured, resting | leaving)
        if found.wanted != set(state.wanted):
            await self._want(found.wanted, found.reason)
        await self._end(placed.keys() - found.wanted)
        await self._begin(found.wanted - placed.keys())

    async def _want(self, wanted: frozenset[int], reason: str) -> None:
        """The intent, on disk before anything is done about it."""
        state, now = self._state, self._clock.time()
        added, gone = wanted - set(state.wanted), set(state.wanted) - wanted
        said = [f"starts {_named(added)}"] if added else []
        said += [f"gives back {_named(gone)}"] if gone else []
        _log.info("the swarm %s: %s", " and ".join(said), reason)
        asked_at = {one: at for one, at in state.asked_at.items() if one in wanted}
        changes: dict[str, object] = {
            "wanted": tuple(sorted(wanted)),
            "asked_at": {**asked_at, **dict.fromkeys(added, now)},
            "reason": reason,
        }
        await self._remember(state.model_copy(update=changes))
        for one in gone:
            self._left_at[one] = self._clock.monotonic()
        self._released -= added
        if added:
            self._try_again_at = 0.0
        self._announce()

    async def _remember(self, state: ElasticState) -> None:
        text = state.model_dump_json(indent=2)
        await asyncio.to_thread(write_private, self._paths.elastic, text)
        self._state = state

    def _announce(self) -> None:
        self._collector.want(
            index for place in self._state.wanted for index in self._replicas_of(place)
        )

    def _replicas_of(self, place: int) -> range:
        first = place * self._per_place
        return range(first, min(first + self._per_place, self._replicas))

    async def _begin(self, missing: Collection[int]) -> None:
        """Start what is wanted and not there. What was there, or was asked for long ago, has
        ended: it failed, or its own platform brings it back.
        """
        now = self._clock.monotonic()
        if not missing or now < self._try_again_at:
            return
        self._try_again_at = now + _AGAIN_S
        fresh = [one for one in missing if self._asked_s(one) < _APPEARS_S or self._restored]
        self._restored = False  # whoever decided before may have been killed before it asked
        if not fresh:
            return
        trouble = ""
        try:
            await asyncio.to_thread(self._platform.start, fresh)
        except PlatformError as error:
            trouble = error.message
            _log.warning("%s cannot be started: %s", _named(fresh), trouble)
        if trouble != self._state.trouble:
            await self._remember(self._state.model_copy(update={"trouble": trouble}))

    async def _end(self, surplus: Collection[int]) -> None:
        """Have those end that are not wanted, and have nothing to do any more."""
        now = self._clock.monotonic()
        for one in self._left_at.keys() - set(surplus):
            del self._left_at[one]
        self._released &= set(surplus)
        going = []
        for one in surplus:
            left_at = self._left_at.setdefault(one, now)
            if one in self._released:
                continue
            if not self._may_have_requests(one):
                going.append(one)
            elif now - left_at >= _LEFT_S:
                requests = (await self._busy([one])).get(one)
                silent = requests is None and self._has_gauges and now - left_at >= _SILENT_S
                if requests == 0 or silent:
                    going.append(one)
        if going:
            await asyncio.to_thread(self._platform.release, going)
            self._released.update(going)

    def _may_have_requests(self, place: int) -> bool:
        return any(report.state in _AT_WORK for report in self._reports(place))

    def _asked_s(self, place: int) -> float:
        at = self._state.asked_at.get(place)
        return math.inf if at is None else max(0.0, self._clock.time() - at)

    # -- what there is to do ----------------------------------------------------------------------

    async def _work(self) -> tuple[Work, float | None]:
        now = self._clock.monotonic()
        jobs = await asyncio.to_thread(self._jobs.look, self._ready_places())
        activity = await self._activity()
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
        work = Work(
            rows_left=jobs.left,
            rows_unsent=jobs.unsent,
            requests=requests,
            asked_for=asks,
            quiet_s=now - self._work_at,
            clients_quiet_s=now - self._clients_at,
        )
        return work, self._jobs.speed.rows_per_place_s

    def _await_the_turned_away(self, now: float) -> None:
        """Who was turned away comes again: a replica is kept for that, once it serves, as long as
        the longest pause that anybody was told.
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

    def _ready_places(self) -> int:
        return len({self._place_of(one) for one in self._collector.serving_replicas()})

    def _place_of(self, replica: int) -> int:
        return replica // self._per_place

    # -- what there is to do it -------------------------------------------------------------------

    async def _places(self, placed: Mapping[int, Placed]) -> list[Place]:
        """Those that are wanted, as they are. What ended without a word is no place any more."""
        serving = {self._place_of(one) for one in self._collector.serving_replicas()}
        idle = await self._idle_s(serving & set(self._state.wanted))
        found, lost = [], set()
        for index in self._state.wanted:
            reports, there = self._reports(index), placed.get(index)
            failed = bool(reports) and all(one.state is ReplicaState.FAILED for one in reports)
            asked_s = self._asked_s(index)
            if failed:  # another is tried where others did serve, or when it is time to try again
                over = bool(self._state.starts_s) or asked_s >= _FAILED_RESTS_S
            else:
                over = self._absent_s(index, there, index in serving) >= _APPEARS_S
            if over:
                lost.add(index)
            elif failed:
                found.append(Place(index, PlaceState.FAILED, asked_s))
            elif index in serving:
                ends_in_s = math.inf if there is None else there.ends_in_s
                found.append(Place(index, PlaceState.READY, asked_s, idle[index], ends_in_s))
            elif there is not None and there.runs:
                found.append(Place(index, PlaceState.STARTING, asked_s, 0.0, there.ends_in_s))
            else:
                found.append(Place(index, PlaceState.WAITING, asked_s))
        await self._note_starts(serving)
        if lost:
            await self._give_up(lost)
        return found

    def _absent_s(self, place: int, there: Placed | None, serves: bool) -> float:
        """For how long a place has been nowhere."""
        now = self._clock.monotonic()
        if there is not None or serves:
            self._absent_since.pop(place, None)
            return 0.0
        return now - self._absent_since.setdefault(place, now)

    async def _note_starts(self, serving: set[int]) -> None:
        """Measure how long those took that serve for the first time since they were asked for."""
        state = self._state
        begun = serving & state.asked_at.keys()
        if not begun:
            return
        for one in begun:
            state = state.with_start(self._asked_s(one))
        left = {one: at for one, at in state.asked_at.items() if one not in begun}
        await self._remember(state.model_copy(update={"asked_at": left}))

    async def _give_up(self, lost: set[int]) -> None:
        now, state = self._clock.time(), self._state
        _log.warning("%s failed, or ended without a word: others take over", _named(lost))
        resting = {one: until for one, until in state.failed_until.items() if until > now}
        changes: dict[str, object] = {
            "wanted": tuple(one for one in state.wanted if one not in lost),
            "failed_until": {**resting, **dict.fromkeys(lost, now + _FAILED_RESTS_S)},
            "asked_at": {one: at for one, at in state.asked_at.items() if one not in lost},
        }
        await self._remember(state.model_copy(update=changes))
        self._announce()

    async def _idle_s(self, ready: Collection[int]) -> dict[int, float]:
        """For how long each has been without a request; 0 for what may have some."""
        now = self._clock.monotonic()
        busy = await self._busy(ready)
        for one in ready:
            if busy.get(one) == 0:
                self._idle_since.setdefault(one, now)
            else:
                self._idle_since.pop(one, None)
        for one in self._idle_since.keys() - set(ready):
            del self._idle_since[one]
        return {one: now - self._idle_since.get(one, now) for one in ready}

    async def _busy(self, places: Collection[int]) -> dict[int, float]:
        """The requests at each place; what is not known is left out. Engines without gauges have
        some as long as anybody may have one in flight.
        """
        reported = {one: self._reports(one) for one in places}
        asked = [
            report.url
            for reports in reported.values()
            for report in reports
            if report.url is not None and not report.requests_running
        ]
        now = await self._collector.requests_at(asked)
        found = {}
        for place, reports in reported.items():
            counts = [_requests_of(report, now) for report in reports]
            if now is None:
                counts = [None if self._jobs.in_flight or self._requests_in_flight else 0.0]
            known = [one for one in counts if one is not None]
            if len(known) == len(counts):
                found[place] = sum(known)
        return found

    @property
    def _requests_in_flight(self) -> bool:
        return self._clock.monotonic() - self._clients_at < _LOOK_S * 2

    def _reports(self, place: int) -> list[ReplicaReport]:
        found = (self._collector.last(index) for index in self._replicas_of(place))
        return [one for one in found if one is not None]


def _requests_of(report: ReplicaReport, now: Mapping[str, float] | None) -> float | None:
    """By the engine itself where it was asked, else by its last report."""
    if now is not None and report.url is not None and report.url in now:
        return now[report.url]
    if report.state is not ReplicaState.READY or report.url is None:
        return 0.0 if report.requests_running is None else report.requests_running
    return report.requests_running or None


class _Jobs:
    """What the swarm's jobs have left, by what their workers write down. One whose worker has not
    written for a while, by this machine's own clock, is not under way.
    """

    def __init__(self, paths: SwarmPaths, clock: Clock) -> None:
        self._folder = JobsFolder(paths.jobs)
        self._clock = clock
        self._changed_at: dict[str, tuple[object, float]] = {}
        self._names: frozenset[str] = frozenset()
        self.speed = Speed()
        self.left = self.unsent = self.in_flight = 0
        self.known = self.unknown = False  # a job is under way; one does not know its rows yet

    def look(self, ready: int) -> _Jobs:
        """Read them; `ready`: the places that serve. Blocking."""
        under_way = self._under_way()
        now = self._clock.monotonic()
        if under_way.keys() != self._names:
            self._names = frozenset(under_way)
            self.speed.forget()
        if under_way:
            settled = sum(one.rows_done - one.rows_resumed for one in under_way.values())
            self.speed.saw(now, settled, ready)
        sized = [one for one in under_way.values() if one.rows_total is not None]
        self.known = bool(sized)
        self.unknown = len(sized) < len(under_way)
        self.in_flight = sum(one.in_flight for one in under_way.values())
        self.left = sum(max(0, (one.rows_total or 0) - one.rows_done) for one in sized)
        self.unsent = sum(
            max(0, (one.rows_total or 0) - one.rows_done - one.in_flight) for one in sized
        )
        return self

    def _under_way(self) -> dict[str, JobProgress]:
        now, found = self._clock.monotonic(), {}
        jobs = self._folder.read(utc_now())
        for job in jobs:
            one = job.progress
            before = self._changed_at.get(job.job_id)
            if before is None:  # it may have been dead for long
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


def _named(places: Collection[int]) -> str:
    shown = ", ".join(str(one) for one in sorted(places)[:8])
    return f"replica {shown}" + (", ..." if len(places) > 8 else "")
