"""The collector receives the watchdogs' reports, keeps the state of every replica, and writes the
router's list.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping

from aiohttp import web

from domyn_swarm.backends.endpoint.connections import METRICS, error_reply, keyed
from domyn_swarm.backends.endpoint.endpoint_spec import EndpointSpec
from domyn_swarm.backends.endpoint.gauges import EngineGauges
from domyn_swarm.backends.endpoint.history import MOST_EVENTS, History
from domyn_swarm.backends.endpoint.reachability import CHECK_S, Reachability
from domyn_swarm.backends.endpoint.replica_table import ReplicaTable, Verdict
from domyn_swarm.backends.endpoint.use_meter import FollowedJob, UseMeter
from domyn_swarm.backends.endpoint.view import CollectorView
from domyn_swarm.backends.gpu_time import Use
from domyn_swarm.errors import quantity
from domyn_swarm.logs import get_logger
from domyn_swarm.model import ReplicaReport, ReplicaState, listing_tag, utc_now
from domyn_swarm.paths import SwarmPaths, write_private

_log = get_logger(__name__)

MAX_BODY_BYTES = 65_536
OVERLAP_S = 3.0  # how long after a server is listed a router normally uses it
_OVERLAP_AT_MOST_S = 60.0  # longest wait while the router's metrics do not name the server yet
_TICK_S = 1.0  # interval of checks for stale reports
_WRITE_VIEW_EVERY_S = 5.0  # interval of writes of replicas.json if only times changed
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_VIEW_AT_MOST_EVERY_S = 1.0  # with more replicas the file is larger and changes more often
_FRESH_S = 0.5  # how long a rendered listing is reused, whatever the number of clients
_SILENT = "no reports received for {0:g} s; removed from routing"
_UNREACHABLE = "its port cannot be connected to; no requests go there"
_NAMED = 8  # replicas that one line of the log names at most
_REPLY_WAIT_S = 2.0  # how long the reply to a report waits for the manifest to be written
_AT_WORK = (ReplicaState.READY, ReplicaState.UNHEALTHY, ReplicaState.DRAINING)
_STATUS = {Verdict.UNKNOWN: 404, Verdict.SUPERSEDED: 409}


class Collector:
    """State, files and HTTP handlers. `manifest` renders the router's list of replicas; `settle_s`
    is how long after a change on disk the router is assumed to follow it.
    """

    def __init__(
        self,
        spec: EndpointSpec,
        paths: SwarmPaths,
        manifest: Callable[[tuple[str, ...]], str],
        settle_s: float,
    ) -> None:
        self._paths = paths
        self._spec = spec
        self._manifest = manifest
        self._settle_s = settle_s
        self._table = ReplicaTable(spec.replicas, spec.stale_after_s)
        self._history = History(paths.watchdog_db)
        self._reachability = Reachability()
        self.gauges = EngineGauges(spec)
        self._meter = UseMeter(spec.stale_after_s)
        self.stand_in: str | None = None  # URL given to the router while no replica serves
        self._awake, self._turned_at = False, -OVERLAP_S  # whether a replica serves, and since when
        # URLs, by its metrics; None: they do not say
        self.used_by_router: frozenset[str] | None = None
        self.drivers_looked = 0  # how often a job asked for replicas to send requests to
        self._unwritten: list[ReplicaReport] = []
        # in the manifest on disk; None: none written yet
        self._listed: tuple[str, ...] | None = None
        self._in_router: frozenset[str] = frozenset()  # the same, as a set
        self._silent: set[str] = set()  # URLs removed without a report of their replicas
        self._left_at: dict[str, float] = {}  # when a URL was last removed from the file
        self._view_written_at = 0.0
        self._view_changed = True
        self._closing = False
        self._listings: dict[bool, tuple[float, str]] = {}  # by `for_requests`: time, JSON
        self._news = asyncio.Event()
        self._synced = asyncio.Condition()
        self._restore()

    def _restore(self) -> None:
        """Restore the state that an earlier endpoint program of this swarm wrote."""
        try:
            view = CollectorView.model_validate_json(self._paths.replicas.read_text("utf-8"))
        except (OSError, ValueError):
            return
        if view.tag == self._spec.tag:
            self._table.restore(view.replicas, _now())

    # -- HTTP ---------------------------------------------------------------------------------

    def app(self, metrics: Callable[[], Awaitable[bytes]] | None = None) -> web.Application:
        """The routes. `/health` needs no key, `/metrics` the key for metrics, all others the
        collector's key.
        """
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[keyed(self._spec)])
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/replicas", self._replicas)
        app.router.add_get("/v1/gauges", self._gauges_now)
        app.router.add_get("/v1/history", self._events)
        app.router.add_post("/v1/report", self._report)
        if metrics is not None:

            async def tell(_request: web.Request) -> web.Response:
                return web.Response(body=await metrics(), headers={"Content-Type": _METRICS_TYPE})

            app.router.add_get(METRICS, tell)
        return app

    async def _health(self, _request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _replicas(self, request: web.Request) -> web.Response:
        for_requests = "for" in request.query  # a job that sends them directly
        self.drivers_looked += for_requests
        serving = self.serving()
        if for_requests and serving and request.query.get("known") == listing_tag(serving):
            return web.Response(status=204)  # the list may be long
        text = self._listing(for_requests=for_requests)
        return web.Response(text=text, content_type="application/json")

    def _listing(self, *, for_requests: bool) -> str:
        """The view as JSON: at most `_FRESH_S` old, and never older than the last change of a
        state.
        """
        made_at, text = self._listings.get(for_requests, (-_FRESH_S, ""))
        if _now() - made_at < _FRESH_S:
            return text
        view = self.view()
        if for_requests:
            serving = frozenset(self.serving())
            able = tuple(one for one in view.replicas if one.url in serving)
            view = view.model_copy(update={"replicas": able})
        text = view.model_dump_json()
        self._listings[for_requests] = _now(), text
        return text

    async def _events(self, request: web.Request) -> web.Response:
        since = request.query.get("since", "")
        found = await asyncio.to_thread(self._history.read, since, MOST_EVENTS)
        return web.json_response({"events": found})

    async def _gauges_now(self, _request: web.Request) -> web.Response:
        found = await self.gauges.read(self.serving())
        if found is None:
            return error_reply(404, "these engines have no gauges")
        return web.Response(text=found.model_dump_json(), content_type="application/json")

    async def _report(self, request: web.Request) -> web.Response:
        body = await request.read()
        try:
            report = ReplicaReport.model_validate_json(body)
        except ValueError as error:
            from pydantic import ValidationError

            count = error.error_count() if isinstance(error, ValidationError) else 1
            return error_reply(
                400, f"not a report: {quantity(count, 'field is', 'fields are')} wrong"
            )
        verdict = self.take(report)
        if verdict in _STATUS:
            return error_reply(_STATUS[verdict], f"{verdict.value} replica {report.replica}")
        drained = report.state is ReplicaState.DRAINING and await self._is_drained(report.url)
        return web.json_response({"verdict": verdict.value, "drained": drained})

    def take(self, report: ReplicaReport) -> Verdict:
        """Accept a report unless it is older than the last one. The files follow within moments."""
        before = self._table.last(report.replica)
        verdict = self._table.take(report, _now(), utc_now())
        if verdict is Verdict.TAKEN:
            self._meter.heard(report, _now())
            self._note(before, report.replica)
        return verdict

    def _note(self, before: ReplicaReport | None, replica: int) -> None:
        now = self._table.last(replica)
        if now is None or (before is not None and _same_story(before, now)):
            return
        detail = f": {now.reason}" if now.reason else ""
        _log.info("replica %d is %s%s", replica, now.state.value, detail)
        self._unwritten.append(now)
        self._view_changed = True
        self._listings.clear()
        self._news.set()

    async def _is_drained(self, url: str | None) -> bool:
        """Whether the router is certain to have read a manifest without this URL."""
        if url is None:
            return True
        try:
            async with asyncio.timeout(_REPLY_WAIT_S), self._synced:
                await self._synced.wait_for(
                    lambda: self._listed is not None and url not in self._in_router
                )
        except TimeoutError:
            return False
        left_at = self._left_at.get(url)
        return left_at is None or _now() - left_at >= self._settle_s

    def any_at_work(self) -> bool:
        """Whether at least one replica may have requests in flight."""
        return any(report.state in _AT_WORK for report in self._table.reports())

    def failures(self) -> list[str]:
        """The reasons of the replicas that failed permanently."""
        failed = [one for one in self._table.reports() if one.state is ReplicaState.FAILED]
        return [one.reason or "unknown" for one in failed]

    def give_up(self, replicas: Iterable[int]) -> None:
        """Mark these replicas as failed, although their watchdogs expect another start."""
        for replica in replicas:
            before = self._table.last(replica)
            self._table.give_up(replica)
            self._note(before, replica)

    def uses(self, jobs: Iterable[FollowedJob]) -> Mapping[tuple[int, Use], float]:
        """The replicas' time by use since this collector began; see `UseMeter.read`."""
        return self._meter.read(jobs, _now())

    def want(self, replicas: Iterable[int]) -> None:
        """Set the replicas that are wanted from now on; the router sends no request to any
        other.
        """
        before = self._table.wanted
        self._table.want(replicas)
        if self._table.wanted != before:
            self._view_changed = True
            self._listings.clear()
            self._news.set()

    @property
    def wanted(self) -> frozenset[int]:
        """The replicas that should exist."""
        return self._table.wanted

    def all_serve(self) -> bool:
        """Whether every replica that is wanted takes requests."""
        return len(self._table.serving(_now())) >= len(self._table.wanted)

    def serving_replicas(self) -> tuple[int, ...]:
        """The replicas that accept requests now."""
        found = self._table.serving(_now())
        return tuple(one for one, url in found.items() if self._reachability.reachable(url))

    def unlisted_s(self, url: str) -> float:
        """For how many seconds the router's list has not held the replica."""
        return 0.0 if url in self._in_router else _now() - self._left_at.get(url, -math.inf)

    def last(self, replica: int) -> ReplicaReport | None:
        """The replica's last report."""
        return self._table.last(replica)

    def view(self) -> CollectorView:
        """The current state of all replicas."""
        return CollectorView(
            replicas=self._table.reports(),
            taken_at=utc_now(),
            stale_after_s=self._spec.stale_after_s,
            tag=self._spec.tag,
            wanted=len(self._table.wanted),
            elastic=self._spec.elastic is not None,
            asked_for=tuple(sorted(self._table.wanted)) if self._spec.elastic else None,
        )

    # -- files --------------------------------------------------------------------------------

    async def keep_files(self) -> None:
        """Write the files after every change, until cancelled."""
        while True:
            self._news.clear()
            try:
                await self._sync()
            except OSError as error:  # a full disk must not end the endpoint
                _log.warning("cannot write: %s", error)
            except Exception:  # noqa: BLE001 - the endpoint serves all the same
                _log.exception("cannot bring the files up to date")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TICK_S):  # wait_for may swallow a cancellation
                    await self._news.wait()

    async def keep_checking(self) -> None:
        """Check whether the replicas' ports accept connections, until cancelled."""
        while True:
            await asyncio.sleep(CHECK_S)
            try:
                if await self._reachability.check(tuple(self._table.serving(_now()).values())):
                    self._listings.clear()
                    self._news.set()
            except Exception:  # noqa: BLE001 - the endpoint serves all the same
                _log.exception("cannot check whether the replicas' ports answer")

    def serving(self) -> tuple[str, ...]:
        """URLs of the replicas to which the router may send requests now."""
        urls = self._table.serving(_now()).values()
        return tuple(url for url in urls if self._reachability.reachable(url))

    def _for_router(self) -> tuple[str, ...]:
        """The servers that the router may use: the replicas, or the stand-in while none serves. At
        each change both are listed until the router uses the new ones, because it checks a server
        before it uses it.
        """
        serving, now = self.serving(), _now()
        if self.stand_in is None:
            return serving
        if bool(serving) != self._awake:
            self._awake, self._turned_at = bool(serving), now
        coming = serving or (self.stand_in,)
        used = self.used_by_router is None or not self.used_by_router.isdisjoint(coming)
        if now - self._turned_at >= (OVERLAP_S if used else _OVERLAP_AT_MOST_S):
            return coming
        leaving = [one.url for one in self._table.reports() if one.state is ReplicaState.READY]
        urls = serving or [url for url in leaving if url and self._reachability.reachable(url)]
        return (*urls, self.stand_in)

    async def _sync(self) -> None:
        serving = self._for_router()
        if serving != self._listed:
            await asyncio.to_thread(
                write_private, self._paths.router_manifest, self._manifest(serving)
            )
            before, now = self._in_router, frozenset(serving)
            self._note_routing(before, now)
            async with self._synced:
                self._left_at.update(dict.fromkeys(before - now, _now()))
                self._listed, self._in_router = serving, now
                self._synced.notify_all()
            moved = [*(f"+{url}" for url in now - before), *(f"-{url}" for url in before - now)]
            named = ", ".join(sorted(moved)[:_NAMED]) + (", ..." if moved[_NAMED:] else "")
            _log.info("the router may use %d replicas: %s", len(serving), named)
        age = _now() - self._view_written_at
        due_s = _VIEW_AT_MOST_EVERY_S if self._view_changed else _WRITE_VIEW_EVERY_S
        if age >= due_s or self._closing:
            self._view_changed = False
            self._view_written_at = _now()
            await asyncio.to_thread(
                write_private, self._paths.replicas, self.view().model_dump_json(indent=2)
            )
        changes, self._unwritten = self._unwritten, []
        if changes:
            await asyncio.to_thread(self._history.append, changes)

    def _note_routing(self, before: frozenset[str], now: frozenset[str]) -> None:
        """Record replicas that stopped reporting or cannot be connected to; no report announces
        these changes.
        """
        for report in self._table.reports():
            if report.url is None or report.state is not ReplicaState.READY:
                continue
            if report.replica not in self._table.wanted:  # it was removed on purpose
                continue
            change: dict[str, object] = {"reported_at": utc_now()}
            if report.url in before - now:
                self._silent.add(report.url)
                silent = _SILENT.format(self._spec.stale_after_s)
                why = silent if self._reachability.reachable(report.url) else _UNREACHABLE
                change |= {"state": ReplicaState.UNHEALTHY, "reason": why}
            elif report.url in now - before and report.url in self._silent:
                self._silent.discard(report.url)
            else:
                continue
            self._unwritten.append(report.model_copy(update=change))

    async def close(self) -> None:
        """Write whatever is not written yet."""
        await self.gauges.close()
        try:
            self._closing = True
            await self._sync()
        except OSError as error:
            _log.warning("cannot write: %s", error)
        finally:
            self._history.close()


def _now() -> float:
    """Seconds of the event loop's clock, on which all decisions here are based."""
    return asyncio.get_running_loop().time()


def _same_story(before: ReplicaReport, now: ReplicaReport) -> bool:
    """Whether two reports differ in their times only (a heartbeat)."""
    return (before.state, before.reason, before.url, before.restarts, before.incarnation) == (
        *(now.state, now.reason, now.url, now.restarts, now.incarnation),
    )
