"""What a coordinator and its workers say to each other, over one socket pair each.

A message is its length (4 bytes, little-endian) and MessagePack. The worker asks for rows when it
has room; it never holds more than two handfuls that are not in flight.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from typing import Generic, TypeVar

import msgspec
import numpy as np
import pyarrow as pa

from domyn_swarm.batch.dispatch import AtReplica, Capacity
from domyn_swarm.batch.observations import ReplicaShare
from domyn_swarm.batch.source import PendingRows
from domyn_swarm.batch.tally import Counters

_LENGTH = struct.Struct("<I")


class Begin(msgspec.Struct, tag=True, frozen=True):
    """The first message to a worker: where its results go, and how much it may do at once."""

    folder: str
    generation: int
    writer: int
    limit: int


class Rows(msgspec.Struct, tag=True, frozen=True):
    """Rows for the worker; an answer to `Wanted`."""

    number: int  # of this handful, among all of the run
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
    """The other answer to `Wanted`: finish what is in flight and end."""


class Limit(msgspec.Struct, tag=True, frozen=True):
    """How many calls the worker may have in flight from now on, and its part of what each replica
    may have of them.
    """

    limit: int
    capacities: dict[str, Capacity] = {}


class Stop(msgspec.Struct, tag=True, frozen=True):
    """Take no more rows; end within the grace period."""


class Hold(msgspec.Struct, tag=True, frozen=True):
    """Begin no request, and report when none is in flight."""

    number: int


class YourTurn(msgspec.Struct, tag=True, frozen=True):
    """Nothing of the others is in flight; requests that want to be alone may begin."""

    wish: int  # that is granted
    rest_s: float  # but only then: until then one may reach an engine that is known to be dead


class GoOn(msgspec.Struct, tag=True, frozen=True):
    """Requests may begin again."""


class Wanted(msgspec.Struct, tag=True, frozen=True):
    """The worker has room for so many rows."""

    rows: int


class Counted(msgspec.Struct, tag=True, frozen=True):
    """What the worker has done since it began, and which handfuls are settled since last told.

    What each replica did comes apart, and seldom: there may be thousands of them.
    """

    counters: Counters
    settled: list[int]
    limit: int  # that it was told last
    calls: int  # that it has in flight; more than the limit until those above it are back
    replicas: dict[str, ReplicaShare] | None = None  # of the counters; None: as told last
    at_replicas: dict[str, AtReplica] | None = None  # its requests now; None: as told last


class Alone(msgspec.Struct, tag=True, frozen=True):
    """The worker has requests that must have nothing beside them, or has them no more."""

    wish: int  # its number; 0: no more
    rest_s: float  # for so long a request may reach an engine that the worker knows to be dead


class Held(msgspec.Struct, tag=True, frozen=True):
    """Nothing of the worker is in flight; an answer to `Hold`."""

    number: int  # of that
    rest_s: float  # as in `Alone`


class Failed(msgspec.Struct, tag=True, frozen=True):
    """The worker cannot go on, and another could not either."""

    message: str
    hint: str


Order = Begin | Rows | NoMoreRows | Limit | Stop | Hold | YourTurn | GoOn
Report = Wanted | Counted | Alone | Held | Failed

_Told = TypeVar("_Told")
_encoder = msgspec.msgpack.Encoder()


class Link(Generic[_Told]):
    """One end; `heard` is what the other end says."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, heard: type[_Told]
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder = msgspec.msgpack.Decoder(heard)

    def say(self, message: Order | Report) -> None:
        """Send; a message to an end that is gone is lost, and `listen` ends there."""
        body = _encoder.encode(message)
        if not self._writer.is_closing():
            self._writer.write(_LENGTH.pack(len(body)) + body)

    async def listen(self) -> AsyncIterator[_Told]:
        """Messages until the other end is gone."""
        try:
            while True:
                [length] = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
                yield self._decoder.decode(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, OSError):  # also of a machine that is gone
            return

    async def close(self) -> None:
        """Send what is left, and hang up."""
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
