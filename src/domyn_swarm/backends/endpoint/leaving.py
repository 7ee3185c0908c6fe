"""Ends the places of an elastic swarm that are no longer wanted, without losing a request.

A leaving replica is first removed from the router's list. Once drivers and router have surely
followed and its engine reports no request, the platform is asked to end it. So none of its requests
is lost, however long they take.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence

from domyn_swarm.backends.endpoint.collector import OVERLAP_S, Collector
from domyn_swarm.backends.endpoint.elastic_platform import ElasticPlatform
from domyn_swarm.backends.endpoint.place_requests import PlaceRequests
from domyn_swarm.model import ReplicaReport, ReplicaState
from domyn_swarm.probing import Clock

_LEFT_S = 1.5  # after which drivers have surely followed a replica's removal from the lists
_ASLEEP_S = OVERLAP_S + _LEFT_S  # the last replica stays listed until the router has another
_SILENT_S = 30.0  # an engine with gauges that is silent for longer answers no client either
_AT_WORK = (ReplicaState.READY, ReplicaState.UNHEALTHY, ReplicaState.DRAINING)


class Leaving:
    """Tracks leaving places until they end. `has_gauges`: the engines report how many requests they
    have.
    """

    def __init__(
        self,
        platform: ElasticPlatform,
        collector: Collector,
        requests: PlaceRequests,
        reports: Callable[[int], Sequence[ReplicaReport]],
        *,
        has_gauges: bool,
        clock: Clock,
    ) -> None:
        self._platform = platform
        self._collector = collector
        self._requests = requests
        self._reports = reports
        self._has_gauges = has_gauges
        self._clock = clock
        self._left_at: dict[int, float] = {}
        self._given_back: set[int] = set()  # as `_left_at`, but only by decisions of this program
        self._released: set[int] = set()  # the platform was asked to end them
        self._surplus: frozenset[int] = frozenset()
        self._rests_s = _LEFT_S

    def changed(self, *, gone: Collection[int], added: Collection[int]) -> None:
        """Record a decision: `gone` are no longer wanted from now on, `added` are."""
        now = self._clock.monotonic()
        for one in gone:
            self._left_at[one] = now
        self._given_back = (self._given_back | set(gone)) - set(added)
        self._released -= set(added)

    def still_warm(self, surplus: Collection[int]) -> set[int]:
        """The unwanted places that still serve and have not been asked to end."""
        mine = (self._given_back & set(surplus)) - self._released
        return {one for one in mine if self._is_ready(one)}

    def surplus(self, places: Collection[int], *, any_wanted: bool) -> None:
        """Record the unwanted places that exist. `any_wanted`: other places are wanted."""
        now = self._clock.monotonic()
        self._surplus = frozenset(places)
        self._rests_s = _LEFT_S if any_wanted else _ASLEEP_S
        self._left_at = {one: self._left_at.get(one, now) for one in places}
        self._released &= self._surplus

    @property
    def waits(self) -> bool:
        """Whether a leaving place has not been asked to end yet."""
        return bool(self._surplus - self._released)

    async def end(self) -> None:
        """Ask the platform to end the leaving places that have no requests.

        Raises:
            PlatformError: the platform cannot be asked.
        """
        now = self._clock.monotonic()
        waits = self._surplus - self._released
        idle = [one for one in waits if not self._may_have_requests(one)]
        unlisted = [
            one
            for one in waits
            if now - self._left_at[one] >= self._rests_s
            and self._may_have_requests(one)
            and self._is_unlisted(one)
        ]
        busy = await self._requests.at(unlisted) if unlisted else {}
        for one in unlisted:
            silent = now - self._left_at[one] >= _SILENT_S and self._has_gauges
            if busy.get(one) == 0 or (one not in busy and silent):
                idle.append(one)
        if idle:
            await asyncio.to_thread(self._platform.release, idle)
            self._released.update(idle)

    def _is_unlisted(self, place: int) -> bool:
        return all(
            self._collector.unlisted_s(report.url) >= _LEFT_S
            for report in self._reports(place)
            if report.url is not None
        )

    def _is_ready(self, place: int) -> bool:
        return {one.state for one in self._reports(place)} == {ReplicaState.READY}

    def _may_have_requests(self, place: int) -> bool:
        return any(report.state in _AT_WORK for report in self._reports(place))
