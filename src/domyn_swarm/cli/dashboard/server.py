"""Serves the dashboard: a page, its data, and nothing that changes anything.

Who asks must have the token: in the URL that the command printed, which becomes a cookie, or as
`Authorization: Bearer`. A page of another site can neither use the cookie (SameSite) nor come under
a name of its own that leads here (`Host` is checked).
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
from domyn_swarm.cli.dashboard.board import Board, Look, Seen, Sight
from domyn_swarm.errors import ConfigError
from domyn_swarm.logs import get_logger
from domyn_swarm.model import utc_now
from domyn_swarm.services.report_page import stylesheet

_log = get_logger(__name__)

_PAGE = Path(__file__).parent / "page"
_LIFETIME_S = 30.0  # of a connection: lines may be slow
_REPORT_LASTS = timedelta(minutes=1)  # a newer one is waited for
_COOKIE_S = 7 * 86400
_BODY_BYTES = 1024  # nobody has one to send
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
_STRANGER = (
    "This dashboard answers those who have its URL with the token, as `domyn-swarm dashboard` "
    "printed it. Each start has another one.\n"
)
_NO_HOST = (
    "This dashboard is not reached under that name. Use localhost, an address, or this machine's "
    "name.\n"
)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Address:
    """Where a dashboard listens, as it was asked to."""

    host: str
    port: int

    @property
    def public(self) -> bool:
        """Whether others than this machine's users may reach it."""
        try:
            return not ip_address(_resolved(self.host)).is_loopback
        except (OSError, UnicodeError):  # it is no name: `listening` says so
            return True

    @property
    def reached_at(self) -> str:
        """The host of its URL."""
        if self.host in ("0.0.0.0", "::"):  # noqa: S104 - it is compared
            return socket.gethostname()
        return f"[{self.host}]" if ":" in self.host else self.host


class Dashboard:
    """Routes and who may use them. `address` says under which names it may be reached."""

    def __init__(self, board: Board, address: Address, every_s: float) -> None:
        self._board = board
        self._every_s = every_s
        self.token = secrets.token_urlsafe(32)
        digest = hashlib.sha256(self.token.encode()).hexdigest()
        self._cookie = f"dashboard-{digest[:8]}"  # cookies know no ports: several may run here
        self._names = {"localhost", socket.gethostname().lower(), address.host.lower()}
        if address.public:
            self._names.add(socket.getfqdn().lower())
        self._notice = (
            f"Served on {address.host}: whoever has the URL with its token can read this page, and "
            "what is sent is not encrypted."
            if address.public
            else ""
        )

    def app(self) -> web.Application:
        """Everything that is answered."""
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
        everything: Callable[[str], Look[Sight]] = lambda _: self._board.everything()  # noqa: E731
        routes.add_get("/api/swarms", _record(everything, "swarms"))
        routes.add_get("/api/jobs", _record(everything, "jobs"))
        routes.add_get("/api/swarms/{name}", _record(self._board.swarm, "swarm"))
        routes.add_get("/api/jobs/{name}", _record(self._board.job, "job"))
        return app

    # -- who may ask -------------------------------------------------------------------------

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
        """What is answered instead of what was asked for; None: it may be answered."""
        if not self._is_ours(request.headers.get("Host", "")):
            return _text(403, _NO_HOST)
        if request.method not in ("GET", "HEAD"):
            return _text(405, "This dashboard changes nothing: GET alone.\n", Allow="GET, HEAD")
        if (given := request.query.get("token")) is not None:
            return self._admitted(request) if self._is_token(given) else _text(401, _STRANGER)
        return None if self._has_token(request) else _stranger(request)

    def _has_token(self, request: web.Request) -> bool:
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._is_token(key):
            return True
        return self._is_token(request.cookies.get(self._cookie, ""))

    def _admitted(self, request: web.Request) -> web.Response:
        """The same page without the token in its URL; the cookie has it from now on."""
        path = quote("/" + request.path.lstrip("/"))  # no `//host`, which would lead elsewhere
        reply = web.Response(status=303, headers={"Location": path})
        reply.set_cookie(
            self._cookie, self.token, max_age=_COOKIE_S, path="/", httponly=True, samesite="Strict"
        )
        return reply

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), self.token.encode())

    def _is_ours(self, host: str) -> bool:
        """Whether a page that was loaded from there can be of this server: addresses cannot be
        pointed at another machine, names of others can.
        """
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        with contextlib.suppress(ValueError):
            ip_address(name)
            return True
        return name in self._names or name.endswith(".localhost")

    # -- what is answered --------------------------------------------------------------------

    def _page(self, look: Callable[[str], Look[Sight]]) -> Handler:
        """What the page's script asks for: what is known, how old it is, and what is wrong."""

        async def answer(request: web.Request) -> web.Response:
            seen = await look(request.match_info.get("name", "")).seen()
            head = {
                "schema_version": 1,
                "every_s": self._every_s,
                "notice": self._notice,
                "taken_at": None if seen.at is None else seen.at.isoformat(),
                "age_s": None if seen.at is None else (utc_now() - seen.at).total_seconds(),
                "problem": seen.problem,
                "gone": seen.gone,
            }
            page = "null" if seen.value is None else seen.value.page
            return _json(200, f'{json.dumps(head)[:-1]}, "page": {page}}}')

        return answer

    async def _report(self, request: web.Request) -> web.Response:
        seen = await self._board.report(request.match_info["name"]).seen()
        if seen.problem is not None:
            return _text(404 if seen.gone else 503, f"{seen.problem}\n")
        if seen.value is None or seen.at is None or utc_now() - seen.at > _REPORT_LASTS:
            return _again(2, "The report is being made …", status=503)
        reply = web.Response(text=seen.value, content_type="text/html", charset="utf-8")
        reply.enable_compression()
        return reply


