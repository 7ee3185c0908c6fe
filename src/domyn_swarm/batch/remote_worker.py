"""Workers on other machines: they call their coordinator, and both ends prove who they are.

The listener sends a nonce (32 bytes); the caller answers with the id it was given (16) and
HMAC-SHA256 of nonce and id under the secret it was given with it (32); the listener answers with
HMAC-SHA256 of id and nonce. From then on both ends speak as over a socket pair (see `link`).
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import os
import secrets
import socket
from dataclasses import dataclass, field
from typing import Self

from domyn_swarm.batch.link import Link, Report
from domyn_swarm.logs import get_logger

_log = get_logger(__name__)

_NONCE_BYTES, _ID_BYTES, _PROOF_BYTES = 32, 16, 32
_HANDSHAKE_S = 10.0
_MOST_STRANGERS = 64  # callers at once that have not proved anything
_SILENT_S = 15  # a machine that confirms nothing for so long is lost

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True)
class Invitation:
    """What a worker needs to call: it is told nobody else."""

    host: str
    port: int
    worker: bytes = field(default_factory=lambda: secrets.token_bytes(_ID_BYTES))
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    def proof(self, *parts: bytes) -> bytes:
        """That one knows the secret."""
        return hmac.digest(self.secret, b"".join(parts), "sha256")


class WorkerListener:
    """A port where the workers of one run call. Nobody else gets a word out of it but a nonce."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._expected: dict[bytes, tuple[Invitation, asyncio.Future[Connection]]] = {}
        self._meetings: set[asyncio.Task[None] | None] = set()  # with who has not proved anything
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        """Listen on this host's address, on a port that is free."""
        self._server = await asyncio.start_server(self._meet, self._host, 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Listen no more; links that were made stay."""
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
        """The link to the worker that was invited, once it has called.

        Raises:
            TimeoutError: it did not call.
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
                writer.transport.abort()  # a stranger has no right to what is not sent yet
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
    """The worker's end: call the coordinator that sent the invitation.

    Raises:
        ConnectionError: nobody is there, or somebody else.
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
    """End the connection when the other machine loses its power or its network: TCP alone would
    wait for a quarter of an hour, or without end where nothing is sent.
    """
    with socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno())) as own:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (
            ("TCP_KEEPIDLE", max(1, _SILENT_S // 3)),
            ("TCP_KEEPINTVL", max(1, _SILENT_S // 3)),
            ("TCP_KEEPCNT", 2),
            ("TCP_USER_TIMEOUT", _SILENT_S * 1000),
        ):
            if (option := getattr(socket, name, None)) is not None:  # not every system has all
                own.setsockopt(socket.IPPROTO_TCP, option, value)
