"""Stands in for the replicas of a swarm that has none now (`replicas: {min: 0}`).

The router lists it in their place, so that clients see the model as served. A request wakes a
replica and is held; once a replica serves, the request is forwarded to it and the reply is passed
back. A request that is held for longer than `hold_s`, or exceeds what can be held, is answered with
503 and `Retry-After`. Jobs do not use it: they ask the collector, and wait.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
from aiohttp import web

from domyn_swarm.backends.endpoint.endpoint_spec import EndpointSpec
from domyn_swarm.logs import get_logger

_log = get_logger(__name__)

HOST = "127.0.0.1"  # only the router, on the same machine, connects here
_MOST_HELD = 1024
_MOST_BYTES = 256 << 20  # bytes of all held requests together
_MOST_BODY_BYTES = 64 << 20
_LOOK_S = 0.1
_RETRY_AT_LEAST_S = 5
RETRY_AT_MOST_S = 60
_PASSED_ON = ("Content-Type", "Content-Encoding", "Retry-After", "X-Request-Id")
# Settings of the server: a held request is dropped when its client disconnects, and at shutdown.
RUNNER: dict[str, Any] = {
    "access_log": None,
    "handler_cancellation": True,
    "shutdown_timeout": 0.1,
}
_NOT_STARTED = (aiohttp.ClientConnectorError, ConnectionRefusedError)


class Doorkeeper:
    """Holds requests until `serving`, the replicas that accept requests now, is not empty."""

    def __init__(
        self,
        spec: EndpointSpec,
        hold_s: float,
        serving: Callable[[], tuple[str, ...]],
    ) -> None:
        self._model = spec.model
        self._health_path = spec.health_path
        self._key = spec.api_key_file.read_text("utf-8").strip()
        self._hold_s = hold_s
        self._serving = serving
        # until a replica serves, if known
        self.expected_s: Callable[[], float | None] = lambda: None
        self.why: Callable[[], str | None] = lambda: None  # why none will for now, if so
        self._bytes = 0
        self._turn = 0  # used to spread the held requests over the replicas
        self._session: aiohttp.ClientSession | None = None
        self.turned_away = 0  # rejected requests, whose clients may retry
        self.held = 0  # requests that are held here
        self.came = asyncio.Event()  # set when a request came

    def app(self) -> web.Application:
        """The routes that the router expects of a replica."""
        app = web.Application(client_max_size=_MOST_BODY_BYTES)
        app.router.add_get("/v1/models", self._keyed(self._models))
        if self._health_path != "/v1/models":
            app.router.add_get(self._health_path, self._health)
        app.router.add_post("/{path:.*}", self._keyed(self._request))
        return app

    def _keyed(
        self, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def answer(request: web.Request) -> web.StreamResponse:
            given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
            if not hmac.compare_digest(given, f"Bearer {self._key}".encode()):
                return _refusal(401, "the key is missing or wrong")
            return await handler(request)

        return answer

    async def _health(self, _request: web.Request) -> web.Response:
        return web.json_response({"status": "asleep"})

    async def _models(self, _request: web.Request) -> web.Response:
        model = {"id": self._model, "object": "model", "owned_by": "domyn-swarm"}
        return web.json_response({"object": "list", "data": [model]})

    async def _request(self, request: web.Request) -> web.StreamResponse:
        size = request.content_length or 0
        self.came.set()
        if self.held >= _MOST_HELD or self._bytes + size > _MOST_BYTES:
            return self._later("more requests wait for its first replica than it can hold")
        self.held += 1
        self._bytes += size
        try:
            body = await request.read()
            self._bytes += len(body) - size  # the client may not have sent a length
            size = len(body)
            return await self._handed_on(request, body)
        finally:
            self.held -= 1
            self._bytes -= size

    async def _handed_on(self, request: web.Request, body: bytes) -> web.StreamResponse:
        loop = asyncio.get_running_loop()
        until = loop.time() + self._hold_s
        while loop.time() < until:
            if (why := self.why()) is not None:
                return self._later(why)
            serving = self._serving()
            self._turn += 1
            for url in serving[self._turn % len(serving) :] if serving else ():
                try:
                    return await self._answer_of(url, request, body)
                except _NOT_STARTED:  # nothing was sent: try the next replica
                    continue
            await asyncio.sleep(_LOOK_S)
        return self._later("its first replica starts")

    async def _answer_of(self, url: str, request: web.Request, body: bytes) -> web.StreamResponse:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None))
        headers = {
            "Authorization": f"Bearer {self._key}",
            "Content-Type": request.headers.get("Content-Type", "application/json"),
        }
        async with self._session.post(
            f"{url}{request.path_qs}", data=body, headers=headers, allow_redirects=False
        ) as reply:
            passed = {name: reply.headers[name] for name in _PASSED_ON if name in reply.headers}
            passed.pop("Content-Encoding", None)  # the session has decompressed it
            answer = web.StreamResponse(status=reply.status, headers=passed)
            await answer.prepare(request)
            async for chunk in reply.content.iter_any():
                await answer.write(chunk)
            await answer.write_eof()
            return answer

    def _later(self, why: str) -> web.Response:
        self.turned_away += 1
        expected_s = self.expected_s()
        wait_s = _RETRY_AT_LEAST_S if expected_s is None else round(expected_s)
        wait_s = min(RETRY_AT_MOST_S, max(_RETRY_AT_LEAST_S, wait_s))
        refusal = _refusal(503, f"the swarm is asleep: {why}. Ask again in {wait_s} s.")
        refusal.headers["Retry-After"] = str(wait_s)
        return refusal

    async def close(self) -> None:
        """Close the connections to the replicas."""
        if self._session is not None:
            await self._session.close()


def _refusal(status: int, message: str) -> web.Response:
    error = {"message": message, "type": "service_unavailable", "code": status}
    return web.json_response({"error": error}, status=status)