def _record(look: Callable[[str], Look[Sight]], kind: str) -> Handler:
    """The same as JSON of the commands: `status`, `swarm list`, `job list`, `job status`."""

    async def answer(request: web.Request) -> web.Response:
        seen: Seen[Sight] = await look(request.match_info.get("name", "")).seen()
        taken_at = None if seen.at is None else seen.at.isoformat()
        if seen.problem is not None or seen.value is None:
            told = {"error": seen.problem or "not seen yet; ask again", "last_known_at": taken_at}
            return _json(404 if seen.gone else 503, json.dumps(told))
        return _json(
            200, seen.value.records[kind].model_dump_json(), **{"Taken-At": taken_at or ""}
        )

    return answer


def _asset(name: str, kind: str, before: str = "") -> Handler:
    text = before + (_PAGE / name).read_text("utf-8")

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(text=text, content_type=kind, charset="utf-8")

    return answer


def _stranger(request: web.Request) -> web.Response:
    """The answer to who has no token."""
    if request.headers.get("Sec-Fetch-Site") == "cross-site":
        # It came by a link of another site, with which a strict cookie is not sent: from a page of
        # our own the same request has it
        return _again(0, "", status=401)
    return _text(401, _STRANGER)


def _text(status: int, text: str, **headers: str) -> web.Response:
    return web.Response(status=status, text=text, headers=headers)


def _json(status: int, text: str, **headers: str) -> web.Response:
    reply = web.Response(status=status, text=text, content_type="application/json", headers=headers)
    reply.enable_compression()
    return reply


def _again(after_s: int, text: str, *, status: int) -> web.Response:
    """A page that asks for itself once more."""
    page = _ONCE_MORE.format(after_s, text)
    return web.Response(status=status, text=page, content_type="text/html", charset="utf-8")


# -- listening ---------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def listening(dashboard: Dashboard, address: Address) -> AsyncIterator[int]:
    """Serve within the block, on the port that is given.

    Raises:
        ConfigError: it cannot listen there.
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
    """One address: with a free port each address of a name would have another one."""
    return str(socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0][4][0])


async def told_to_end() -> int:
    """Wait for SIGINT, and for SIGTERM and SIGHUP unless whoever started us has them ignored
    (`nohup`); which one it was.
    """
    loop = asyncio.get_running_loop()
    told: asyncio.Future[int] = loop.create_future()

    def end(number: int) -> None:
        if not told.done():
            told.set_result(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number is signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, end, number)
    return await told
