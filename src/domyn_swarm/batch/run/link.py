"""The messages between a coordinator and its workers, over a socket pair or between machines."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import os
import secrets
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Generic, Self, TypeVar

import msgspec
import numpy as np
import pyarrow as pa

from domyn_swarm.batch.outcomes.histograms import ReplicaShare
from domyn_swarm.batch.outcomes.tally import Counters
from domyn_swarm.batch.run.dispatch import AtReplica, Capacity
from domyn_swarm.batch.run.pending import PendingRows
from domyn_swarm.logs import get_logger

_LENGTH = struct.Struct("<I")


class Begin(msgspec.Struct, tag=True, frozen=True):
    """The first message to a worker: its results' folder, and its first limit."""

    folder: str
    generation: int
    writer: int
    limit: int


class Rows(msgspec.Struct, tag=True, frozen=True):
    """Rows for the worker; the reply to `Wanted`."""

    number: int  # of this chunk, within the run
    ordinals: bytes
    digests: bytes
    columns: bytes  # Arrow IPC stream of one record batch

    def pending(self) -> PendingRows:
        """The rows as the coordinator read them."""
        with pa.ipc.open_stream(self.columns) as stream:
            columns = stream.read_next_batch()
        return PendingRows(
            np.frombuffer(self.ordinals, "<i8"),
            np.frombuffer(self.digests, "<u8").reshape(-1, 2),
            columns,
        )


class NoMoreRows(msgspec.Struct, tag=True, frozen=True):
    """The other reply to `Wanted`: finish the rows in flight and end."""


class Limit(msgspec.Struct, tag=True, frozen=True):
    """The worker's new limit of calls in flight, and its share of each replica's capacity."""

    limit: int
    capacities: dict[str, Capacity] = {}


class Stop(msgspec.Struct, tag=True, frozen=True):
    """Take no more rows; end within the grace period."""


class Hold(msgspec.Struct, tag=True, frozen=True):
    """Start no request, and report when none is in flight."""

    number: int


class YourTurn(msgspec.Struct, tag=True, frozen=True):
    """No other process has requests in flight; requests that must run alone may start."""

    wish: int  # the request for a turn that is granted
    rest_s: float  # from then: until then a request may reach an engine that has ended


class GoOn(msgspec.Struct, tag=True, frozen=True):
    """Requests may start again."""


class Wanted(msgspec.Struct, tag=True, frozen=True):
    """The worker has room for this number of rows."""

    rows: int


class Counted(msgspec.Struct, tag=True, frozen=True):
    """The worker's counters since it began, and the chunks settled since the last report.

    Counters per replica are sent separately and rarely: there may be thousands of replicas.
    """

    counters: Counters
    settled: list[int]
    limit: int  # last received
    calls: int  # calls in flight; above the limit until enough have ended
    replicas: dict[str, ReplicaShare] | None = None  # of the counters; None: unchanged
    at_replicas: dict[str, AtReplica] | None = None  # its requests now; None: unchanged


class Alone(msgspec.Struct, tag=True, frozen=True):
    """The worker has requests that must run alone, or no longer has any."""

    wish: int  # the number of the request for a turn; 0: withdrawn
    rest_s: float  # seconds in which a request may reach an engine that has ended


class Held(msgspec.Struct, tag=True, frozen=True):
    """Nothing of the worker is in flight; the reply to `Hold`."""

    number: int  # of the `Hold`
    rest_s: float  # as in `Alone`


class Failed(msgspec.Struct, tag=True, frozen=True):
    """The worker cannot continue, and no other worker could."""

    message: str
    hint: str


Order = Begin | Rows | NoMoreRows | Limit | Stop | Hold | YourTurn | GoOn
Report = Wanted | Counted | Alone | Held | Failed

_Told = TypeVar("_Told")
_encoder = msgspec.msgpack.Encoder()


class Link(Generic[_Told]):
    """One end; `heard` is the type of the other end's messages."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, heard: type[_Told]
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder = msgspec.msgpack.Decoder(heard)

    def say(self, message: Order | Report) -> None:
        """Send; a message to a closed end is lost, and `listen` ends there."""
        body = _encoder.encode(message)
        if not self._writer.is_closing():
            self._writer.write(_LENGTH.pack(len(body)) + body)

    async def listen(self) -> AsyncIterator[_Told]:
        """Messages until the other end is closed."""
        try:
            while True:
                [length] = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
                yield self._decoder.decode(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, OSError):  # including a lost machine
            return

    async def close(self) -> None:
        """Send what is buffered, and close."""
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except OSError:
            return


def pack(number: int, pending: PendingRows) -> Rows:
    """Rows as a message."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, pending.columns.schema) as stream:
        stream.write_batch(pending.columns)
    return Rows(
        number,
        pending.ordinals.astype("<i8").tobytes(),
        pending.digests.astype("<u8").tobytes(),
        sink.getvalue().to_pybytes(),
    )


