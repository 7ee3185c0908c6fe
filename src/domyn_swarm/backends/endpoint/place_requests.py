"""Counts the requests at each place of an elastic swarm, and for how long a place has had none."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from domyn_swarm.backends.endpoint.collector import Collector
from domyn_swarm.model import ReplicaReport, ReplicaState
from domyn_swarm.probing import Clock


class PlaceRequests:
    """Asks the engines. `reports` returns the last reports of a place's replicas,
    `may_be_in_flight` whether any client may have a request in flight, judged without the engines,
    and `rows_unsent` the number of rows that jobs may still send.
    """

    def __init__(
        self,
        collector: Collector,
        reports: Callable[[int], Sequence[ReplicaReport]],
        may_be_in_flight: Callable[[], bool],
        rows_unsent: Callable[[], int],
        clock: Clock,
    ) -> None:
        self._collector = collector
        self._reports = reports
        self._may_be_in_flight = may_be_in_flight
        self._rows_unsent = rows_unsent
        self._clock = clock
        self._idle_since: dict[int, float] = {}

    async def at(self, places: Collection[int]) -> dict[int, float]:
        """The number of requests at each place; a place whose number is not known is left out.
        Engines without gauges have an unknown number while any client may have a request in flight.
        Reports are seconds old, so engines that reported no request are asked now, and all engines
        once no row is left to send.
        """
        reported = {one: self._reports(one) for one in places}
        asked = [
            report.url
            for reports in sorted(reported.values(), key=_running)
            for report in reports
            if report.url is not None and not (report.requests_running and self._rows_unsent())
        ]
        now = await self._collector.gauges.requests_at(asked)
        found = {}
        for place, reports in reported.items():
            counts = [_requests_of(report, now) for report in reports]
            if now is None:
                counts = [None if self._may_be_in_flight() else 0.0]
            known = [one for one in counts if one is not None]
            if len(known) == len(counts):
                found[place] = sum(known)
        return found

    def idle_s(self, ready: Collection[int], busy: Mapping[int, float]) -> dict[int, float]:
        """For how many seconds each place has had no request; 0: it has or may have requests.

        Args:
            ready: the places that serve now.
            busy: their requests now, from `at`.
        """
        now = self._clock.monotonic()
        for one in ready:
            if busy.get(one) == 0:
                self._idle_since.setdefault(one, now)
            else:
                self._idle_since.pop(one, None)
        for one in self._idle_since.keys() - set(ready):
            del self._idle_since[one]
        return {one: now - self._idle_since.get(one, now) for one in ready}


def _running(reports: Collection[ReplicaReport]) -> float:
    return sum(one.requests_running or 0.0 for one in reports)


def _requests_of(report: ReplicaReport, now: Mapping[str, float] | None) -> float | None:
    """A replica's requests by its engine's answer, or by its last report if it was not asked; None:
    not known.
    """
    if now is not None and report.url is not None and report.url in now:
        return now[report.url]
    if report.state is not ReplicaState.READY or report.url is None:
        return 0.0 if report.requests_running is None else report.requests_running
    return report.requests_running or None
