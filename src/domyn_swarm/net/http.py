"""The HTTP client: JSON bytes in, JSON bytes out.

pyreqwest (Rust) costs the least CPU per request of the kept libraries; aiohttp stands in where
its wheel is missing. Both sit behind `HttpClient` and behave alike.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import re
import sys
import threading
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import AsyncExitStack
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

import msgspec
from typing_extensions import override

from domyn_swarm import open_files
from domyn_swarm.net.certificates import certificates, trusting
from domyn_swarm.net.foreign_threads import await_at_exit
from domyn_swarm.net.request_errors import (
    CannotConnect,
    ConnectionBroken,
    no_file_left,
    no_reply_in_time,
)

if TYPE_CHECKING:
    from aiohttp import ClientTimeout
    from pyreqwest.client import Client
    from pyreqwest.request import RequestBuilder


CONNECT_TIMEOUTS_S = (10.0, 5.0, 2.0, 1.0, 0.5, 0.2)
"""Limits for connecting, in seconds: the first one below the request's own limit applies, so that
an unreachable server is not mistaken for a slow one.
"""
_IDLE_AT_LEAST = 64  # connections that are kept open to one server while they have nothing to do,
_IDLE_PART = 4  # or this part of all that the process can have: those to others need files as well
_SERVED_BY = "x-smg-routed-worker-id"  # the router's word for the replica that it chose
_URLS_KEPT = 1024  # read once instead of for each request: replicas' times paths
_EXHAUSTED = re.compile(rf"\(os error (?:{'|'.join(map(str, open_files.EXHAUSTED))})\)")


class HttpReply(msgspec.Struct, frozen=True, gc=False):
    """A complete reply, whatever its status."""

    status: int
    body: bytes | memoryview
    retry_after_s: float | None
    served_by: str | None = None  # the replica, if the router names it


class HttpClient(Protocol):
    """One connection pool with the key in its default headers."""

    async def request(
        self, method: str, url: str, body: bytes | None, timeout_s: float
    ) -> HttpReply:
        """Send and read the whole reply.

        Raises:
            CannotConnect, ConnectionBroken, RequestTimeout: no complete reply.
            NoFileLeft: this process can open no connection.
        """

    def stream(self, url: str, body: bytes, timeout_s: float) -> AsyncIterator[bytes | HttpReply]:
        """POST and yield the body's chunks as they arrive; a status of 300 or above is yielded
        whole, as one `HttpReply`.
        """

    def use_key(self, key: str | None) -> None:
        """Send another key from now on; nothing happens where it is the same."""

    async def close(self) -> None:
        """Close every connection."""


def open_client(key: str | None, *, use_proxy: bool, ca_file: str | None = None) -> HttpClient:
    """The cheapest client that is installed.

    Args:
        key: sent as a bearer token with every request.
        use_proxy: obey HTTP(S)_PROXY. Swarms' own endpoints are inside the cluster: never.
        ca_file: certificates (PEM) that are trusted beside the system's.

    Raises:
        ConfigError: the certificates cannot be used.
    """
    if importlib.util.find_spec("pyreqwest") is not None:
        _load_to_stay("pyreqwest.client")
        await_at_exit()
        return ReqwestClient(_headers(key), use_proxy=use_proxy, ca_file=ca_file)
    return AiohttpClient(_headers(key), use_proxy=use_proxy, ca_file=ca_file)


def _headers(key: str | None) -> dict[str, str]:
    headers = {"content-type": "application/json"}
    return {**headers, "authorization": f"Bearer {key}"} if key else headers


def _load_to_stay(module: str) -> None:
    """Import a module in a thread that lives as long as the process.

    pyreqwest's allocator (mimalloc 3.3) takes the thread that loads it for the process's main
    thread: after that thread has ended, it crashes in the next thread with the same id. Jobs in a
    notebook run in a thread each, and would crash the kernel on the second run.
    """
    if module in sys.modules or threading.current_thread() is threading.main_thread():
        importlib.import_module(module)
        return
    loaded: Future[object] = Future()

    def load() -> None:
        try:
            loaded.set_result(importlib.import_module(module))
        except BaseException as error:  # noqa: BLE001 - raised in the waiting caller
            loaded.set_exception(error)
        threading.Event().wait()

    threading.Thread(target=load, name=f"loaded {module}", daemon=True).start()
    loaded.result()


def _connect_limit_s(timeout_s: float) -> float:
    """How long the connection of a request with this limit may take."""
    shorter = (limit for limit in CONNECT_TIMEOUTS_S if limit < timeout_s)
    return next(shorter, CONNECT_TIMEOUTS_S[-1])


def parse_retry_after(value: str | None) -> float | None:
    """Seconds of a `Retry-After` header; a date counts as one second."""
    if value is None:
        return None
    try:
        return max(0.0, min(float(value), 3600.0))
    except ValueError:
        return 1.0


class _HeedingCancellation:
    """Calls of pyreqwest in the body return or raise, unless the task is cancelled meanwhile.

    A call whose answer has arrived returns it even after a cancellation. Without this check a
    caller that retries would continue for ever, and so would a caller that waits for its end.
    """

    __slots__ = ("_before", "_task")

    def __enter__(self) -> None:
        self._task = asyncio.current_task()
        self._before = 0 if self._task is None else self._task.cancelling()

    def __exit__(self, *_: object) -> None:
        if self._task is not None and self._task.cancelling() > self._before:
            raise asyncio.CancelledError


class ReqwestClient(HttpClient):
    """`HttpClient` over pyreqwest."""

    def __init__(
        self, headers: dict[str, str], *, use_proxy: bool, ca_file: str | None = None
    ) -> None:
        from pyreqwest import exceptions
        from pyreqwest.http import Url

        self._use_proxy = use_proxy
        self._ca_file = ca_file
        self._trusted = [] if ca_file is None else certificates(ca_file)
        self._instead: AiohttpClient | None = None
        self._errors = exceptions
        self._url = lru_cache(_URLS_KEPT)(Url)
        self._headers = headers
        self._clients: dict[float, Client] = {}  # by how long a connection may take
        self._by_limit: dict[float, tuple[Client, timedelta]] = {}  # of a request

    def _builder(self, method: str, url: str, timeout_s: float) -> RequestBuilder:
        """A request by the client with its time limit; usually there is one client for all."""
        known = self._by_limit.get(timeout_s)
        if known is None:
            connect_limit_s = _connect_limit_s(timeout_s)
            client = self._clients.get(connect_limit_s)
            if client is None:
                client = self._clients[connect_limit_s] = self._opened(connect_limit_s)
            known = self._by_limit[timeout_s] = client, timedelta(seconds=timeout_s)
        return known[0].request(method, self._url(url)).timeout(known[1])

    def _opened(self, connect_limit_s: float) -> Client:
        from pyreqwest.client import ClientBuilder

        builder = (
            ClientBuilder()
            .default_headers(self._headers)
            .connect_timeout(timedelta(seconds=connect_limit_s))
            .follow_redirects(enable=False)
            .http1_only()
            .tcp_nodelay(enabled=True)
            .pool_idle_timeout(timedelta(seconds=20))
            .pool_max_idle_per_host(max(_IDLE_AT_LEAST, open_files.connections() // _IDLE_PART))
        )
        for certificate in self._trusted:
            builder = builder.add_root_certificate_pem(certificate)
        return (builder if self._use_proxy else builder.no_proxy()).build()

    @override
    def use_key(self, key: str | None) -> None:
        if _headers(key) != self._headers:
            self._headers = _headers(key)
            self._clients = {}  # requests in flight keep the old client until they end
            self._by_limit = {}
            if self._instead is not None:
                self._instead.use_key(key)

    @override
    async def request(
        self, method: str, url: str, body: bytes | None, timeout_s: float
    ) -> HttpReply:
        if self._instead is not None:
            return await self._instead.request(method, url, body, timeout_s)
        builder = self._builder(method, url, timeout_s)
        if body is not None:
            builder = builder.body_bytes(body)
        try:
            with _HeedingCancellation():
                reply = await builder.build().send()
                content = memoryview(await reply.bytes())
        except self._errors.RequestError as error:
            if self._must_give_way(error):
                return await self.request(method, url, body, timeout_s)
            raise self._translate(error, timeout_s) from error
        status = reply.status
        after_s = parse_retry_after(reply.get_header("retry-after")) if status >= 400 else None
        return HttpReply(status, content, after_s, reply.get_header(_SERVED_BY))

    @override
    async def stream(
        self, url: str, body: bytes, timeout_s: float
    ) -> AsyncIterator[bytes | HttpReply]:
        if self._instead is not None:
            async for part in self._instead.stream(url, body, timeout_s):
                yield part
            return
        builder = self._builder("POST", url, timeout_s).body_bytes(body)
        try:
            async with AsyncExitStack() as stack:
                opening = stack.enter_async_context(builder.build_streamed())
                with _HeedingCancellation():
                    reply = await opening
                if reply.status >= 300:
                    header = reply.get_header("retry-after")
                    with _HeedingCancellation():
                        content = memoryview(await reply.bytes())
                    yield HttpReply(reply.status, content, parse_retry_after(header))
                    return
                while True:
                    with _HeedingCancellation():
                        chunk = await reply.body_reader.read_chunk()
                    if chunk is None:
                        return
                    yield bytes(chunk)
        except self._errors.RequestError as error:
            raise self._translate(error, timeout_s) from error

    def _must_give_way(self, error: Exception) -> bool:
        """Whether the other client must be used from now on: this client's TLS refuses a server
        whose certificate is marked as an authority, as `openssl req -x509` creates them, even if it
        is trusted. Every session requests a listing first: see `gate`.
        """
        refused = self._ca_file is not None and "CaUsedAsEndEntity" in _causes(error)[-1]
        if refused and self._instead is None:
            self._instead = AiohttpClient(
                self._headers, use_proxy=self._use_proxy, ca_file=self._ca_file
            )
        return refused

    def _translate(self, error: Exception, timeout_s: float) -> Exception:
        causes = _causes(error)
        # By its exception classes the library reports every time-out and every reset as one of
        # connecting; the causes show which they are.
        if any(_EXHAUSTED.search(cause) for cause in causes):
            return no_file_left()
        if any("(Connect)" in cause for cause in causes):
            if _is_of_names(causes[-1]) and open_files.none_left():
                return no_file_left()
            return CannotConnect(f"cannot connect: {causes[-1]}")
        if isinstance(error, self._errors.RequestTimeoutError):
            return no_reply_in_time(timeout_s)
        return ConnectionBroken(f"connection broken: {causes[-1]}")

    @override
    async def close(self) -> None:
        for client in self._clients.values():
            await client.close()
        if self._instead is not None:
            await self._instead.close()


def _is_of_names(cause: str) -> bool:
    """Whether a name could not be resolved, which takes files, too, and hides why it failed."""
    return "lookup" in cause or "resol" in cause


def _causes(error: Exception) -> list[str]:
    """The causes that the library reports, innermost last: the outer ones only say "error"."""
    details = getattr(error, "details", None) or {}
    return [str(cause.get("message")) for cause in details.get("causes") or []] or [str(error)]


class AiohttpClient(HttpClient):
    """`HttpClient` over aiohttp: two to three times the CPU, the same behaviour."""

    def __init__(
        self, headers: dict[str, str], *, use_proxy: bool, ca_file: str | None = None
    ) -> None:
        import aiohttp

        self._aiohttp = aiohttp
        self._headers = headers
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0, keepalive_timeout=20, ssl=True if ca_file is None else trusting(ca_file)
            ),
            trust_env=use_proxy,
            auto_decompress=True,
        )

    def _timeout(self, timeout_s: float) -> ClientTimeout:
        limit_s = _connect_limit_s(timeout_s)
        return self._aiohttp.ClientTimeout(total=timeout_s, sock_connect=limit_s)

    @override
    async def request(
        self, method: str, url: str, body: bytes | None, timeout_s: float
    ) -> HttpReply:
        timeout = self._timeout(timeout_s)
        try:
            async with self._session.request(
                method,
                url,
                data=body,
                headers=self._headers,
                timeout=timeout,
                allow_redirects=False,
            ) as reply:
                content = await reply.read()
                headers = reply.headers
                after_s = parse_retry_after(headers.get("retry-after"))
                return HttpReply(reply.status, content, after_s, headers.get(_SERVED_BY))
        except (self._aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._translate(error, timeout_s) from error

    @override
    async def stream(
        self, url: str, body: bytes, timeout_s: float
    ) -> AsyncIterator[bytes | HttpReply]:
        timeout = self._timeout(timeout_s)
        try:
            async with self._session.post(
                url, data=body, headers=self._headers, timeout=timeout, allow_redirects=False
            ) as reply:
                if reply.status >= 300:
                    header = reply.headers.get("retry-after")
                    content = await reply.read()
                    yield HttpReply(reply.status, content, parse_retry_after(header))
                    return
                async for chunk in reply.content.iter_any():
                    yield chunk
        except (self._aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._translate(error, timeout_s) from error

    @override
    def use_key(self, key: str | None) -> None:
        self._headers = _headers(key)

    def _translate(self, error: Exception, timeout_s: float) -> Exception:
        if isinstance(error, OSError) and (
            error.errno in open_files.EXHAUSTED
            or (isinstance(error, self._aiohttp.ClientConnectorDNSError) and open_files.none_left())
        ):
            return no_file_left()
        if isinstance(
            error, self._aiohttp.ClientConnectorError | self._aiohttp.ConnectionTimeoutError
        ):
            return CannotConnect(f"cannot connect: {error}")
        if isinstance(error, TimeoutError):
            return no_reply_in_time(timeout_s)
        return ConnectionBroken(f"connection broken: {error or type(error).__name__}")

    @override
    async def close(self) -> None:
        await self._session.close()
