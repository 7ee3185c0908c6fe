"""An HTTP server for few, short connections: no client can starve the others, and every route but
`/health` needs a key.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Awaitable, Callable
from typing import cast

from aiohttp import web
from aiohttp.typedefs import Middleware
from typing_extensions import override

from domyn_swarm.backends.endpoint.endpoint_spec import EndpointSpec
from domyn_swarm.logs import get_logger

_log = get_logger(__name__)

METRICS = "/metrics"
MAX_CONNECTIONS = 256
LIFETIME_S = 5.0  # from accept to the end of the reply: slow headers, bodies and readers
_BACKLOG = 512

# What the HTTP library logs about bad requests: any client can cause it, so it must not fill a
# disk.
_refused = logging.getLogger(f"{__name__}.refused")
_refused.setLevel(logging.CRITICAL + 1)


class _Connection(web.RequestHandler):
    """A connection that is closed after `lifetime_s`; when there are too many, the oldest is
    closed.
    """

    __slots__ = ("_lifetime_s", "_open", "_timer")

    def __init__(
        self,
        server: web.Server,
        open_ones: dict[_Connection, asyncio.Transport],
        lifetime_s: float,
    ) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            access_log=_refused,
            logger=_refused,
            auto_decompress=False,  # a small body must not become a large one
        )
        self._open = open_ones
        self._lifetime_s = lifetime_s
        self._timer: asyncio.TimerHandle | None = None

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        super().connection_made(transport)
        stream = cast("asyncio.Transport", transport)
        self._open[self] = stream
        self._timer = asyncio.get_running_loop().call_later(self._lifetime_s, stream.abort)
        if len(self._open) > MAX_CONNECTIONS:
            self._open.pop(next(iter(self._open))).abort()

    @override
    def connection_lost(self, exc: BaseException | None) -> None:
        """Called by the event loop."""
        self._open.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)


async def serve(
    runner: web.AppRunner, host: str, *, port: int = 0, lifetime_s: float = LIFETIME_S
) -> tuple[asyncio.Server, int]:
    """Serve a runner that has been set up on a port of `host` (0: a free one); returns that port.

    Raises:
        OSError: the port is taken, or `host` is no address of this machine.
    """
    server = runner.server
    if server is None:
        raise RuntimeError("the runner has not been set up")
    open_ones: dict[_Connection, asyncio.Transport] = {}
    listening = await asyncio.get_running_loop().create_server(
        lambda: _Connection(server, open_ones, lifetime_s), host, port, backlog=_BACKLOG
    )
    return listening, listening.sockets[0].getsockname()[1]


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def keyed(spec: EndpointSpec) -> Middleware:
    """Middleware that rejects requests without a key: `/health` needs none, `/metrics` the key for
    metrics, all others the collector's. Each connection is closed after its reply.

    Raises:
        OSError: the collector's key cannot be read.
    """
    own = spec.collector_key_file.read_text("utf-8").strip().encode()

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        scraped = request.path == METRICS
        key = _metrics_key(spec) if scraped else own
        allowed = key and hmac.compare_digest(given, b"Bearer " + key)
        if not allowed and request.path != "/health":
            whose = "metrics'" if scraped else "collector's"
            reply: web.StreamResponse = error_reply(401, f"the {whose} key is missing or wrong")
        else:
            reply = await _answer(request, handler)
        reply.force_close()
        return reply

    return check


def _metrics_key(spec: EndpointSpec) -> bytes:
    """The key for metrics, read at each request so that it can be changed; an empty file rejects
    everyone.
    """
    try:
        file = spec.metrics_key_file
        return b"" if file is None else file.read_text("utf-8").strip().encode()
    except OSError:
        return b""


async def _answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPException as refusal:
        return error_reply(refusal.status, refusal.reason)
    except Exception:  # noqa: BLE001 - the boundary to a client
        _log.exception("cannot answer %s %s", request.method, request.path)
        return error_reply(500, "the collector failed")


def error_reply(status: int, message: str) -> web.Response:
    """An error reply in the JSON form of OpenAI's API."""
    return web.json_response({"error": message}, status=status)
