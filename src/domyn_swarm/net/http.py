"""The HTTP client: JSON bytes in, JSON bytes out.

pyreqwest (Rust) costs the least CPU per request of the kept libraries; aiohttp stands in where
its wheel is missing. Both sit behind `HttpClient` and behave alike.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import sys
import threading
from collections.abc import AsyncIterator
from concurrent.futures import Future
from datetime import timedelta
from typing import NamedTuple, Protocol

from domyn_swarm.net.errors import CannotConnect, ConnectionBroken, RequestTimeout

CONNECT_TIMEOUT_S = 10.0
_SERVED_BY = "x-smg-routed-worker-id"  # the router's word for the replica that it chose


class HttpReply(NamedTuple):
    """A complete reply, whatever its status."""

    status: int
    body: bytes | memoryview
    retry_after_s: float | None
    served_by: str | None = None  # the replica, where a router tells


class HttpClient(Protocol):
    """One connection pool with the key in its default headers."""

    async def request(
        self, method: str, url: str, body: bytes | None, timeout_s: float
    ) -> HttpReply:
        """Send and read the whole reply.

        Raises:
            CannotConnect, ConnectionBroken, RequestTimeout: no complete reply.
        """

    def stream(self, url: str, body: bytes, timeout_s: float) -> AsyncIterator[bytes | HttpReply]:
        """POST and yield the body's chunks as they come; a status of 400 or above is yielded
        whole, as one `HttpReply`.
        """

    async def close(self) -> None:
        """Close every connection."""


def open_client(key: str | None, *, use_proxy: bool) -> HttpClient:
    """The cheapest client that is installed.

    Args:
        key: sent as a bearer token with every request.
        use_proxy: obey HTTP(S)_PROXY. Swarms' own endpoints are inside the cluster: never.
    """
    headers = {"content-type": "application/json"}
    if key:
        headers["authorization"] = f"Bearer {key}"
    if importlib.util.find_spec("pyreqwest") is not None:
        _load_to_stay("pyreqwest.client")
        return ReqwestClient(headers, use_proxy=use_proxy)
    return AiohttpClient(headers, use_proxy=use_proxy)


def _load_to_stay(module: str) -> None:
    """Import a module in a thread that does not end before the process does.

    pyreqwest's allocator (mimalloc 3.3) takes the thread that loads it for the process's main
    one: once that has ended, it crashes in whichever thread gets its id next. Jobs in a notebook
    run in a thread each, and would take the kernel with them on the second run.
    """
    if module in sys.modules or threading.current_thread() is threading.main_thread():
        importlib.import_module(module)
        return
    loaded: Future[object] = Future()

    def load() -> None:
        try:
            loaded.set_result(importlib.import_module(module))
        except BaseException as error:  # noqa: BLE001 - raised by whoever waits
            loaded.set_exception(error)
        threading.Event().wait()

    threading.Thread(target=load, name=f"loaded {module}", daemon=True).start()
    loaded.result()


def parse_retry_after(value: str | None) -> float | None:
    """Seconds of a `Retry-After` header; dates are read as "now-ish": one second."""
    if value is None:
        return None
    try:
        return max(0.0, min(float(value), 3600.0))
    except ValueError:
        return 1.0


class _Cancellations:
    """Of the running task, since this was made.

    A call of pyreqwest whose answer has come returns it to a task that was cancelled meanwhile, as
    if it had not been: who asks again and again would do so for ever, and whoever waits for its
    end with it.
    """

    def __init__(self) -> None:
        self._task = asyncio.current_task()
        self._before = self._count()

    def _count(self) -> int:
        return 0 if self._task is None else self._task.cancelling()

    def check(self) -> None:
        """Raise what the library has swallowed."""
        if self._count() > self._before:
            raise asyncio.CancelledError


class ReqwestClient:
    """`HttpClient` over pyreqwest."""

    def __init__(self, headers: dict[str, str], *, use_proxy: bool) -> None:
        from pyreqwest import exceptions
        from pyreqwest.client import ClientBuilder

        builder = (
            ClientBuilder()
            .default_headers(headers)
            .connect_timeout(timedelta(seconds=CONNECT_TIMEOUT_S))
            .follow_redirects(enable=False)
            .http1_only()
            .tcp_nodelay(enabled=True)
            .pool_idle_timeout(timedelta(seconds=20))
        )
        self._client = (builder if use_proxy else builder.no_proxy()).build()
        self._errors = exceptions
        self._timeouts: dict[float, timedelta] = {}

    def _timeout(self, timeout_s: float) -> timedelta:
        if timeout_s not in self._timeouts:
            self._timeouts[timeout_s] = timedelta(seconds=timeout_s)
        return self._timeouts[timeout_s]

    async def request(
        self, method: str, url: str, body: bytes | None, timeout_s: float
    ) -> HttpReply:
        """See `HttpClient.request`."""
        cancellations = _Cancellations()
        builder = self._client.request(method, url).timeout(self._timeout(timeout_s))
        if body is not None:
            builder = builder.body_bytes(body)
        try:
            reply = await builder.build().send()
            content = memoryview(await reply.bytes())
        except self._errors.RequestError as error:
            cancellations.check()
            raise self._translate(error) from error
        cancellations.check()
        status = reply.status
        header = reply.get_header("retry-after") if status >= 400 else None
        return HttpReply(status, content, parse_retry_after(header), reply.get_header(_SERVED_BY))

    async def stream(
        self, url: str, body: bytes, timeout_s: float
    ) -> AsyncIterator[bytes | HttpReply]:
        """See `HttpClient.stream`."""
        cancellations = _Cancellations()
        builder = self._client.post(url).timeout(self._timeout(timeout_s)).body_bytes(body)
        try:
            async with builder.build_streamed() as reply:
                cancellations.check()
                if reply.status >= 400:
                    header = reply.get_header("retry-after")
                    content = memoryview(await reply.bytes())
                    yield HttpReply(reply.status, content, parse_retry_after(header))
                    return
                while True:
                    cancellations = _Cancellations()
                    chunk = await reply.body_reader.read_chunk()
                    cancellations.check()
                    if chunk is None:
                        return
                    yield bytes(chunk)
        except self._errors.RequestError as error:
            cancellations.check()
            raise self._translate(error) from error

    def _translate(self, error: Exception) -> Exception:
        causes = _causes(error)
        # By its classes the library calls every time-out and every reset one of connecting; the
        # causes tell the true ones.
        if any("(Connect)" in cause for cause in causes):
            return CannotConnect(f"cannot connect: {causes[-1]}")
        if isinstance(error, self._errors.RequestTimeoutError):
            return RequestTimeout("no reply in time")
        return ConnectionBroken(f"connection broken: {causes[-1]}")

    async def close(self) -> None:
        """See `HttpClient.close`."""
        await self._client.close()


def _causes(error: Exception) -> list[str]:
    """The causes that the library tells, innermost last: the outer ones say only "error"."""
    details = getattr(error, "details", None) or {}
    return [str(cause.get("message")) for cause in details.get("causes") or []] or [str(error)]


class AiohttpClient:
    """`HttpClient` over aiohttp: two to three times the CPU, the same behaviour."""

    def __init__(self, headers: dict[str, str], *, use_proxy: bool) -> None:
        import aiohttp

        self._aiohttp = aiohttp
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=20),
            headers=headers,
            trust_env=use_proxy,
            auto_decompress=True,
        )

    async def request(
        self, method: str, url: str, body: bytes | None, timeout_s: float
    ) -> HttpReply:
        """See `HttpClient.request`."""
        timeout = self._aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S)
        try:
            async with self._session.request(
                method, url, data=body, timeout=timeout, allow_redirects=False
            ) as reply:
                content = await reply.read()
                headers = reply.headers
                after_s = parse_retry_after(headers.get("retry-after"))
                return HttpReply(reply.status, content, after_s, headers.get(_SERVED_BY))
        except (self._aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._translate(error) from error

    async def stream(
        self, url: str, body: bytes, timeout_s: float
    ) -> AsyncIterator[bytes | HttpReply]:
        """See `HttpClient.stream`."""
        timeout = self._aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S)
        try:
            async with self._session.post(
                url, data=body, timeout=timeout, allow_redirects=False
            ) as reply:
                if reply.status >= 400:
                    header = reply.headers.get("retry-after")
                    content = await reply.read()
                    yield HttpReply(reply.status, content, parse_retry_after(header))
                    return
                async for chunk in reply.content.iter_any():
                    yield chunk
        except (self._aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._translate(error) from error

    def _translate(self, error: Exception) -> Exception:
        if isinstance(
            error, self._aiohttp.ClientConnectorError | self._aiohttp.ConnectionTimeoutError
        ):
            return CannotConnect(f"cannot connect: {error}")
        if isinstance(error, TimeoutError):
            return RequestTimeout("no reply in time")
        return ConnectionBroken(f"connection broken: {error or type(error).__name__}")

    async def close(self) -> None:
        """See `HttpClient.close`."""
        await self._session.close()
