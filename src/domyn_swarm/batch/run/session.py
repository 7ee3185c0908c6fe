"""The one retry layer: sends each request of a row to an endpoint that may be busy, moving or
unreachable, until it is answered or `asking` gives it up.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import msgspec
from typing_extensions import override

from domyn_swarm.batch.background import beside
from domyn_swarm.batch.outcomes.row_outcomes import Row, RowTrace, current_trace
from domyn_swarm.batch.outcomes.tally import Tally
from domyn_swarm.batch.run.asking import Asking, Request, RetryPolicy
from domyn_swarm.batch.run.direct_replicas import ReplicaClient, Replicas
from domyn_swarm.batch.run.dispatch import Dispatch
from domyn_swarm.batch.run.gate import ALONE, EndpointGate
from domyn_swarm.batch.run.replica_names import Names
from domyn_swarm.batch.run.request_json import request_json
from domyn_swarm.batch.run.standing import ALONE_AFTER, Kind, Suspects, kind_of
from domyn_swarm.batch.run.steering import (
    Placed,
    Saturation,
    fate_reader,
    meter_reader,
    metrics_reader,
)
from domyn_swarm.batch.run.traffic import Connections, Traffic
from domyn_swarm.batch.run.worth import Worth
from domyn_swarm.model import Dispatching
from domyn_swarm.net.http import HttpClient, HttpReply, open_client
from domyn_swarm.net.openai import ClientAddress, OpenAIClient, Transport
from domyn_swarm.net.replies import ReplyFacts, StreamedReply, read_reply
from domyn_swarm.net.request_errors import (
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

_R = TypeVar("_R")
_T = TypeVar("_T")


_TOKEN_LIMITS = ("max_tokens", "max_completion_tokens")  # with 0 a prompt is measured, not answered


class _FailedAttempt(NamedTuple):
    """An attempt without a result."""

    error: RequestError
    sent_at: float


class RequestSession(Transport):
    """`net.openai.Transport` for rows: retries, pauses, and accounting in the row's trace."""

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

    @override
    async def post(
        self, path: str, body: dict[str, Any], timeout_s: float | None = None
    ) -> bytes | memoryview:
        """Raises:
        RequestError: refused, or the row's attempts are used up.
        ValueError: the request has no JSON form; nothing was sent.
        """
        encoded = request_json(body)
        kind = kind_of(path, body)
        limit_s = timeout_s or self._policy.timeout_s

        def send() -> Awaitable[HttpReply]:
            return self._client.request("POST", self._gate.url + path, encoded, limit_s)

        def read(reply: HttpReply, sent_at: float) -> bytes | memoryview:
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

        return await self._with_retries(send, read, kind, limit_s)

    @override
    async def get(self, path: str) -> bytes | memoryview:
        limit_s = self._policy.timeout_s

        def send() -> Awaitable[HttpReply]:
            return self._client.request("GET", self._gate.url + path, None, limit_s)

        def read(reply: HttpReply, _sent_at: float) -> bytes | memoryview:
            if reply.status >= 300:
                raise _failed(reply)
            return reply.body

        return await self._with_retries(send, read, Kind(path, None), limit_s)

    @override
    async def post_stream(
        self, path: str, body: dict[str, Any], timeout_s: float | None = None
    ) -> AsyncIterator[bytes]:
        """A request that fails before its first event is sent again."""
        encoded = request_json(body)
        kind = kind_of(path, body)
        limit_s = timeout_s or self._policy.timeout_s

        async def send() -> tuple[bytes, AsyncIterator[bytes]]:
            events = self._events(path, body, encoded, limit_s)
            try:
                return await anext(events), events
            except StopAsyncIteration:
                raise BadReply("the stream ended before its first event") from None

        def read(
            begun: tuple[bytes, AsyncIterator[bytes]], sent_at: float
        ) -> tuple[bytes, AsyncIterator[bytes]]:
            self._gate.standing.answered(kind, None, sent_at, self._now(), encoded)
            return begun

        first, rest = await self._with_retries(send, read, kind, limit_s)
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
        self,
        send: Callable[[], Awaitable[_R]],
        read: Callable[[_R, float], _T],
        kind: Kind,
        limit_s: float,
    ) -> _T:
        trace, traffic = current_trace.get(), self._gate.traffic
        asking: Asking | None = None
        while True:
            if self._connections.full:
                await self._connections.turn()
            with self._connections:
                if trace is not None and self._suspects.marks:
                    async with self._turn(trace.rows):
                        found = await self._sent(send, read, trace)
                else:
                    if traffic.closed:
                        await traffic.opened()
                    with traffic:
                        found = await self._sent(send, read, trace)
            if not isinstance(found, _FailedAttempt):
                return found
            if asking is None:
                asking = Asking(
                    self._gate, self._policy, self._tally, Request(kind, limit_s, trace)
                )
            await asking.failed(found.error, found.sent_at)

    async def _sent(
        self,
        send: Callable[[], Awaitable[_R]],
        read: Callable[[_R, float], _T],
        trace: RowTrace | None,
    ) -> _T | _FailedAttempt:
        """One attempt, once its turn has come."""
        counted = RowTrace() if trace is None else trace
        if not self._gate.is_open:
            counted.held += 1
            try:
                await self._gate.passed()
            finally:
                counted.held -= 1
        self._tally.requests += 1
        counted.attempts += 1
        counted.asked += 1
        sent_at = self._now()
        try:
            result = read(await send(), sent_at)
        except RequestError as error:
            self._note_failure(error, sent_at)
            return _FailedAttempt(error, sent_at)
        finally:
            counted.asked -= 1
        if self._suspects.last_break.left:
            self._suspects.ended(sent_at)
        if trace is not None and self._suspects.marks:
            self._suspects.answered(trace.rows)
        return result

    def _note_failure(self, error: RequestError, sent_at: float) -> None:
        """Derive from a failure the state of engines and of other requests in flight."""
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
        """The turn that a request of these rows has to wait for while there are suspects."""
        traffic = self._gate.traffic
        deaths = self._suspects.deaths_under(rows)
        if not deaths:
            return traffic.beside()
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
            facts = msgspec.structs.replace(facts, code=0)
        trace.note(facts)


