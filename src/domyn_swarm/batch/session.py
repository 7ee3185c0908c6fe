"""The one retry layer: requests of rows to an endpoint that may be busy, moving or gone.

- 4xx that the request caused: raised at once, never repeated.
- Turned away as all others may be (401, 403, 404, a page): whose fault that is, `gate` finds out.
  The row's own is raised; what breaks for all pauses them all.
- Connection errors, 408, 5xx: repeated with exponential back-off and full jitter (AWS
  architecture blog, "Exponential backoff and jitter"), at most `retries` times per row.
- No reply in time: repeated `timeout_retries` times; the same limit cuts the same answer again.
- 429, and 503 with `Retry-After`: back-pressure; waited out and repeated, bounded on its own.
- Nobody answers at the endpoint: every row pauses behind one gate while one task knocks; nothing
  is counted against any row.
- The engine died under the request: repeated, not counted, until the row is known to be what kills
  engines (`suspects`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar

import msgspec

from domyn_swarm.batch.asking import Asking, Request, RetryPolicy
from domyn_swarm.batch.gate import EndpointGate
from domyn_swarm.batch.rows import RowTrace, current_trace
from domyn_swarm.batch.standing import Kind, kind_of
from domyn_swarm.batch.suspects import ALONE_AFTER
from domyn_swarm.batch.tally import Tally
from domyn_swarm.net.errors import (
    BadReply,
    ConnectionBroken,
    RequestError,
    error_from_status,
    page_instead,
)
from domyn_swarm.net.http import HttpClient, HttpReply

_T = TypeVar("_T")


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
_encoder = msgspec.json.Encoder()


class RequestSession:
    """`net.openai.Transport` for rows: retries, pauses, and accounts to the row's trace."""

    def __init__(
        self, client: HttpClient, gate: EndpointGate, policy: RetryPolicy, tally: Tally
    ) -> None:
        self._client = client
        self._gate = gate
        self._policy = policy
        self._tally = tally
        self._suspects = gate.suspects
        self._now = asyncio.get_running_loop().time

    async def post(
        self, path: str, body: dict[str, Any], timeout_s: float | None = None
    ) -> bytes | memoryview:
        """See `Transport.post`.

        Raises:
            RequestError: refused, or the row's attempts are used up.
        """
        encoded = _encoder.encode(body)
        kind = kind_of(path, body)
        limit_s = timeout_s or self._policy.timeout_s

        async def attempt(sent_at: float) -> bytes | memoryview:
            began = time.perf_counter()
            reply = await self._client.request("POST", self._gate.url + path, encoded, limit_s)
            if reply.status >= 300:
                raise _failed(reply)
            latency_s = time.perf_counter() - began
            try:
                noted = self._note(reply.body)
            except BadReply as error:
                raise page_instead(reply.body, reply.served_by) or error from error
            self._tally.replies.count(latency_s, *noted, reply.served_by)
            self._gate.standing.answered(kind, reply.served_by, sent_at, self._now(), encoded)
            return reply.body

        return await self._with_retries(attempt, kind, limit_s)

    async def get(self, path: str) -> bytes | memoryview:
        """See `Transport.get`."""
        limit_s = self._policy.timeout_s

        async def attempt(_sent_at: float) -> bytes | memoryview:
            reply = await self._client.request("GET", self._gate.url + path, None, limit_s)
            if reply.status >= 300:
                raise _failed(reply)
            return reply.body

        return await self._with_retries(attempt, Kind(path, None), limit_s)

    async def post_stream(
        self, path: str, body: dict[str, Any], timeout_s: float | None = None
    ) -> AsyncIterator[bytes]:
        """See `Transport.post_stream`; a request that fails before its first event is repeated."""
        encoded = _encoder.encode(body)
        kind = kind_of(path, body)
        limit_s = timeout_s or self._policy.timeout_s

        async def attempt(sent_at: float) -> tuple[bytes, AsyncIterator[bytes]]:
            events = self._events(path, encoded, limit_s)
            try:
                first = await anext(events)
            except StopAsyncIteration:
                raise BadReply("the stream ended before its first event") from None
            self._gate.standing.answered(kind, None, sent_at, self._now(), encoded)
            return first, events

        first, rest = await self._with_retries(attempt, kind, limit_s)
        yield first
        async for event in rest:
            yield event

    async def _events(self, path: str, encoded: bytes, limit_s: float) -> AsyncIterator[bytes]:
        pending, began = b"", time.perf_counter()
        prompt = completion = 0
        heard = False
        url = self._gate.url + path
        async for chunk in self._client.stream(url, encoded, limit_s):
            if isinstance(chunk, HttpReply):
                raise _failed(chunk)
            if not (pending or heard) and (page := page_instead(chunk, None)) is not None:
                raise page
            heard = True
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

    async def _with_retries(
        self, attempt: Callable[[float], Awaitable[_T]], kind: Kind, limit_s: float
    ) -> _T:
        trace = current_trace.get()
        asking: Asking | None = None
        while True:
            async with self._turn(trace):
                if not self._gate.is_open:
                    await self._gate.passed()
                self._tally.requests += 1
                if trace is not None:
                    trace.attempts += 1
                sent_at = self._now()
                try:
                    result = await attempt(sent_at)
                except RequestError as error:
                    failure = error
                else:
                    if self._suspects and trace is not None:
                        self._suspects.answered(trace.rows)
                    return result
            if asking is None:
                asking = Asking(
                    self._gate, self._policy, self._tally, Request(kind, limit_s, trace)
                )
            await asking.failed(failure, sent_at)

    def _turn(self, trace: RowTrace | None) -> AbstractAsyncContextManager[Any]:
        """What a request waits for: as a rule nothing."""
        traffic = self._gate.traffic
        if trace is None or not self._suspects:
            return traffic
        deaths = self._suspects.deaths_under(trace.rows)
        if not deaths:
            return traffic
        if deaths < ALONE_AFTER:
            return traffic.among(lambda: self._suspects.few)
        return self._alone()

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        async with self._gate.traffic.alone():
            await asyncio.sleep(self._suspects.rest_s(self._now()))
            yield

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


def _failed(reply: HttpReply) -> RequestError:
    return error_from_status(reply.status, reply.body, reply.retry_after_s, reply.served_by)
