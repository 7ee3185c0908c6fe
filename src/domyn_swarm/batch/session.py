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
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar

import msgspec

from domyn_swarm.batch.asking import Asking, Request, RetryPolicy
from domyn_swarm.batch.connections import Connections
from domyn_swarm.batch.gate import EndpointGate
from domyn_swarm.batch.json_values import json_of
from domyn_swarm.batch.rows import Row, current_trace
from domyn_swarm.batch.standing import Kind, kind_of
from domyn_swarm.batch.suspects import ALONE_AFTER
from domyn_swarm.batch.tally import Tally
from domyn_swarm.net.errors import (
    BadReply,
    CannotConnect,
    ConnectionBroken,
    NoFileLeft,
    ReplicaLost,
    RequestError,
    ServerFailed,
    error_from_status,
    page_instead,
)
from domyn_swarm.net.http import HttpClient, HttpReply
from domyn_swarm.net.replies import ReplyFacts, StreamedReply, read_reply

_T = TypeVar("_T")


_TOKEN_LIMITS = ("max_tokens", "max_completion_tokens")  # of 0: a prompt is measured, not answered
_encoder = msgspec.json.Encoder(enc_hook=json_of)


class RequestSession:
    """`net.openai.Transport` for rows: retries, pauses, and accounts to the row's trace."""

    def __init__(
        self,
        client: HttpClient,
        gate: EndpointGate,
        policy: RetryPolicy,
        tally: Tally,
        connections: Connections | None = None,
    ) -> None:
        """`connections` bounds the requests in flight; None: as many as there are files for."""
        self._client = client
        self._connections = connections or Connections(None, lambda _: None)
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
            reply = await self._client.request("POST", self._gate.url + path, encoded, limit_s)
            if reply.status >= 300:
                raise _failed(reply)
            now = self._now()
            try:
                facts = read_reply(path, reply.body)
            except BadReply as error:
                raise page_instead(reply.body, reply.served_by) or error from error
            self._note(facts, body, now - sent_at, reply.served_by)
            self._gate.standing.answered(kind, reply.served_by, sent_at, now, encoded)
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
            events = self._events(path, body, encoded, limit_s)
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

    async def _events(
        self, path: str, body: dict[str, Any], encoded: bytes, limit_s: float
    ) -> AsyncIterator[bytes]:
        pending, began, reply = b"", self._now(), StreamedReply()
        heard = False
        url = self._gate.url + path
        async for chunk in self._client.stream(url, encoded, limit_s):
            if isinstance(chunk, HttpReply):
                raise _failed(chunk)
            if not heard and (page := page_instead(chunk, None)) is not None:
                raise page
            heard = True
            pending += chunk
            *lines, pending = pending.split(b"\n")
            for line in lines:
                payload = line.removeprefix(b"data:").strip()
                if not line.startswith(b"data:"):
                    continue
                if payload == b"[DONE]":
                    self._note(reply.facts(), body, self._now() - began, None)
                    return
                reply.add(payload)
                yield payload
        reply.add_rest(pending)
        raise ConnectionBroken("the stream broke off before its end")

    async def _with_retries(
        self, attempt: Callable[[float], Awaitable[_T]], kind: Kind, limit_s: float
    ) -> _T:
        trace = current_trace.get()
        asking: Asking | None = None
        while True:
            turn: AbstractAsyncContextManager[Any] = self._gate.traffic
            if trace is not None and self._suspects.marks:
                turn = self._turn(trace.rows)
            async with self._connections, turn:
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
                    self._note_failure(error, sent_at)
                else:
                    if self._suspects.last_break.left:
                        self._suspects.ended(sent_at)
                    if trace is not None and self._suspects.marks:
                        self._suspects.answered(trace.rows)
                    return result
            if asking is None:
                asking = Asking(
                    self._gate, self._policy, self._tally, Request(kind, limit_s, trace)
                )
            await asking.failed(failure, sent_at)

    def _note_failure(self, error: RequestError, sent_at: float) -> None:
        """What it says of the engines and of other requests that were in flight."""
        now = self._now()
        if isinstance(error, ReplicaLost | ServerFailed):
            self._suspects.broke(error.server, now)
        elif isinstance(error, NoFileLeft):
            self._connections.lower()
        if isinstance(error, ConnectionBroken):
            self._suspects.broke_off(sent_at, now, self._gate.traffic.in_flight - 1)
        else:
            replied = not isinstance(error, CannotConnect | NoFileLeft)
            self._suspects.ended(sent_at, replied=replied)

    def _turn(self, rows: Sequence[Row]) -> AbstractAsyncContextManager[Any]:
        """What a request of these rows waits for while there are suspects."""
        traffic = self._gate.traffic
        deaths = self._suspects.deaths_under(rows)
        if not deaths:
            return traffic
        if deaths < ALONE_AFTER:
            return traffic.among(lambda: self._suspects.few)
        return self._alone()

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        async with self._gate.traffic.alone():
            now = self._now()
            rest_s = max(self._suspects.rest_s(now), self._gate.traffic.turn_from - now)
            await asyncio.sleep(rest_s)
            yield

    def _note(
        self, facts: ReplyFacts, asked: dict[str, Any], latency_s: float, served_by: str | None
    ) -> None:
        """Count a reply, and add it to the row's trace."""
        self._tally.replies.count(
            latency_s, facts.prompt_tokens, facts.completion_tokens, served_by
        )
        trace = current_trace.get()
        if trace is None:
            return
        if facts.code and 0 in (asked.get(name) for name in _TOKEN_LIMITS):
            facts = facts._replace(code=0)
        trace.note(facts)


def _failed(reply: HttpReply) -> RequestError:
    return error_from_status(reply.status, reply.body, reply.retry_after_s, reply.served_by)
