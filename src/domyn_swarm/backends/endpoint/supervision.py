"""Looks after a swarm from its endpoint program: replaces lost replicas, reports once that all have
failed, and ends a swarm that nobody uses.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

from domyn_swarm import claims
from domyn_swarm.backends.endpoint.collector import Collector
from domyn_swarm.backends.endpoint.endpoint_spec import EndpointSpec
from domyn_swarm.backends.endpoint.platform_protocol import Platform
from domyn_swarm.backends.endpoint.view import Ended
from domyn_swarm.backends.notification import notify
from domyn_swarm.errors import PlatformError
from domyn_swarm.logs import get_logger
from domyn_swarm.model import Histogram, JobHandle, utc_now
from domyn_swarm.paths import SwarmPaths, write_private


class RouterFigures(NamedTuple):
    """A router's counters since it started."""

    given: Mapping[str, float]  # requests, by the URL of the replica that received them
    in_flight: Mapping[str, float]  # of those, in flight now
    responses: Mapping[tuple[str, str], float]  # by path and status
    durations: Mapping[tuple[str, str], Histogram]  # seconds, by operation and model


class Activity(NamedTuple):
    """What a router has done since it started, and does now. Reading the list of models, as
    `status` does, is no use of the endpoint.
    """

    requests: float
    in_flight: float
    usable: frozenset[str] = frozenset()  # URLs of replicas that it would send a request to now


class Idleness:
    """Measures for how long the endpoint has not been used; `now` is the caller's monotonic
    clock.
    """

    def __init__(self, now: float) -> None:
        self._used_at = now
        self._requests: float | None = None

    def saw(self, activity: Activity | None, now: float) -> float:
        """Add the router's activity (None: it cannot be asked, which does not count as idle);
        return the seconds without use.
        """
        if activity is None or activity.in_flight or activity.requests != self._requests:
            self._used_at = now
        self._requests = None if activity is None else activity.requests
        return now - self._used_at


_log = get_logger(__name__)

_LOOK_S = 2.0
_AFTER_JOBS_S = 15.0  # without a request, once the jobs that the swarm was kept for are over


class Supervision:
    """Checks the swarm every two seconds. `activity` asks the router."""

    def __init__(
        self,
        paths: SwarmPaths,
        platform: Platform,
        collector: Collector,
        activity: Callable[[], Awaitable[Activity | None]],
    ) -> None:
        self._paths = paths
        self._platform = platform
        self._collector = collector
        self._activity = activity
        now = asyncio.get_running_loop().time()
        self._idleness = Idleness(now)
        self._unusable_at = now  # the last time at which no replica was at work
        self._failure_reported = False

    async def run(self) -> None:
        """Return when the swarm has ended itself, after recording why."""
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                if await self._look():
                    return
            except (PlatformError, OSError, ValueError) as error:  # repeated at the next check
                _log.warning("cannot supervise the swarm now: %s", error)
            except Exception:  # noqa: BLE001 - the endpoint serves all the same
                _log.exception("cannot supervise the swarm now")

    async def _look(self) -> bool:
        spec = EndpointSpec.model_validate_json(self._paths.endpoint_spec.read_text("utf-8"))
        if spec.elastic is None:
            self._collector.want(range(spec.replicas))
        wanted = self._collector.wanted
        if not self._collector.all_serve():  # else there is nothing to ask the platform for
            lost = await asyncio.to_thread(self._platform.replace_lost, wanted)
            self._collector.give_up(lost)
        await self._report_failure(spec)
        reason = await self._reason_to_end(spec.idle_timeout_s, asleep=not wanted)
        if reason is None:
            return False
        _log.info("the swarm ends: %s", reason)
        await asyncio.to_thread(self._platform.end_rest)
        ended = Ended(tag=spec.tag, reason=reason, at=utc_now())
        await asyncio.to_thread(write_private, self._paths.ended, ended.model_dump_json())
        await self._notify("swarm_ended", reason)
        return True

    async def _report_failure(self, spec: EndpointSpec) -> None:
        """Notify the webhook once that no replica will serve again; `up` does it while it waits."""
        reasons = self._collector.failures()
        launching = claims.is_held(self._paths.launcher(spec.tag))
        if not reasons or len(reasons) < len(self._collector.wanted):
            return
        if self._failure_reported or launching:
            return
        self._failure_reported = True
        await self._notify("swarm_failed", f"all replicas failed: {reasons[0]}")

    async def _notify(self, event: str, message: str) -> None:
        name = self._paths.root.name
        url_file = self._paths.notify_url
        await asyncio.to_thread(notify, url_file, event, swarm=name, message=message)

    async def _reason_to_end(self, idle_timeout_s: float | None, *, asleep: bool) -> str | None:
        now = asyncio.get_running_loop().time()
        idle_s = self._idleness.saw(await self._use(), now)
        if idle_s >= _AFTER_JOBS_S and await asyncio.to_thread(self._jobs_over):
            return "the jobs that it was kept for are over"
        if not (asleep or self._collector.any_at_work()):  # they wait in the queue, or start
            self._unusable_at = now
        unused_s = min(idle_s, now - self._unusable_at)
        if idle_timeout_s is not None and unused_s >= idle_timeout_s:
            return f"nobody has used it for {idle_timeout_s:g} s"
        return None

    async def _use(self) -> Activity | None:
        """The router's activity, including jobs that send to the replicas directly."""
        seen = await self._activity()
        looked = self._collector.drivers_looked
        return None if seen is None else seen._replace(requests=seen.requests + looked)

    def _jobs_over(self) -> bool:
        """Whether there are jobs to end after (`--down-after`), and all have ended."""
        files = list(self._paths.down_after.glob("*.json"))
        handles = [JobHandle.model_validate_json(file.read_text("utf-8")) for file in files]
        return bool(handles) and all(self._platform.job_over(handle) for handle in handles)
