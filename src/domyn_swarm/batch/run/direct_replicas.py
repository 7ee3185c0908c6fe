"""Sends a job's requests directly to a swarm's replicas, past the router, if they can be reached.

The swarm's collector lists the ready replicas; it is polled about once a second while there are
requests, and counts a poll as use of the swarm. While it does not answer, its last listing remains
valid; before the first listing its last view on disk is used. A replica receives requests once it
has answered from here, with our key (`_prove`): another program on a dead replica's port does not.
A replica that cannot be reached, or fails a request by its connection or by a refusal, has to prove
itself again.

The endpoint's router gets plain requests if no replica can be reached, and all plain requests if
the endpoint uses TLS, which replicas do not. Requests that the router would change
(`plain_requests`) go only to replicas. A replica lost during a request is reported, and the request
is not counted, as by the router.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import msgspec
from typing_extensions import override

from domyn_swarm.batch.run.dispatch import Dispatch
from domyn_swarm.batch.run.plain_requests import is_plain
from domyn_swarm.batch.run.replica_names import Names
from domyn_swarm.errors import JobError
from domyn_swarm.net.http import HttpClient, HttpReply
from domyn_swarm.net.request_errors import (
    CannotConnect,
    ConnectionBroken,
    NobodyThere,
    ReplicaAway,
    ReplicaLost,
    RequestError,
)

_LOOK_S = 1.0
_ASK_TIMEOUT_S = 5.0
_UNUSED_S = 10.0  # after this time without requests the collector is not polled any more
_DIES_S = 0.1  # this long after its connections broke, an engine that ends does not listen any more
_FIRST_S = 2.0  # the first requests wait this long for replicas to prove themselves
_PROVE_S = 5.0
_PROVED_AT_ONCE = 256
_RARELY_S = 15.0  # the longest time between attempts to reach an unreachable replica
_LOOKS_REFUSED = 3  # this many listings with replicas, none of which could be connected to,
_REFUSED_S = 8.0  # over this time: a dead replica is listed for less
_DOORS = frozenset({401, 402, 403, 404, 407})
_NO_LISTING = frozenset({404, 405})
_LISTING = "/v1/models"
_READINESS = "/readiness"
_ASKED = 2  # replicas that are tried before the endpoint


@dataclass
class _Attempts:
    """The attempts to reach a replica that has not proved itself: the next time, and the last
    result.
    """

    due_at: float = 0.0
    pause_s: float = _LOOK_S
    refused: bool = False  # the connection was refused
    strict: bool = False  # it refused a request: only a listing of models proves it


class Replicas:
    """The replicas of a swarm that answer from here. Follows the listing while there are
    requests.
    """

    def __init__(
        self,
        client: HttpClient,
        names: Names,
        notice: Callable[[str], None],
        dispatch: Dispatch | None = None,
        proved: Callable[[str, float], None] = lambda _url, _asked_at: None,
    ) -> None:
        """`client` has the key of the replicas; `notice` is called once, if none can be reached;
        `proved` with each replica that has proved itself, and the time of the probe.
        """
        self._client = client
        self._names = names
        self._notice: Callable[[str], None] | None = notice
        self._now = asyncio.get_running_loop().time
        self._named: frozenset[str] = frozenset()
        self._unproved: dict[str, _Attempts] = {}
        self._proving: set[str] = set()
        self._wanted = asyncio.Event()
        self._looked = asyncio.Event()
        self._settled = asyncio.Event()  # some replica has proved itself, or none will for now
        self._used_at = 0.0
        self.asleep = False  # no replica serves, and the swarm starts one on demand
        self.needed = False  # a request that needs a replica was refused for lack of one
        self._refused_at: list[float] = []  # listings in a row with no reachable replica
        self.dispatch = dispatch or Dispatch()
        self._proved = proved

    async def keep_looking(self) -> None:
        """Follow the listing of replicas while there are requests, until cancelled.

        Raises:
            JobError: no replica can be reached from here, and requests need one.
        """
        try:
            async with asyncio.TaskGroup() as proving:
                await self._follow(proving)
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _follow(self, proving: asyncio.TaskGroup) -> None:
        while True:
            await self._wanted.wait()
            await self._poll()
            for url in self._due():
                self._proving.add(url)
                proving.create_task(self._prove(url))
            self._judge_reach()
            await asyncio.sleep(_LOOK_S)
            if not self.dispatch.in_flight and self._now() - self._used_at > _UNUSED_S:
                self._wanted.clear()
                self._looked.clear()

    # -- the listing ---------------------------------------------------------------------------

    async def _poll(self) -> None:
        named = await self._names.asked(self._named)
        if named is not None:
            self._named, self.asleep = named
        elif not self._named:
            self._named = self._names.written()
        self.dispatch.keep_only(self._named)
        for url in self._unproved.keys() - self._named:
            del self._unproved[url]
        for url in self._named - self.dispatch.urls - self._unproved.keys():
            self._unproved[url] = _Attempts()
        self._looked.set()
        if not self._named:
            self._settled.set()

    # -- which answer from here ----------------------------------------------------------------

    def _due(self) -> list[str]:
        now, room = self._now(), _PROVED_AT_ONCE - len(self._proving)
        due = (url for url, one in self._unproved.items() if one.due_at <= now)
        return [url for url in due if url not in self._proving][: max(0, room)]

    async def _prove(self, url: str) -> None:
        """Probe a replica with a request that costs it nothing."""
        asked_at = self._now()
        try:
            proved, refused = await self._answers(url)
        finally:
            self._proving.discard(url)
        attempts = self._unproved.get(url)
        if attempts is None or url not in self._named:
            return
        if proved:
            del self._unproved[url]
            self._proved(url, asked_at)
            self.dispatch.offer(url)
        else:
            self.dispatch.withdraw(url)
            attempts.refused = refused
            attempts.due_at = self._now() + attempts.pause_s
            attempts.pause_s = min(_RARELY_S, attempts.pause_s * 1.3)
        if proved or not self._proving:
            self._settled.set()

    async def _answers(self, url: str) -> tuple[bool, bool]:
        """Whether it accepts our key, and whether the connection was refused."""
        try:
            reply = await self._client.request("GET", url + _LISTING, None, _PROVE_S)
        except RequestError as error:
            return False, isinstance(error, CannotConnect)
        attempts = self._unproved.get(url)
        if reply.status in _NO_LISTING and not (attempts and attempts.strict):
            return True, False
        return reply.status == 200 and not bytes(reply.body[:64]).lstrip().startswith(b"<"), False

    def lost(self, url: str) -> None:
        """Send nothing to a replica until it has proved itself again."""
        self.dispatch.withdraw(url)
        if url in self._named:
            self._unproved.setdefault(url, _Attempts())

    def doubt(self, url: str) -> None:
        """Probe a replica that refused a request. The request itself may have been the cause, so
        the replica gets others meanwhile.
        """
        if url in self._named:
            self._unproved.setdefault(url, _Attempts()).strict = True

    def _judge_reach(self) -> None:
        known = self._unproved.values()
        if self.dispatch.urls or not known or not all(one.refused for one in known):
            self._refused_at.clear()
            return
        self._refused_at.append(self._now())
        looks = self._refused_at
        if len(looks) < _LOOKS_REFUSED or looks[-1] - looks[0] < _REFUSED_S:
            return
        if self.needed:
            raise JobError(
                "The swarm's replicas cannot be reached from this machine, and the endpoint would "
                f"change what is to be asked ({', '.join(sorted(self._named))}).",
                hint="Run the job on the swarm's nodes: leave --run-here out. What may pass the "
                'endpoint is on the page "The client that jobs are given" of the documentation.',
            )
        if self._notice is not None:
            notice, self._notice = self._notice, None
            notice(
                "the replicas cannot be reached from this machine; requests go through the "
                "endpoint's router"
            )

    # -- requests -----------------------------------------------------------------------------

    async def take(self, body: bytes) -> str | None:
        """The replica for a request, until `release`; None: there is none."""
        self._used_at = self._now()
        self._wanted.set()
        if not self._looked.is_set():
            await self._looked.wait()
        if not self._settled.is_set():
            try:
                async with asyncio.timeout(_FIRST_S):
                    await self._settled.wait()
            except TimeoutError:
                self._settled.set()
        replica = self.dispatch.take(body)
        self.needed = self.needed and replica is None
        return replica

    async def still_asleep(self) -> bool:
        """Whether an elastic swarm has no replica that serves; polling makes it start one."""
        if not self.asleep:
            return False
        self._used_at = self._now()
        self._wanted.set()
        await self._looked.wait()
        return self.asleep

    def release(self, url: str) -> None:
        """Count a request as ended there."""
        self.dispatch.release(url)
        self._used_at = self._now()


class ReplicaClient(HttpClient):
    """An `HttpClient` for an endpoint that sends requests to replicas if possible."""

    def __init__(self, endpoint: HttpClient, replicas: Replicas, model: str) -> None:
        self._endpoint = endpoint
        self._replicas = replicas
        self._model = model

    @override
    async def request(
        self, method: str, url: str, body: bytes | None, timeout_s: float
    ) -> HttpReply:
        """Raises:
        ReplicaLost: the replica was lost during the request; `ReplicaAway`: it ended.
        NobodyThere: only a replica may receive it, and there is none; nothing was sent.
        """
        path = _path_of(url)
        if body is None:
            return await self._listing(url, path, timeout_s)
        while (replica := await self._chosen(url, path, body)) is not None:
            sent = self._replicas.dispatch.sent()
            try:
                return sent.answered(await self._straight(replica, method, path, body, timeout_s))
            except CannotConnect:  # nothing was sent: the next one
                self._replicas.lost(replica)
            finally:
                self._replicas.release(replica)
        return await self._endpoint.request(method, url, body, timeout_s)

    async def _listing(self, url: str, path: str, timeout_s: float) -> HttpReply:
        """A listing of models is requested from a replica if there is one: the replica serves
        whether or not the router does.
        """
        if path == _READINESS and await self._replicas.still_asleep():
            return HttpReply(503, b"", None)
        for replica in sorted(self._replicas.dispatch.urls)[:_ASKED]:
            try:
                limit_s = min(timeout_s, _ASK_TIMEOUT_S)
                return await self._endpoint.request("GET", replica + path, None, limit_s)
            except RequestError:
                continue
        return await self._endpoint.request("GET", url, None, timeout_s)

    async def _chosen(self, url: str, path: str, body: bytes) -> str | None:
        """A replica, or None: the endpoint.

        Raises:
            NobodyThere: neither.
        """
        passes = not url.startswith("https:")  # else plain requests go to the endpoint
        if not passes and is_plain(path, body, self._model):
            return None
        replica = await self._replicas.take(body)
        if replica is not None:
            return replica
        if self._replicas.asleep:  # the router would hold it for a while and then refuse it
            raise NobodyThere("the swarm is asleep; its first replica starts")
        if passes and is_plain(path, body, self._model):
            return None
        self._replicas.needed = True
        raise NobodyThere("no replica is ready, or none can be reached from here")

    async def _straight(
        self, replica: str, method: str, path: str, body: bytes, timeout_s: float
    ) -> HttpReply:
        try:
            reply = await self._endpoint.request(method, replica + path, body, timeout_s)
        except ConnectionBroken:  # once more, as the router: it may be the connection alone
            await asyncio.sleep(_DIES_S)
            try:
                reply = await self._endpoint.request(method, replica + path, body, timeout_s)
            except CannotConnect as error:
                self._replicas.lost(replica)
                raise ReplicaAway(f"{replica}: {error.message}", server=replica) from error
            except ConnectionBroken as error:
                self._replicas.lost(replica)
                raise ReplicaLost(f"{replica}: {error.message}", server=replica) from error
        self._replicas.dispatch.replied(replica, reply.status)
        if reply.status in _DOORS:
            self._replicas.doubt(replica)
        return msgspec.structs.replace(reply, served_by=replica)

    @override
    async def stream(
        self, url: str, body: bytes, timeout_s: float
    ) -> AsyncIterator[bytes | HttpReply]:
        path = _path_of(url)
        while (replica := await self._chosen(url, path, body)) is not None:
            with self._streaming(replica):
                chunk: bytes | HttpReply = b""
                try:
                    async for chunk in self._endpoint.stream(replica + path, body, timeout_s):
                        yield chunk
                    self._replicas.dispatch.replied(replica, getattr(chunk, "status", 200))
                    return
                except CannotConnect:  # nothing was sent: the next one
                    self._replicas.lost(replica)
        async for chunk in self._endpoint.stream(url, body, timeout_s):
            yield chunk

    @contextmanager
    def _streaming(self, replica: str) -> Iterator[None]:
        try:
            yield
        except ConnectionBroken as error:
            self._replicas.lost(replica)
            raise ReplicaLost(f"{replica}: {error.message}", server=replica) from error
        finally:
            self._replicas.release(replica)

    @override
    def use_key(self, key: str | None) -> None:
        self._endpoint.use_key(key)

    @override
    async def close(self) -> None:
        await self._endpoint.close()


def _path_of(url: str) -> str:
    return "/" + url.split("/", 3)[3]
