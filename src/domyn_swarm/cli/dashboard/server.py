"""Serves the dashboard: pages and their data, read-only.

Every request needs the token: in the URL that the command prints, which sets a cookie, or as
`Authorization: Bearer`. A page of another site can neither use the cookie (SameSite) nor reach the
server by a name that its owner points here (`Host` is checked).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import secrets
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import quote, urlsplit

from aiohttp import web

from domyn_swarm.backends.endpoint import connections
from domyn_swarm.cli.dashboard.board import Board, PageData, Poll, PollResult
from domyn_swarm.errors import ConfigError
from domyn_swarm.logs import get_logger
from domyn_swarm.model import utc_now
from domyn_swarm.services.report_page import stylesheet

_log = get_logger(__name__)

_PAGE = Path(__file__).parent / "page"
_LIFETIME_S = 30.0  # of a connection, also over a slow network
_REPORT_LASTS = timedelta(minutes=1)  # after which a request waits for a newer report
_COOKIE_S = 7 * 86400
_BODY_BYTES = 1024  # no request needs a body
_OWN = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:"
_REPORT = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_ALONE = "; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_ONCE_MORE = '<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="{}">{}'
_URL_NEEDED = (
    "This dashboard needs the URL with the token, as `domyn-swarm dashboard` printed it. Each "
    "start has a new token.\n"
)
_NO_HOST = (
    "This dashboard cannot be used under that name. Use localhost, an IP address, or this "
    "machine's name.\n"
)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Address:
    """The address on which a dashboard was requested to listen."""

    host: str
    port: int

    @property
    def public(self) -> bool:
        """Whether other machines may reach it."""
        try:
            return not ip_address(_resolved(self.host)).is_loopback
        except (OSError, UnicodeError):  # not a host name: `listening` reports it
            return True

    @property
    def reached_at(self) -> str:
        """The host in its URL."""
        if self.host in ("0.0.0.0", "::"):  # noqa: S104 - only compared
            return socket.gethostname()
        return f"[{self.host}]" if ":" in self.host else self.host


class Dashboard:
    """Routes and access control. `address` determines the allowed host names."""

    def __init__(self, board: Board, address: Address, every_s: float) -> None:
        self._board = board
        self._every_s = every_s
        self.token = secrets.token_urlsafe(32)
        digest = hashlib.sha256(self.token.encode()).hexdigest()
        self._cookie = (
            f"dashboard-{digest[:8]}"  # cookies ignore ports, and several dashboards may run here
        )
        self._names = {"localhost", socket.gethostname().lower(), address.host.lower()}
        if address.public:
            self._names.add(socket.getfqdn().lower())
        self._notice = (
            f"Served on {address.host}: everyone with the URL and its token can read this page, "
            "and the connection is not encrypted."
            if address.public
            else ""
        )

    def app(self) -> web.Application:
        """The application with all routes."""
        app = web.Application(client_max_size=_BODY_BYTES, middlewares=[self._guarded])
        routes = app.router
        html = _asset("page.html", "text/html")
        for path in ("/", "/swarms/{name}", "/jobs/{name}"):
            routes.add_get(path, html)
        routes.add_get("/page.js", _asset("page.js", "text/javascript"))
        routes.add_get("/page.css", _asset("page.css", "text/css", stylesheet()))
        routes.add_get("/reports/{name}", self._report)
        routes.add_get("/pages/", self._page(lambda _: self._board.everything()))
        routes.add_get("/pages/swarms/{name}", self._page(self._board.swarm))
        routes.add_get("/pages/jobs/{name}", self._page(self._board.job))
        everything: Callable[[str], Poll[PageData]] = lambda _: self._board.everything()  # noqa: E731
        routes.add_get("/api/swarms", _record(everything, "swarms"))
        routes.add_get("/api/jobs", _record(everything, "jobs"))
        routes.add_get("/api/swarms/{name}", _record(self._board.swarm, "swarm"))
        routes.add_get("/api/jobs/{name}", _record(self._board.job, "job"))
        return app

    # -- access control ----------------------------------------------------------------------

    @web.middleware
    async def _guarded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            reply = self._refusal(request) or await handler(request)
        except web.HTTPException as refusal:
            reply = _text(refusal.status, f"{refusal.reason}\n")
        except Exception:  # noqa: BLE001 - the boundary to a client
            _log.exception("cannot answer %s", request.path)
            reply = _text(500, "The dashboard failed: its terminal shows why.\n")
        reply.headers.update(_HEADERS)
        policy = _REPORT if request.path.startswith("/reports/") else _OWN
        reply.headers["Content-Security-Policy"] = policy + _ALONE
        reply.force_close()
        return reply

    def _refusal(self, request: web.Request) -> web.Response | None:
        """The refusal of a request; None: it is allowed."""
        if not self._is_ours(request.headers.get("Host", "")):
            return _text(403, _NO_HOST)
        if request.method not in ("GET", "HEAD"):
            return _text(405, "This dashboard is read-only: use GET.\n", Allow="GET, HEAD")
        if (given := request.query.get("token")) is not None:
            return self._admitted(request) if self._is_token(given) else _text(401, _URL_NEEDED)
        return None if self._has_token(request) else _without_token(request)

    def _has_token(self, request: web.Request) -> bool:
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._is_token(key):
            return True
        return self._is_token(request.cookies.get(self._cookie, ""))

    def _admitted(self, request: web.Request) -> web.Response:
        """A redirect to the same page without the token in its URL, which sets the cookie."""
        path = quote("/" + request.path.lstrip("/"))  # `//host` would redirect to another host
        reply = web.Response(status=303, headers={"Location": path})
        reply.set_cookie(
            self._cookie, self.token, max_age=_COOKIE_S, path="/", httponly=True, samesite="Strict"
        )
        return reply

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), self.token.encode())

    def _is_ours(self, host: str) -> bool:
        """Whether `Host` is an IP address or a name of this machine. Any other name may belong to
        a site that points it here (DNS rebinding).
        """
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        with contextlib.suppress(ValueError):
            ip_address(name)
            return True
        return name in self._names or name.endswith(".localhost")

    # -- answers -----------------------------------------------------------------------------

    def _page(self, poll: Callable[[str], Poll[PageData]]) -> Handler:
        """The data for a page's script: the latest result, its age, and the last problem."""

        async def answer(request: web.Request) -> web.Response:
            result = await poll(request.match_info.get("name", "")).result()
            head = {
                "schema_version": 1,
                "every_s": self._every_s,
                "notice": self._notice,
                "taken_at": None if result.at is None else result.at.isoformat(),
                "age_s": None if result.at is None else (utc_now() - result.at).total_seconds(),
                "problem": result.problem,
                "gone": result.gone,
            }
            page = "null" if result.value is None else result.value.page
            return _json(200, f'{json.dumps(head)[:-1]}, "page": {page}}}')

        return answer

    async def _report(self, request: web.Request) -> web.Response:
        result = await self._board.report(request.match_info["name"]).result()
        if result.problem is not None:
            return _text(404 if result.gone else 503, f"{result.problem}\n")
        if result.value is None or result.at is None or utc_now() - result.at > _REPORT_LASTS:
            return _again(2, "The report is being made …", status=503)
        reply = web.Response(text=result.value, content_type="text/html", charset="utf-8")
        reply.enable_compression()
        return reply