def _failed(reply: HttpReply) -> RequestError:
    return error_from_status(reply.status, reply.body, reply.retry_after_s, reply.served_by)


@dataclass(frozen=True)
class Meter:
    """The program that knows the load of all engines behind the endpoint."""

    locate: Callable[[], str]
    key: str
    recorded: Callable[[], bytes | None] = lambda: None  # its last view of the replicas, on disk


@dataclass(frozen=True)
class EndpointAccess:
    """The target of requests. `locate` and `key_now` are called again whenever the endpoint does
    not answer, or refuses requests.
    """

    locate: Callable[[], str]
    key: str | None
    use_proxy: bool = False
    meter: Meter | None = None  # None: the endpoint's own /metrics, if it has them
    key_now: Callable[[], str | None] | None = None  # None: it does not change
    dispatch: Dispatching = "auto"  # how a request's replica is chosen
    model: str | None = None  # of a swarm whose replicas have the same key
    admits: Callable[[], int | None] = lambda: None  # requests that it accepts from this process
    ca_file: Callable[[], str | None] = lambda: None  # certificates to trust beside the system's
    fate: Callable[[], Awaitable[str | None]] | None = None  # see `EndpointGate`


@asynccontextmanager
async def open_session(
    access: EndpointAccess,
    policy: RetryPolicy,
    tally: Tally,
    notice: Callable[[str], None],
    suspects: Suspects | None = None,
    *,
    traffic: Traffic | None = None,
    worth: Worth | None = None,
) -> AsyncIterator[tuple[OpenAIClient, Saturation]]:
    """The client that a job receives, and the measurements that its limits use."""
    http = open_client(access.key, use_proxy=access.use_proxy, ca_file=access.ca_file())
    suspects = Suspects() if suspects is None else suspects
    key = access.key

    alone_said = False

    def on_state(paused: str | None) -> None:
        nonlocal alone_said
        before, tally.paused = tally.paused, paused
        if ALONE not in (before, paused):
            notice(paused or "the endpoint answers again; going on")
        elif not alone_said:  # reported once: it may flap
            alone_said = True
            notice(ALONE)

    def locate() -> str:
        nonlocal key
        if access.key_now is not None:
            with contextlib.suppress(OSError):  # the file is being replaced
                key = access.key_now()
            http.use_key(key)
        return access.locate()

    def official() -> ClientAddress:
        return ClientAddress(gate.url, key, access.use_proxy, access.ca_file())

    meter, fates = access.meter, [access.fate] if access.fate else []
    asked = None if meter is None else open_client(meter.key, use_proxy=False)
    carrier: HttpClient = http
    replicas = None
    if meter is not None and asked is not None:
        fates.insert(0, fate_reader(asked, meter.locate))
        if access.model is not None:
            names = Names(asked, meter.locate, meter.recorded)
            worth = Worth(tally.dispatched) if worth is None else worth
            dispatch = Dispatch(access.dispatch, worth)
            replicas = Replicas(http, names, notice, dispatch, suspects.proved)
            carrier = ReplicaClient(http, replicas, access.model)
    gate = EndpointGate(
        carrier,
        locate,
        on_state,
        suspects,
        knock_max_s=policy.knock_max_s,
        fates=fates,
        traffic=traffic,
        expected=bool(fates),  # those of a swarm
    )
    if meter is not None and asked is not None:
        gauges = meter_reader(asked, meter.locate)
    else:
        gauges = metrics_reader(http, lambda: gate.url)
    work = [
        gate.keep_knocking(),
        *([replicas.keep_looking(), replicas.dispatch.keep_measuring(http)] if replicas else []),
    ]
    try:
        connections = Connections(access.admits(), notice)
        session = RequestSession(carrier, gate, policy, tally, connections)
        async with beside(*work):
            placing = None if replicas is None else Placed(replicas.dispatch, tally.replies)
            yield (
                OpenAIClient(session, official),
                Saturation(gauges, placing, lambda: connections.most),
            )
    finally:
        if asked is not None:
            await asked.close()
        await http.close()
