"""The one receiver of a swarm's watchdog reports: believes, remembers, and tells the router."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping

from aiohttp import web

from domyn_swarm.backends.endpoint.connections import METRICS, error_reply, keyed
from domyn_swarm.backends.endpoint.gauges import EngineGauges
from domyn_swarm.backends.endpoint.history import EVENTS_TOLD, History
from domyn_swarm.backends.endpoint.reachability import CHECK_S, Reachability
from domyn_swarm.backends.endpoint.replicas import ReplicaTable, Verdict
from domyn_swarm.backends.endpoint.spec import EndpointSpec
from domyn_swarm.backends.endpoint.use_meter import FollowedJob, UseMeter
from domyn_swarm.backends.endpoint.view import CollectorView
from domyn_swarm.backends.gpu_time import Use
from domyn_swarm.errors import quantity
from domyn_swarm.logs import get_logger
from domyn_swarm.model import ReplicaReport, ReplicaState, listing_tag, utc_now
from domyn_swarm.paths import SwarmPaths, write_private

_log = get_logger(__name__)

MAX_BODY_BYTES = 65_536
OVERLAP_S = 3.0  # a router uses a server as a rule that was listed so long ago
_OVERLAP_AT_MOST_S = 60.0  # where it says that it does not yet
_TICK_S = 1.0  # staleness is looked at so often
_WRITE_VIEW_EVERY_S = 5.0  # and replicas.json refreshed so often when only times changed
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_VIEW_AT_MOST_EVERY_S = 1.0  # that file grows with the replicas, and so does who changes
_FRESH_S = 0.5  # a listing of the replicas is made anew so often, however many ask for it
_SILENT = "it fell silent, no report for {0:g} s; no requests go there"
_UNREACHABLE = "its port cannot be connected to; no requests go there"
_NAMED = 8  # replicas that a line of the log names
_REPLY_WAIT_S = 2.0  # a report waits so long for the manifest to be written
_AT_WORK = (ReplicaState.READY, ReplicaState.UNHEALTHY, ReplicaState.DRAINING)
_STATUS = {Verdict.UNKNOWN: 404, Verdict.SUPERSEDED: 409}


class Collector:
    """State, files and HTTP handlers. `manifest` renders the router's list of replicas, and
    `settle_s` is how long after a change on disk the router surely follows it.
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
        self.stand_in: str | None = None  # what the router is given where no replica serves
        self._awake, self._turned_at = False, -OVERLAP_S  # whether one does, and since when
        self.used_by_router: frozenset[str] | None = None  # as it says; None: it does not
        self.drivers_looked = 0  # how often a job asked for replicas to send requests to
        self._unwritten: list[ReplicaReport] = []
        self._listed: tuple[str, ...] | None = None  # in the manifest on disk; None: not ours yet
        self._in_router: frozenset[str] = frozenset()  # the same
        self._silent: set[str] = set()  # URLs taken off it without a word of their replicas
        self._left_at: dict[str, float] = {}  # when a URL was last taken off the disk
        self._view_written_at = 0.0
        self._view_changed = True
        self._closing = False
        self._listings: dict[bool, tuple[float, str]] = {}  # by whether for requests: when, JSON
        self._news = asyncio.Event()
        self._synced = asyncio.Condition()
        self._restore()

    def _restore(self) -> None:
        """An endpoint that was restarted goes on with what it knew, if it was of this swarm."""
        try:
            view = CollectorView.model_validate_json(self._paths.replicas.read_text("utf-8"))
        except (OSError, ValueError):
            return
        if view.tag == self._spec.tag:
            self._table.restore(view.replicas, _now())

    # -- HTTP ---------------------------------------------------------------------------------

    def app(self, metrics: Callable[[], Awaitable[bytes]] | None = None) -> web.Application:
        """The routes. `/health` asks for no key, `/metrics` for that of the metrics, every other
        one for the collector's.
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
        for_requests = "for" in request.query  # somebody sends them without the router
        self.drivers_looked += for_requests
        serving = self.serving()
        if for_requests and serving and request.query.get("known") == listing_tag(serving):
            return web.Response(status=204)  # a thousand replicas are much to tell every second
        text = self._listing(for_requests=for_requests)
        return web.Response(text=text, content_type="application/json")

    def _listing(self, *, for_requests: bool) -> str:
        """The view as JSON, no older than `_FRESH_S`, and than the last change of a state."""
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
        found = await asyncio.to_thread(self._history.read, since, EVENTS_TOLD)
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
        """Believe a report unless it is of the past; files follow within moments."""
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
        """Whether the router has surely read a manifest without this URL."""
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
        """Whether some replica may have requests in flight."""
        return any(report.state in _AT_WORK for report in self._table.reports())

    def failures(self) -> list[str]:
        """Why replicas were given up, of those that were."""
        failed = [one for one in self._table.reports() if one.state is ReplicaState.FAILED]
        return [one.reason or "unknown" for one in failed]

    def give_up(self, replicas: Iterable[int]) -> None:
        """These have failed, though they hoped for another start."""
        for replica in replicas:
            before = self._table.last(replica)
            self._table.give_up(replica)
            self._note(before, replica)

    def uses(self, jobs: Iterable[FollowedJob]) -> Mapping[tuple[int, Use], float]:
        """What the replicas' time went to since this collector began; see `UseMeter.read`."""
        return self._meter.read(jobs, _now())

    def want(self, replicas: Iterable[int]) -> None:
        """These replicas are wanted from now on; the router gives others no request."""
        before = self._table.wanted
        self._table.want(replicas)
        if self._table.wanted != before:
            self._view_changed = True
            self._listings.clear()
            self._news.set()

    @property
    def wanted(self) -> frozenset[int]:
        """The replicas that there shall be."""
        return self._table.wanted

    def all_serve(self) -> bool:
        """Whether every replica that is wanted takes requests."""
        return len(self._table.serving(_now())) >= len(self._table.wanted)

    def serving_replicas(self) -> tuple[int, ...]:
        """Those that take requests now."""
        found = self._table.serving(_now())
        return tuple(one for one, url in found.items() if self._reachability.reachable(url))

    def unlisted_s(self, url: str) -> float:
        """For how long the router's list has been without a replica."""
        return 0.0 if url in self._in_router else _now() - self._left_at.get(url, -math.inf)

    def last(self, replica: int) -> ReplicaReport | None:
        """What a replica reported last."""
        return self._table.last(replica)

    def view(self) -> CollectorView:
        """What is believed now."""
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
        """Bring the files up to date with every change, until cancelled."""
        while True:
            self._news.clear()
            try:
                await self._sync()
            except OSError as error:  # a full disk must not end the endpoint: tried again
                _log.warning("cannot write: %s", error)
            except Exception:  # noqa: BLE001 - the endpoint serves all the same
                _log.exception("cannot bring the files up to date")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TICK_S):  # wait_for may swallow a cancellation
                    await self._news.wait()

    async def keep_checking(self) -> None:
        """Look whether the replicas' ports answer, until cancelled."""
        while True:
            await asyncio.sleep(CHECK_S)
            try:
                if await self._reachability.check(tuple(self._table.serving(_now()).values())):
                    self._listings.clear()
                    self._news.set()
            except Exception:  # noqa: BLE001 - the endpoint serves all the same
                _log.exception("cannot look whether the replicas' ports answer")

    def serving(self) -> tuple[str, ...]:
        """Where the router may send requests now."""
        urls = self._table.serving(_now()).values()
        return tuple(url for url in urls if self._reachability.reachable(url))

    def _for_router(self) -> tuple[str, ...]:
        """What the router may use: where no replica serves, what stands in for them, and both at
        each change until it uses what is new: it looks at a server before it does.
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
        """Write down replicas that fell silent, or cannot be reached: of those alone nobody reports
        a change.
        """
        for report in self._table.reports():
            if report.url is None or report.state is not ReplicaState.READY:
                continue
            if report.replica not in self._table.wanted:  # it was taken out
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
        """Write what is not written yet."""
        await self.gauges.close()
        try:
            self._closing = True
            await self._sync()
        except OSError as error:
            _log.warning("cannot write: %s", error)
        finally:
            self._history.close()


def _now() -> float:
    """Seconds of the loop's clock, by which all of this is judged."""
    return asyncio.get_running_loop().time()


def _same_story(before: ReplicaReport, now: ReplicaReport) -> bool:
    """Whether only a heartbeat passed."""
    return (before.state, before.reason, before.url, before.restarts, before.incarnation) == (
        *(now.state, now.reason, now.url, now.restarts, now.incarnation),
    )