def _record(poll: Callable[[str], Poll[PageData]], kind: str) -> Handler:
    """The same data as the JSON of `status`, `swarm list`, `job list` and `job status`."""

    async def answer(request: web.Request) -> web.Response:
        result: PollResult[PageData] = await poll(request.match_info.get("name", "")).result()
        taken_at = None if result.at is None else result.at.isoformat()
        if result.problem is not None or result.value is None:
            problem = result.problem or "no result yet; try again"
            error = {"error": problem, "last_known_at": taken_at}
            return _json(404 if result.gone else 503, json.dumps(error))
        return _json(
            200, result.value.records[kind].model_dump_json(), **{"Taken-At": taken_at or ""}
        )

    return answer


def _asset(name: str, kind: str, before: str = "") -> Handler:
    text = before + (_PAGE / name).read_text("utf-8")

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(text=text, content_type=kind, charset="utf-8")

    return answer


def _without_token(request: web.Request) -> web.Response:
    """The answer to a request without the token."""
    if request.headers.get("Sec-Fetch-Site") == "cross-site":
        # A link of another site led here. Browsers do not send a strict cookie with such a request,
        # but they do with a reload from our own page.
        return _again(0, "", status=401)
    return _text(401, _URL_NEEDED)


def _text(status: int, text: str, **headers: str) -> web.Response:
    return web.Response(status=status, text=text, headers=headers)


def _json(status: int, text: str, **headers: str) -> web.Response:
    reply = web.Response(status=status, text=text, content_type="application/json", headers=headers)
    reply.enable_compression()
    return reply


def _again(after_s: int, text: str, *, status: int) -> web.Response:
    """A page that reloads itself."""
    page = _ONCE_MORE.format(after_s, text)
    return web.Response(status=status, text=page, content_type="text/html", charset="utf-8")


# -- listening ---------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def listening(dashboard: Dashboard, address: Address) -> AsyncIterator[int]:
    """Serve during the block; yields the port.

    Raises:
        ConfigError: the server cannot listen on the address.
    """
    runner = web.AppRunner(dashboard.app(), shutdown_timeout=1.0)
    await runner.setup()
    try:
        server, port = await connections.serve(
            runner, _resolved(address.host), port=address.port, lifetime_s=_LIFETIME_S
        )
    except (OSError, UnicodeError) as error:
        await runner.cleanup()
        why = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"Cannot listen on {address.host!r}, port {address.port}: {why}.",
            hint="--port 0 takes a free port; --host is an address or a name of this machine.",
        ) from error
    try:
        yield port
    finally:
        server.close()
        await runner.cleanup()


def _resolved(host: str) -> str:
    """One address of a host: with port 0 each of several addresses would get its own port."""
    return str(socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0][4][0])


async def stop_signal() -> int:
    """Wait for SIGINT, SIGTERM or SIGHUP; the number of the signal. Signals that are ignored
    (`nohup`) stay ignored.
    """
    loop = asyncio.get_running_loop()
    received: asyncio.Future[int] = loop.create_future()

    def end(number: int) -> None:
        if not received.done():
            received.set_result(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number is signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, end, number)
    return await received
