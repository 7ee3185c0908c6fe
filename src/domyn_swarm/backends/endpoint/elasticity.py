"""Runs as many replicas of an elastic swarm as there is work for, as `elastic` decides.

Every second it reads the demand and the state of the platform, and records which replicas should
run before it asks the platform for them. A replica that is given up leaves the router's list first.
It is ended only when drivers and router are certain to have followed, and its engine reports no
request. So none of its requests is lost, however long they take.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Collection, Mapping

from domyn_swarm.backends.endpoint.collector import OVERLAP_S, Collector
from domyn_swarm.backends.endpoint.demand import Demand
from domyn_swarm.backends.endpoint.doorkeeper import Doorkeeper
from domyn_swarm.backends.endpoint.elastic import (
    Bounds,
    ElasticPlatform,
    ElasticState,
    Measured,
    Place,
    Placed,
    PlaceState,
    decide,
    read_state,
)
from domyn_swarm.backends.endpoint.spec import ElasticSpec, EndpointSpec
from domyn_swarm.backends.endpoint.supervision import Activity
from domyn_swarm.backends.ledger import note_wanted
from domyn_swarm.errors import PlatformError
from domyn_swarm.logs import get_logger
from domyn_swarm.model import ReplicaReport, ReplicaState
from domyn_swarm.paths import SwarmPaths, write_private
from domyn_swarm.probing import Clock

_log = get_logger(__name__)

_LOOK_S = 1.0
_AT_LEAST_S = 0.2  # seconds between two rounds, however many requests come
_LEFT_S = 1.5  # how long after a replica left the lists all drivers are certain to have followed
_FAILED_RESTS_S = 600.0
_APPEARS_S = 90.0  # a place that was requested so long ago and does not exist has ended
_ASLEEP_S = OVERLAP_S + _LEFT_S  # the last replica stays listed until the router has another
_SILENT_S = 30.0  # an engine whose gauges do not answer for so long serves no request either
_AGAIN_S = 30.0  # between attempts to start what could not be started
_AT_WORK = (ReplicaState.READY, ReplicaState.UNHEALTHY, ReplicaState.DRAINING)


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
        self._state, self._restored = self._restore(spec.tag)
        self._idle_since: dict[int, float] = {}
        self._absent_since: dict[int, float] = {}  # wanted places that neither run nor wait
        self._failed_since: dict[int, float] = {}  # wanted places that failed permanently
        self._left_at: dict[int, float] = {}  # places that are no longer wanted
        self._given_back: set[int] = set()  # the same, without those of an earlier program
        self._released: set[int] = set()
        self._try_again_at = 0.0
        self._demand = Demand(paths, collector, activity, door, clock)
        self._came = asyncio.Event() if door is None else door.came
        self._announce()

    def _restore(self, tag: str) -> tuple[ElasticState, bool]:
        state = read_state(self._paths, tag)
        if state is not None:
            return state, True
        first = tuple(range(self._bounds.least))  # `up` has requested these
        now = self._clock.time()
        return ElasticState(tag=tag, wanted=first, asked_at=dict.fromkeys(first, now)), False

    async def run(self) -> None:
        """Run rounds until cancelled."""
        while True:
            try:
                await self.look()
            except (PlatformError, OSError, ValueError) as error:  # repeated in the next round
                _log.warning("cannot adjust the number of replicas now: %s", error)
            except Exception:  # noqa: BLE001 - the endpoint serves all the same
                _log.exception("cannot adjust the number of replicas now")
            await asyncio.sleep(_AT_LEAST_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S - _AT_LEAST_S):
                    await self._came.wait()
            self._came.clear()

    def expected_s(self) -> float | None:
        """Seconds until a replica is expected to serve; None: not known."""
        start_s = self._state.start_s
        since = [self._asked_s(one) for one in self._state.wanted]
        return None if start_s is None else max(0.0, start_s - max(since, default=0.0))

    def why_not(self) -> str | None:
        """Why no replica will serve for now: those that were started failed, or none can be
        started.
        """
        if self._state.trouble:
            return f"no replica can be started: {self._state.trouble}"
        failures = self._collector.failures()
        wanted = len(self._collector.wanted)
        return (
            f"its replicas failed: {failures[0]}" if failures and len(failures) >= wanted else None
        )

    # -- one round --------------------------------------------------------------------------------

    async def look(self) -> None:
        """Run one round: decide, and carry the decision out.

        Raises:
            PlatformError, OSError: what is to be known, or done, cannot be.
        """
        placed = await asyncio.to_thread(self._platform.places)
        work = await self._demand.look(self._ready_places())
        places = await self._places(placed)
        measured = Measured(
            rows_per_place_s=self._demand.rows_per_place_s,
            start_s=self._state.start_s,
            full_at=self._elastic.full_at * self._per_place,
        )
        state, now = self._state, self._clock.time()
        resting = {one for one, until in state.failed_until.items() if until > now}
        leaving = placed.keys() - set(state.wanted)
        warm = {one for one in (self._given_back & leaving) - self._released if self._is_ready(one)}
        found = decide(work, places, self._bounds, measured, resting | (leaving - warm), warm=warm)
        if found.wanted != set(state.wanted):
            await self._want(found.wanted, found.reason, warm)
        await self._end(placed.keys() - found.wanted)
        await self._begin(found.wanted - placed.keys())

    async def _want(self, wanted: frozenset[int], reason: str, warm: Collection[int]) -> None:
        """Record the decision on disk before it is carried out. Places in `warm` still serve."""
        state, now = self._state, self._clock.time()
        added, gone = wanted - set(state.wanted), set(state.wanted) - wanted
        back, begun = added & set(warm), added - set(warm)
        said = [f"keeps {_named(back)} after all"] if back else []
        said += [f"starts {_named(begun)}"] if begun else []
        said += [f"gives back {_named(gone)}"] if gone else []
        _log.info("the swarm %s: %s", ", ".join(said), reason)
        asked_at = {one: at for one, at in state.asked_at.items() if one in wanted}
        changes: dict[str, object] = {
            "wanted": tuple(sorted(wanted)),
            "asked_at": {**asked_at, **dict.fromkeys(begun, now)},
            "reason": reason,
        }
        await self._remember(state.model_copy(update=changes))
        replicas = [index for one in wanted for index in self._replicas_of(one)]
        with contextlib.suppress(OSError):  # then the wait for a replica is not in the ledger
            await asyncio.to_thread(note_wanted, self._elastic.ledger_entry, replicas)
        for one in gone:
            self._left_at[one] = self._clock.monotonic()
        self._given_back = (self._given_back | gone) - added
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
        """Start wanted places that do not exist. One that existed, or was requested long ago, has
        ended: it failed, or its platform brings it back.
        """
        now = self._clock.monotonic()
        if not missing or now < self._try_again_at:
            return
        self._try_again_at = now + _AGAIN_S
        fresh = [one for one in missing if self._asked_s(one) < _APPEARS_S or self._restored]
        self._restored = False  # a program before this one may have been killed before it asked
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
        """End places that are not wanted and have no request left."""
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
            elif now - left_at >= (_LEFT_S if self._state.wanted else _ASLEEP_S) and all(
                self._collector.unlisted_s(report.url) >= _LEFT_S
                for report in self._reports(one)
                if report.url is not None
            ):
                requests = (await self._busy([one])).get(one)
                silent = requests is None and self._has_gauges and now - left_at >= _SILENT_S
                if requests == 0 or silent:
                    going.append(one)
        if going:
            await asyncio.to_thread(self._platform.release, going)
            self._released.update(going)

    def _is_ready(self, place: int) -> bool:
        return {one.state for one in self._reports(place)} == {ReplicaState.READY}

    def _may_have_requests(self, place: int) -> bool:
        return any(report.state in _AT_WORK for report in self._reports(place))

    def _asked_s(self, place: int) -> float:
        at = self._state.asked_at.get(place)
        return math.inf if at is None else max(0.0, self._clock.time() - at)

    # -- demand and state --------------------------------------------------------------------------

    def _ready_places(self) -> int:
        return len({one // self._per_place for one in self._collector.serving_replicas()})

    async def _places(self, placed: Mapping[int, Placed]) -> list[Place]:
        """The wanted places in their present state. One that ended without a report is left out."""
        serving = {one // self._per_place for one in self._collector.serving_replicas()}
        idle = await self._idle_s(serving & set(self._state.wanted))
        found, lost, replaceable = [], set(), self._has_another(placed)
        for index in self._state.wanted:
            reports, there = self._reports(index), placed.get(index)
            failed = bool(reports) and all(one.state is ReplicaState.FAILED for one in reports)
            asked_s = self._asked_s(index)
            absent_s = self._since(
                self._absent_since, index, there is None and index not in serving
            )
            failed_s = self._since(self._failed_since, index, failed)
            if failed:  # another is tried if other places did serve, or when a retry is due
                over = (replaceable and bool(self._state.starts_s)) or failed_s >= _FAILED_RESTS_S
            else:
                over = absent_s >= (_APPEARS_S if replaceable else _FAILED_RESTS_S)
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
            await self._give_up(lost, rest=replaceable)
        return found

    def _has_another(self, placed: Mapping[int, Placed]) -> bool:
        """Whether a place is free that can replace a wanted one."""
        now = self._clock.time()
        resting = {one for one, until in self._state.failed_until.items() if until > now}
        return bool(set(range(self._bounds.most)) - {*self._state.wanted, *resting, *placed})

    def _since(self, since: dict[int, float], place: int, holds: bool) -> float:
        """For how many seconds a place has been so, as recorded in `since`."""
        now = self._clock.monotonic()
        if not holds:
            since.pop(place, None)
            return 0.0
        return now - since.setdefault(place, now)

    async def _note_starts(self, serving: set[int]) -> None:
        """Measure the start of each place that serves for the first time since it was requested."""
        state = self._state
        begun = serving & state.asked_at.keys()
        if not begun:
            return
        for one in begun:
            state = state.with_start(self._asked_s(one))
        left = {one: at for one, at in state.asked_at.items() if one not in begun}
        await self._remember(state.model_copy(update={"asked_at": left}))

    async def _give_up(self, lost: set[int], *, rest: bool) -> None:
        """Stop wanting these: other places replace them, or they are retried themselves if there is
        none, after they were shown as failed for as long as a failed place rests.
        """
        now, state = self._clock.time(), self._state
        then = "others take over" if rest else "it is tried again"
        _log.warning("%s failed, or ended without a report: %s", _named(lost), then)
        resting = {one: until for one, until in state.failed_until.items() if until > now}
        if rest:
            resting |= dict.fromkeys(lost, now + _FAILED_RESTS_S)
        for one in lost:
            self._failed_since.pop(one, None)
            self._absent_since.pop(one, None)
        changes: dict[str, object] = {
            "wanted": tuple(one for one in state.wanted if one not in lost),
            "failed_until": resting,
            "asked_at": {one: at for one, at in state.asked_at.items() if one not in lost},
        }
        await self._remember(state.model_copy(update=changes))
        self._announce()

    async def _idle_s(self, ready: Collection[int]) -> dict[int, float]:
        """Seconds that each place has been without a request; 0 for one that may have some."""
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
        """The requests at each place; unknown places are left out. An engine without gauges counts
        as busy as long as any client may have a request in flight. Reports are seconds old, so
        engines that reported no request are asked, and all of them once nothing is left to send.
        """
        reported = {one: self._reports(one) for one in places}
        asked = [
            report.url
            for reports in sorted(reported.values(), key=_running)
            for report in reports
            if report.url is not None and not (report.requests_running and self._demand.rows_unsent)
        ]
        now = await self._collector.gauges.requests_at(asked)
        found = {}
        for place, reports in reported.items():
            counts = [_requests_of(report, now) for report in reports]
            if now is None:
                counts = [None if self._demand.may_be_in_flight else 0.0]
            known = [one for one in counts if one is not None]
            if len(known) == len(counts):
                found[place] = sum(known)
        return found

    def _reports(self, place: int) -> list[ReplicaReport]:
        found = (self._collector.last(index) for index in self._replicas_of(place))
        return [one for one in found if one is not None]


def _running(reports: Collection[ReplicaReport]) -> float:
    return sum(one.requests_running or 0.0 for one in reports)


def _requests_of(report: ReplicaReport, now: Mapping[str, float] | None) -> float | None:
    """A replica's requests: from the engine itself if it was asked, else from its last report."""
    if now is not None and report.url is not None and report.url in now:
        return now[report.url]
    if report.state is not ReplicaState.READY or report.url is None:
        return 0.0 if report.requests_running is None else report.requests_running
    return report.requests_running or None


def _named(places: Collection[int]) -> str:
    shown = ", ".join(str(one) for one in sorted(places)[:8])
    return f"replica {shown}" + (", ..." if len(places) > 8 else "")