_log = get_logger(__name__)

_NONCE_BYTES, _ID_BYTES, _PROOF_BYTES = 32, 16, 32
_HANDSHAKE_S = 10.0
_MOST_STRANGERS = 64  # simultaneous callers that are not authenticated
_SILENT_S = 15  # seconds after which a machine that acknowledges nothing is lost

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True)
class Invitation:
    """What a worker needs to connect; no other process gets it."""

    host: str
    port: int
    worker: bytes = field(default_factory=lambda: secrets.token_bytes(_ID_BYTES))
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    def proof(self, *parts: bytes) -> bytes:
        """Proof that the caller knows the secret."""
        return hmac.digest(self.secret, b"".join(parts), "sha256")


class WorkerListener:
    """A port to which the workers of one run connect. Other callers get only a nonce."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._expected: dict[bytes, tuple[Invitation, asyncio.Future[Connection]]] = {}
        self._meetings: set[asyncio.Task[None] | None] = set()  # not authenticated yet
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        """Listen on this host's address, on a free port."""
        self._server = await asyncio.start_server(self._meet, self._host, 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop listening; established links stay open."""
        if self._server is not None:
            self._server.close()
        left = [meeting for meeting in self._meetings if meeting is not None]
        for meeting in left:
            meeting.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def invite(self) -> Invitation:
        """An invitation for one worker."""
        if self._server is None:
            raise RuntimeError("the listener is not open")
        host, port = self._server.sockets[0].getsockname()[:2]
        invitation = Invitation(host, port)
        met = asyncio.get_running_loop().create_future()
        self._expected[invitation.worker] = invitation, met
        return invitation

    async def met(self, invitation: Invitation, within_s: float) -> Link[Report]:
        """The link to the invited worker, once it has connected.

        Raises:
            TimeoutError: it did not connect.
        """
        try:
            async with asyncio.timeout(within_s):
                connection = await self._expected[invitation.worker][1]
        finally:
            del self._expected[invitation.worker]
        return Link(*connection, Report)  # type: ignore[arg-type]

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        meeting = asyncio.current_task()
        known = False
        try:
            if meeting is not None and len(self._meetings) < _MOST_STRANGERS:
                self._meetings.add(meeting)
                async with asyncio.timeout(_HANDSHAKE_S):
                    known = await self._prove(reader, writer)
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError):
            _log.info("a stranger called at the port of the workers")
        finally:
            self._meetings.discard(meeting)
            if not known:
                writer.transport.abort()  # an unauthenticated caller must not receive unsent bytes
                with contextlib.suppress(ConnectionError):
                    await writer.wait_closed()

    async def _prove(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        nonce = secrets.token_bytes(_NONCE_BYTES)
        writer.write(nonce)
        worker = await reader.readexactly(_ID_BYTES)
        proof = await reader.readexactly(_PROOF_BYTES)
        invitation, met = self._expected.get(worker, (None, None))
        if invitation is None or met is None or met.done():
            return False
        if not hmac.compare_digest(proof, invitation.proof(nonce, worker)):
            return False
        writer.write(invitation.proof(worker, nonce))
        _notice_a_lost_machine(writer)
        met.set_result((reader, writer))
        return True


async def call(invitation: Invitation) -> Connection:
    """The worker's end: connect to the coordinator that sent the invitation.

    Raises:
        ConnectionError: nothing listens there, or another program does.
    """
    try:
        async with asyncio.timeout(_HANDSHAKE_S):
            reader, writer = await asyncio.open_connection(invitation.host, invitation.port)
            with contextlib.ExitStack() as stack:
                stack.callback(writer.close)
                nonce = await reader.readexactly(_NONCE_BYTES)
                writer.write(invitation.worker + invitation.proof(nonce, invitation.worker))
                proof = await reader.readexactly(_PROOF_BYTES)
                if not hmac.compare_digest(proof, invitation.proof(invitation.worker, nonce)):
                    raise ConnectionError("another program listens there")
                _notice_a_lost_machine(writer)
                stack.pop_all()
    except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
        raise ConnectionError(
            f"no coordinator at {invitation.host}:{invitation.port}: {error!r}"
        ) from error
    return reader, writer


def _notice_a_lost_machine(writer: asyncio.StreamWriter) -> None:
    """Close the connection when the other machine loses power or network: TCP alone would wait for
    a quarter of an hour, or for ever if nothing is sent.
    """
    with socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno())) as own:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (
            ("TCP_KEEPIDLE", max(1, _SILENT_S // 3)),
            ("TCP_KEEPINTVL", max(1, _SILENT_S // 3)),
            ("TCP_KEEPCNT", 2),
            ("TCP_USER_TIMEOUT", _SILENT_S * 1000),
        ):
            if (option := getattr(socket, name, None)) is not None:  # not on all systems
                own.setsockopt(socket.IPPROTO_TCP, option, value)
