"""A server whose connections are few and short, so that no client can starve the others."""

from __future__ import annotations

import asyncio
import logging
from typing import cast

from aiohttp import web

MAX_CONNECTIONS = 256
LIFETIME_S = 5.0  # from accept to the end of the reply: slow headers, bodies and readers alike
_BACKLOG = 512

# What the HTTP library says of bad requests: anyone can cause it, so it may not fill a disk
_log = logging.getLogger(f"{__name__}.refused")
_log.setLevel(logging.CRITICAL + 1)


class _Connection(web.RequestHandler):
    """Closed after `lifetime_s`; when there are too many, the oldest makes room."""

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
            access_log=_log,
            logger=_log,
            auto_decompress=False,  # nobody may send little that becomes much
        )
        self._open = open_ones
        self._lifetime_s = lifetime_s
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        super().connection_made(transport)
        stream = cast("asyncio.Transport", transport)
        self._open[self] = stream
        self._timer = asyncio.get_running_loop().call_later(self._lifetime_s, stream.abort)
        if len(self._open) > MAX_CONNECTIONS:
            self._open.pop(next(iter(self._open))).abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Called by the event loop."""
        self._open.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)


async def serve(
    runner: web.AppRunner, host: str, *, port: int = 0, lifetime_s: float = LIFETIME_S
) -> tuple[asyncio.Server, int]:
    """Serve a runner that has been set up, on a port of `host` (0: a free one); returns that port.

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
