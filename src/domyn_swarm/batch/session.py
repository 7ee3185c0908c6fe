"""The one retry layer: requests of rows to an endpoint that may be busy, moving or gone.

- 4xx that the request caused: raised at once, never repeated.
- Connection errors, time-outs, 408, 5xx: repeated with exponential back-off and full jitter (AWS
  architecture blog, "Exponential backoff and jitter"), at most `retries` times per row; the first
  time that the router loses the replica under a request is not counted.
- 429, and 503 with `Retry-After`: back-pressure; waited out and repeated, bounded on its own.
- Nobody answers at the endpoint: every row pauses behind one gate while one task knocks; nothing
  is counted against any row.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from domyn_swarm.batch.json_values import json_of
from domyn_swarm.batch.rows import current_trace
from domyn_swarm.batch.tally import Tally
from domyn_swarm.errors import JobError
from domyn_swarm.logs import get_logger
from domyn_swarm.net.errors import (
    BackPressure,
    BadReply,
    CannotConnect,
    ConnectionBroken,
    ReplicaAway,
    ReplicaLost,
    RequestError,
    error_from_status,
)
from domyn_swarm.net.http import HttpClient, HttpReply

_log = get_logger(__name__)
_T = TypeVar("_T")

# What a router says when its replicas are lost; 404 when it knows of none at all.
_GONE_STATUSES = frozenset({404, 500, 502, 503, 504})
_BELIEVED_S = 0.5  # how long an endpoint that served a moment ago is not asked again
_REPLICA_LEAVES_S = 60.0  # within so long a lost replica has surely left the router


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how patiently a row is repeated. Seconds throughout."""

    retries: int = 5
    timeout_s: float = 600.0
    backoff_initial_s: float = 0.5
    backoff_max_s: float = 30.0
    pressure_limit_s: float = 3600.0  # how long one request may be turned away as back-pressure
    knock_max_s: float = 5.0  # how often a lost endpoint is tried

    def backoff_s(self, failures: int) -> float:
        """The wait before the next attempt: uniform between 0 and the exponential bound."""
        bound = min(self.backoff_max_s, self.backoff_initial_s * 2 ** (failures - 1))
        return random.uniform(0, bound)  # noqa: S311 - jitter


class _UsageFields(msgspec.Struct):
    prompt_tokens: int | None = 0
    completion_tokens: int | None = 0


class _WithUsage(msgspec.Struct):
    usage: _UsageFields | None = None


class _Choice(msgspec.Struct):
    finish_reason: str | None = None


class _WithReasons(_WithUsage):
    choices: list[_Choice] = []


_usage_decoder = msgspec.json.Decoder(_WithUsage)
_reasons_decoder = msgspec.json.Decoder(_WithReasons)
_encoder = msgspec.json.Encoder(enc_hook=json_of)


