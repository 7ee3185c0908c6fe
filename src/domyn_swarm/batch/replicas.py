"""Straight to a swarm's replicas, for requests that the endpoint's router would change.

The swarm's collector says which replicas are ready; it is asked about once a second while there are
such requests, and takes being asked for use of the swarm. Each goes to the replica that has the
fewest of ours. What the router says of a lost replica (`ReplicaLost`, `ReplicaAway`) is said here
of one that was lost under a request of ours: it is repeated and forgiven in the same way.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime

import msgspec

from domyn_swarm.batch.plain_requests import is_plain
from domyn_swarm.errors import JobError
from domyn_swarm.net.errors import (
    CannotConnect,
    ConnectionBroken,
    NobodyThere,
    ReplicaAway,
    ReplicaLost,
    RequestError,
)
from domyn_swarm.net.http import HttpClient, HttpReply

_LOOK_S = 1.0
_ASK_TIMEOUT_S = 5.0
_UNUSED_S = 10.0  # so long after the last request it is not looked any more
_DIES_S = 0.1  # so long after its connections broke, an engine that dies does not listen any more
_LOOKS_REFUSED = 3  # so often the collector named replicas, and none could be connected to,
_REFUSED_S = 8.0  # over so long: a dead one is named for less


class _Replica(msgspec.Struct):
    state: str
    reported_at: datetime
    url: str | None = None


class _View(msgspec.Struct):
    replicas: list[_Replica]
    taken_at: datetime
    stale_after_s: float

    def ready(self) -> tuple[str, ...]:
        """Where requests may be sent."""
        return tuple(
            one.url
            for one in self.replicas
            if one.state == "ready"
            and one.url is not None
            and (self.taken_at - one.reported_at).total_seconds() <= self.stale_after_s
        )


class Replicas:
    """The live replicas of a swarm, and how many requests of ours each one has."""

    def __init__(self, collector: HttpClient, locate: Callable[[], str]) -> None:
        """`collector` has its key, `locate` tells where it listens."""
        self._collector = collector
        self._locate = locate
        self._now = asyncio.get_running_loop().time
        self._ready: tuple[str, ...] = ()
        self._away: set[str] = set()  # lost since the last look
        self._in_flight: Counter[str] = Counter()
        self._wanted = asyncio.Event()
        self._looked = asyncio.Event()
        self._used_at = 0.0
        self._refused = False  # since the last look, and nothing was answered
        self._refused_at: list[float] = []  # looks before which that was so, in a row

    async def keep_looking(self) -> None:
        """Follow the replicas while requests want one, until cancelled.

        Raises:
            JobError: none of them can be reached from here, though the endpoint can.
        """
        while True:
            await self._wanted.wait()
            await self._look()
            self._judge_reach()
            await asyncio.sleep(_LOOK_S)
            if not self._in_flight.total() and self._now() - self._used_at > _UNUSED_S:
                self._wanted.clear()
                self._looked.clear()

    async def _look(self) -> None:
        named = True
        try:
            url = f"{self._locate()}/v1/replicas?for=requests"
            reply = await self._collector.request("GET", url, None, _ASK_TIMEOUT_S)
            self._ready = msgspec.json.decode(reply.body, type=_View).ready()
        except (RequestError, JobError, msgspec.DecodeError):
            named = False  # what was known goes on to hold: who is lost is noticed by connecting
        if not named or not self._ready:
            self._refused_at.clear()  # it is the swarm that is away
        elif self._refused:
            self._refused_at.append(self._now())
        self._refused = False
        self._away.clear()
        self._looked.set()

    def _judge_reach(self) -> None:
        looks = self._refused_at
        if len(looks) >= _LOOKS_REFUSED and looks[-1] - looks[0] >= _REFUSED_S:
            raise JobError(
                "The swarm's replicas cannot be reached from this machine, and the endpoint would "
                f"change what is to be asked ({', '.join(self._ready)}).",
                hint="Run the job on the swarm's nodes: leave --run-here out. What may pass the "
                'endpoint is on the page "The client that jobs are given" of the documentation.',
            )

    @asynccontextmanager
    async def one(self) -> AsyncIterator[str]:
        """The replica for one request, while it lasts.

        Raises:
            NobodyThere: none is ready, or nobody listens there; nothing was sent.
            ReplicaLost: the connection to it broke.
        """
        replica = await self._take()
        try:
            yield replica
            self._refused = False
            self._refused_at.clear()
        except ReplicaAway:
            self._away.add(replica)
            raise
        except CannotConnect as error:
            self._refused = True
            self._away.add(replica)
            raise NobodyThere(f"{replica}: {error.message}", server=replica) from error
        except ConnectionBroken as error:
            self._away.add(replica)
            raise ReplicaLost(f"{replica}: {error.message}", server=replica) from error
        finally:
            self._in_flight[replica] -= 1
            self._used_at = self._now()

    async def _take(self) -> str:
        self._used_at = self._now()
        self._wanted.set()
        await self._looked.wait()
        ready = [url for url in self._ready if url not in self._away]
        if not ready:
            raise NobodyThere("no replica is ready")
        replica = min(ready, key=lambda url: (self._in_flight[url], random.random()))  # noqa: S311 - a tie
        self._in_flight[replica] += 1
        return replica


class ReplicaClient:
    """An `HttpClient` for an endpoint: what its router would change goes to a replica itself."""

    def __init__(self, endpoint: HttpClient, replicas: Replicas, model: str) -> None:
        self._endpoint = endpoint
        self._replicas = replicas
        self._model = model

    async def request(
        self, method: str, url: str, body: bytes | None, timeout_s: float
    ) -> HttpReply:
        """See `HttpClient.request`.

        Raises:
            ReplicaAway: it died under the request; and as `Replicas.one`.
        """
        path = _path_of(url)
        if body is None or is_plain(path, body, self._model):
            return await self._endpoint.request(method, url, body, timeout_s)
        async with self._replicas.one() as replica:
            try:
                reply = await self._endpoint.request(method, replica + path, body, timeout_s)
            except ConnectionBroken:  # once more, as the router: it may be the connection alone
                await asyncio.sleep(_DIES_S)
                try:
                    reply = await self._endpoint.request(method, replica + path, body, timeout_s)
                except CannotConnect as error:
                    raise ReplicaAway(f"{replica}: {error.message}", server=replica) from error
        return reply._replace(served_by=replica)

    async def stream(
        self, url: str, body: bytes, timeout_s: float
    ) -> AsyncIterator[bytes | HttpReply]:
        """See `HttpClient.stream`."""
        path = _path_of(url)
        if is_plain(path, body, self._model):
            async for chunk in self._endpoint.stream(url, body, timeout_s):
                yield chunk
            return
        async with self._replicas.one() as replica:
            async for chunk in self._endpoint.stream(replica + path, body, timeout_s):
                yield chunk

    def use_key(self, key: str | None) -> None:
        """See `HttpClient.use_key`."""
        self._endpoint.use_key(key)

    async def close(self) -> None:
        """See `HttpClient.close`."""
        await self._endpoint.close()


def _path_of(url: str) -> str:
    return "/" + url.split("/", 3)[3]
