"""Runs as many replicas of an elastic swarm as there is work for, as `elastic` decides.

Every second it compares the demand of jobs and clients with the replicas that run, and records its
decision on disk before it asks the platform to carry it out. `surplus_replicas` ends replicas.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Collection, Mapping

from domyn_swarm.backends.endpoint.collector import Collector
from domyn_swarm.backends.endpoint.demand import Demand
from domyn_swarm.backends.endpoint.doorkeeper import Doorkeeper
from domyn_swarm.backends.endpoint.elastic import (
    Bounds,
    Measured,
    Place,
    PlaceState,
    decide,
)
from domyn_swarm.backends.endpoint.elastic_state import ElasticState, read_state
from domyn_swarm.backends.endpoint.endpoint_spec import ElasticSpec, EndpointSpec
from domyn_swarm.backends.endpoint.place_requests import PlaceRequests
from domyn_swarm.backends.endpoint.platform_protocol import ElasticPlatform, Placed
from domyn_swarm.backends.endpoint.supervision import Activity
from domyn_swarm.backends.endpoint.surplus_replicas import SurplusReplicas
from domyn_swarm.backends.ledger import note_wanted
from domyn_swarm.errors import PlatformError
from domyn_swarm.logs import get_logger
from domyn_swarm.model import ReplicaReport, ReplicaState
from domyn_swarm.paths import SwarmPaths, write_private
from domyn_swarm.probing import Clock

_log = get_logger(__name__)

_LOOK_S = 1.0
_LEAVING_LOOK_S = 0.25  # between polls of leaving replicas, which end once they have no request
_AT_LEAST_S = 0.2  # between two rounds, however many requests arrive
_FAILED_RESTS_S = 600.0
_APPEARS_S = 90.0  # a place requested longer ago that the platform does not list has ended
_AGAIN_S = 30.0  # between attempts to start places after a failed one


async def _whatever_fails(look: Callable[[], Awaitable[None]]) -> None:
    """Run a step of a round and log its error: the next round repeats it."""
    try:
        await look()
    except (PlatformError, OSError, ValueError) as error:
        _log.warning("cannot adjust the number of replicas now: %s", error)
    except Exception:  # noqa: BLE001 - the endpoint serves all the same
        _log.exception("cannot adjust the number of replicas now")


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
        self._bounds = Bounds(
            least=math.ceil(spec.elastic.least / self._per_place),
            most=math.ceil(spec.replicas / self._per_place),
            keep_s=spec.elastic.keep_s,
        )
        self._state, self._restored = self._restore(spec.tag)
        self._absent_since: dict[int, float] = {}  # wanted places that the platform does not list
        self._failed_since: dict[int, float] = {}  # wanted places that failed permanently
        self._try_again_at = 0.0
        demand = self._demand = Demand(paths, collector, activity, door, clock)
        self._requests = PlaceRequests(
            collector,
            self._reports,
            lambda: demand.may_be_in_flight,
            lambda: demand.rows_unsent,
            clock,
        )
        has_gauges = spec.metrics_path is not None and spec.running_metric is not None
        self._surplus = SurplusReplicas(
            *(platform, collector, self._requests, self._reports),
            has_gauges=has_gauges,
            clock=clock,
        )
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
            next_at = self._clock.monotonic() + _LOOK_S
            await _whatever_fails(self.look)
            await asyncio.sleep(_AT_LEAST_S)
            while not self._came.is_set() and (rest_s := next_at - self._clock.monotonic()) > 0:
                if self._surplus.has_unreleased:
                    rest_s = min(rest_s, _LEAVING_LOOK_S)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(rest_s):
                        await self._came.wait()
                await _whatever_fails(self._surplus.end_idle)
            self._came.clear()

    def expected_s(self) -> float | None:
        """Seconds until a replica is expected to serve; None: not known."""
        start_s = self._state.start_s
        since = [self._asked_s(one) for one in self._state.wanted]
        return None if start_s is None else max(0.0, start_s - max(since, default=0.0))

    def why_not(self) -> str | None:
        """Why no replica will serve for now: all of them failed, or none can be started. None:
        neither is known.
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
            PlatformError, OSError: the platform could not be asked, or a file could not be read or
                written; the next round repeats the attempt.
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
        warm = await self._warm(leaving)
        taken = resting | leaving - {one.number for one in warm}
        found = decide(work, places, self._bounds, measured, taken, warm=warm)
        if found.wanted != set(state.wanted):
            await self._want(found.wanted, found.reason, {one.number for one in warm})
        self._surplus.set_surplus(placed.keys() - found.wanted, any_wanted=bool(found.wanted))
        await self._surplus.end_idle()
        await self._begin(found.wanted - placed.keys())

    async def _warm(self, leaving: Collection[int]) -> list[Place]:
        """The unwanted places that still serve and have not been asked to end."""
        warm = self._surplus.still_warm(leaving)
        busy = await self._requests.at(warm) if warm else {}
        return [Place(one, PlaceState.READY, requests=busy.get(one)) for one in warm]

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
        self._surplus.note_change(gone=gone, added=added)
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
        """Start wanted places that do not exist. A place that existed before, or was requested long
        ago, is not started: it failed, or its platform brings it back.
        """
        now = self._clock.monotonic()
        if not missing or now < self._try_again_at:
            return
        self._try_again_at = now + _AGAIN_S
        fresh = [one for one in missing if self._asked_s(one) < _APPEARS_S or self._restored]
        self._restored = False  # the previous program may have been killed before it asked
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

    def _asked_s(self, place: int) -> float:
        at = self._state.asked_at.get(place)
        return math.inf if at is None else max(0.0, self._clock.time() - at)

    # -- demand and state --------------------------------------------------------------------------

    def _ready_places(self) -> int:
        return len({one // self._per_place for one in self._collector.serving_replicas()})

    async def _places(self, placed: Mapping[int, Placed]) -> list[Place]:
        """The wanted places in their present state, without those that are lost: they failed, or
        ended without a report.
        """
        serving = {one // self._per_place for one in self._collector.serving_replicas()}
        ready = serving & set(self._state.wanted)
        busy = await self._requests.at(ready)
        idle = self._requests.idle_s(ready, busy)
        found, lost, replaceable = [], set(), self._has_another(placed)
        for index in self._state.wanted:
            reports, there = self._reports(index), placed.get(index)
            failed = bool(reports) and all(one.state is ReplicaState.FAILED for one in reports)
            asked_s = self._asked_s(index)
            absent_s = self._since(
                self._absent_since, index, there is None and index not in serving
            )
            failed_s = self._since(self._failed_since, index, failed)
            if failed:  # replaced if some place has served before, else once a retry is due
                over = (replaceable and bool(self._state.starts_s)) or failed_s >= _FAILED_RESTS_S
            else:
                over = absent_s >= (_APPEARS_S if replaceable else _FAILED_RESTS_S)
            if over:
                lost.add(index)
            elif failed:
                found.append(Place(index, PlaceState.FAILED, asked_s))
            elif index in serving:
                ends_in_s = math.inf if there is None else there.ends_in_s
                found.append(
                    Place(
                        *(index, PlaceState.READY, asked_s, idle[index], ends_in_s),
                        requests=busy.get(index),
                    )
                )
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
        """For how many seconds the condition `holds` has been true of a place, by `since`."""
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
        """Stop wanting these places. Other places replace them; without a free one (`rest` False)
        they are retried themselves.
        """
        now, state = self._clock.time(), self._state
        then = "other replicas replace it" if rest else "it is tried again"
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

    def _reports(self, place: int) -> list[ReplicaReport]:
        found = (self._collector.last(index) for index in self._replicas_of(place))
        return [one for one in found if one is not None]


def _named(places: Collection[int]) -> str:
    shown = ", ".join(str(one) for one in sorted(places)[:8])
    return f"replica {shown}" + (", ..." if len(places) > 8 else "")