class EndpointGate:
    """Whether anybody answers at the endpoint. Closed, it holds every row back."""

    def __init__(
        self,
        client: HttpClient,
        locate: Callable[[], str],
        policy: RetryPolicy,
        on_state: Callable[[str | None], None],
    ) -> None:
        self._client = client
        self._locate = locate
        self._policy = policy
        self._on_state = on_state
        self._open = asyncio.Event()
        self._open.set()
        self._closed = asyncio.Event()
        self._checked_at: float | None = None
        self._asking = asyncio.Lock()
        self.url = locate()

    async def passed(self) -> None:
        """Return once the endpoint answers, as far as is known."""
        if not self._open.is_set():
            await self._open.wait()

    async def gone(self, *, final: bool) -> bool:
        """Ask the endpoint whether it serves; when it does not, close the gate and say True.

        `final`: the row would be given up otherwise, so what was true a moment ago is not enough.
        """
        loop = asyncio.get_running_loop()
        asked_at = loop.time()
        async with self._asking:
            if not self._open.is_set():
                return True
            believed_s = 0.0 if final else _BELIEVED_S
            if self._checked_at is not None and self._checked_at > asked_at - believed_s:
                return False  # it served, as another row has just found out
            if await self._serves():
                self._checked_at = loop.time()
                return False
            self._open.clear()
            self._closed.set()
            return True

    async def _serves(self) -> bool:
        """Whether a model is listed and, where there is such a thing, a replica is ready."""
        try:
            listing = await self._client.request("GET", f"{self.url}/v1/models", None, 10.0)
            if listing.status not in (200, 404, 405):
                return listing.status < 500 and listing.status != 429
            if listing.status == 200 and not _lists_a_model(listing.body):
                return False
            readiness = await self._client.request("GET", f"{self.url}/readiness", None, 10.0)
        except RequestError:
            return False
        return readiness.status != 503

    async def keep_knocking(self) -> None:
        """Open the gate again whenever it was closed, until cancelled. Runs beside the rows.

        Raises:
            JobError: it cannot be found out whether the endpoint answers; rows would wait for ever.
        """
        while True:
            await self._closed.wait()
            self._closed.clear()
            try:
                await self._knock()
            except Exception as error:
                raise JobError(
                    f"Cannot ask whether the endpoint {self.url} answers: {error!r}.",
                    hint="Submit the same job again: what is finished is kept.",
                ) from error

    async def _knock(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        self._on_state(f"the endpoint {self.url} does not answer; waiting for it")
        wait_s = 0.2
        while True:
            await asyncio.sleep(wait_s)
            wait_s = min(self._policy.knock_max_s, wait_s * 1.5)
            with contextlib.suppress(JobError):  # between two places it is nowhere
                self.url = self._locate()
            if await self._serves():
                break
        _log.info("the endpoint answers again after %.1f s", loop.time() - began)
        self._on_state(None)
        self._open.set()


class RequestSession:
    """`net.openai.Transport` for rows: retries, pauses, and accounts to the row's trace."""

    def __init__(
        self, client: HttpClient, gate: EndpointGate, policy: RetryPolicy, tally: Tally
    ) -> None:
        self._client = client
        self._gate = gate
        self._policy = policy
        self._tally = tally

    async def post(
        self, path: str, body: dict[str, Any], timeout_s: float | None = None
    ) -> bytes | memoryview:
        """See `Transport.post`.

        Raises:
            RequestError: refused, or the row's attempts are used up.
        """
        encoded = _encoder.encode(body)
        limit_s = timeout_s or self._policy.timeout_s

        async def attempt() -> bytes | memoryview:
            began = time.perf_counter()
            reply = await self._client.request("POST", self._gate.url + path, encoded, limit_s)
            if reply.status >= 300:
                raise error_from_status(reply.status, reply.body, reply.retry_after_s)
            latency_s = time.perf_counter() - began
            self._tally.replies.count(latency_s, *self._note(reply.body), reply.served_by)
            return reply.body

        return await self._with_retries(attempt)

    async def get(self, path: str) -> bytes | memoryview:
        """See `Transport.get`."""

        async def attempt() -> bytes | memoryview:
            url = self._gate.url + path
            reply = await self._client.request("GET", url, None, self._policy.timeout_s)
            if reply.status >= 300:
                raise error_from_status(reply.status, reply.body, reply.retry_after_s)
            return reply.body

        return await self._with_retries(attempt)

    async def post_stream(
        self, path: str, body: dict[str, Any], timeout_s: float | None = None
    ) -> AsyncIterator[bytes]:
        """See `Transport.post_stream`; a request that fails before its first event is repeated."""
        encoded = _encoder.encode(body)

        async def attempt() -> tuple[bytes, AsyncIterator[bytes]]:
            events = self._events(path, encoded, timeout_s or self._policy.timeout_s)
            try:
                return await anext(events), events
            except StopAsyncIteration:
                raise BadReply("the stream ended before its first event") from None

        first, rest = await self._with_retries(attempt)
        yield first
        async for event in rest:
            yield event

    async def _events(self, path: str, encoded: bytes, limit_s: float) -> AsyncIterator[bytes]:
        pending, began = b"", time.perf_counter()
        prompt = completion = 0
        url = self._gate.url + path
        async for chunk in self._client.stream(url, encoded, limit_s):
            if isinstance(chunk, HttpReply):
                raise error_from_status(chunk.status, chunk.body, chunk.retry_after_s)
            pending += chunk
            *lines, pending = pending.split(b"\n")
            for line in lines:
                payload = line.removeprefix(b"data:").strip()
                if not line.startswith(b"data:"):
                    continue
                if payload == b"[DONE]":
                    latency_s = time.perf_counter() - began
                    self._tally.replies.count(latency_s, prompt, completion, None)
                    return
                if b'"usage"' in payload or b'"finish_reason"' in payload:
                    asked, told = self._note(payload)
                    prompt, completion = prompt + asked, completion + told
                yield payload
        raise ConnectionBroken("the stream broke off before its end")

    async def _with_retries(self, attempt: Callable[[], Awaitable[_T]]) -> _T:
        trace = current_trace.get()
        failures = 0 if trace is None else trace.failures
        patience = _Patience(self._policy, self._tally)
        while True:
            await self._gate.passed()
            self._tally.requests += 1
            if trace is not None:
                trace.attempts += 1
            try:
                return await attempt()
            except RequestError as error:
                final = not error.retryable or failures >= self._policy.retries
                gone = _may_be_outage(error) and await self._gate.gone(final=final)
                if trace is not None and _unsent(error, gone=gone):
                    trace.attempts -= 1
                if gone:
                    continue
                if not error.retryable:
                    raise
                if await patience.forgives(error):
                    continue
                failures += 1
                if trace is not None:
                    trace.failures = failures
                if failures > self._policy.retries:
                    raise
                self._tally.count_retry(type(error).__name__, str(error))
                await asyncio.sleep(self._policy.backoff_s(failures))

    def _note(self, body: bytes | memoryview) -> tuple[int, int]:
        """A reply's tokens, prompt's and completion's; they go to the row's trace, and why the
        reply ended where that is asked for.
        """
        trace = current_trace.get()
        try:
            if trace is None or trace.finish_reasons is None:
                usage = _usage_decoder.decode(body).usage
            else:
                reply = _reasons_decoder.decode(body)
                usage, reasons = reply.usage, [one.finish_reason for one in reply.choices]
                trace.finish_reasons = reasons if any(reasons) else trace.finish_reasons
        except msgspec.DecodeError as error:
            raise BadReply(f"the reply is not what the API promises: {error}") from error
        if usage is None:
            return 0, 0
        prompt, completion = usage.prompt_tokens or 0, usage.completion_tokens or 0
        if trace is not None:
            trace.prompt_tokens += prompt
            trace.completion_tokens += completion
        return prompt, completion


class _Patience:
    """What one request is forgiven: repeats that count as no failure of its row."""

    def __init__(self, policy: RetryPolicy, tally: Tally) -> None:
        self._policy = policy
        self._tally = tally
        self._pressed_since: float | None = None
        self._away_since: float | None = None
        self._lost = False

    async def forgives(self, error: RequestError) -> bool:
        """Whether to ask again without counting it; by then the pause is over.

        Raises:
            BackPressure: it was turned away for too long.
        """
        now = asyncio.get_running_loop().time()
        if isinstance(error, BackPressure):
            self._pressed_since = self._pressed_since or now
            if now - self._pressed_since >= self._policy.pressure_limit_s:
                raise error
            self._tally.turned_away += 1
            told = error.retry_after_s
            await asyncio.sleep((1.0 if told is None else told) + random.uniform(0, 0.25))  # noqa: S311 - jitter
            return True
        if isinstance(error, ReplicaAway):
            # It is the least loaded one, too, until it leaves the router: many come here at once.
            self._away_since = self._away_since or now
            await asyncio.sleep(random.uniform(0.1, 1.0))  # noqa: S311 - jitter
            return now - self._away_since < _REPLICA_LEAVES_S
        if isinstance(error, ReplicaLost) and not self._lost:
            self._lost = True
            await asyncio.sleep(self._policy.backoff_s(1))
            return True
        return False


def _unsent(error: RequestError, *, gone: bool) -> bool:
    """Whether no engine can have seen the request."""
    return isinstance(error, ReplicaAway) or (gone and isinstance(error, CannotConnect))


def _lists_a_model(body: bytes | memoryview) -> bool:
    try:
        listing = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return False
    return not isinstance(listing, dict) or bool(listing.get("data", True))


def _may_be_outage(error: RequestError) -> bool:
    return isinstance(error, CannotConnect | ConnectionBroken) or error.status in _GONE_STATUSES
