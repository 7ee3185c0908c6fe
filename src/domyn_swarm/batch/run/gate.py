"""The endpoint gate: whether the endpoint answers, and lets rows in. While it is closed it holds
back every row while one task probes the endpoint; nothing is counted against any row meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import count
from typing import NamedTuple

import msgspec

from domyn_swarm.batch.run.standing import Fault, Kind, Standing, Suspects, brief
from domyn_swarm.batch.run.traffic import Traffic
from domyn_swarm.errors import JobError, SwarmError
from domyn_swarm.logs import get_logger
from domyn_swarm.net.http import HttpClient, HttpReply
from domyn_swarm.net.request_errors import (
    NOT_JSON,
    NoFileLeft,
    RequestError,
    RequestTimeout,
    error_from_status,
    page_instead,
)
from domyn_swarm.probing import comes_true_async

_log = get_logger(__name__)

_BELIEVED_S = 0.5  # seconds for which an endpoint that served is not probed again
_PROBE_S = 30.0  # time limit for one token, in seconds
_OTHERS_S = 5.0  # an answer within this time: one replica is at fault, not the endpoint
_LOOK_S = 0.05
_FIRST_TRIES = 8  # of an endpoint that may never have been started: about ten seconds
_FILES_S = 0.5  # requests that end free files

ALONE = "rows under which engines died are asked one at a time; the others wait"


class _ProbeResult(Enum):
    """The result of a probe."""

    ANSWERED = "answered"
    BARRED = "barred"
    NOTHING = "nothing"  # no reply in time
    ELSE = "else"  # busy, unreachable, broken: inconclusive


@dataclass(frozen=True)
class _Probe:
    """A request that was answered before, to be sent again as a probe."""

    kind: Kind
    body: bytes
    limit_s: float


class _Trouble(NamedTuple):
    """Why the gate is closed. `probe`: the request that must be answered before it opens; None: a
    listing of models is enough.
    """

    text: str
    probe: _Probe | None = None


class EndpointGate:
    """Holds rows back while the endpoint does not answer; see the module. One per session."""

    def __init__(
        self,
        client: HttpClient,
        locate: Callable[[], str],
        on_state: Callable[[str | None], None],
        suspects: Suspects,
        *,
        knock_max_s: float = 5.0,
        fates: Sequence[Callable[[], Awaitable[str | None]]] = (),
        traffic: Traffic | None = None,
        expected: bool = True,
    ) -> None:
        """Each of `fates` returns, as a sentence without its full stop, why the endpoint will never
        answer again, or None if it may, as far as that is known. `expected`: the endpoint is being
        brought up, so the gate waits for it without limit; else it must already exist.
        """
        self._expected = expected
        self._heard = False  # any answer received
        self._has_served = False
        self._unheard = ""  # why none was received
        self._client = client
        self._locate = locate
        self._on_state = on_state
        self._knock_max_s = knock_max_s
        self._fates = fates
        self.is_open = True  # the endpoint answers, as far as is known
        self._opened = asyncio.Event()
        self._opened.set()
        self._closed = asyncio.Event()
        self._trouble = _Trouble("")
        self._checked_at: float | None = None
        self._asking = asyncio.Lock()
        self._probing = asyncio.Lock()  # a lock of its own: a probe may take as long as a row
        self._alone = False
        self._told: str | None = None
        self._probed: tuple[float, _Probe, _ProbeResult] | None = None
        self.standing = Standing()
        self.traffic = traffic or Traffic()
        self.traffic.on_wait = self._tell_alone
        self.suspects = suspects
        self.url = locate()

    async def passed(self) -> None:
        """Return once the gate is open."""
        await self._opened.wait()

    def _tell_alone(self, begins: bool) -> None:
        self._alone = begins
        self._report_state()

    def _report_state(self) -> None:
        """Report why rows wait, or that they no longer do, if that changed."""
        waiting = ALONE if self._alone else None
        text = waiting if self.is_open else self._trouble.text
        if text != self._told:
            self._told = text
            self._on_state(text)

    def _close(self, trouble: _Trouble) -> None:
        if self.is_open:
            self._trouble = trouble
            self.is_open = False
            self._opened.clear()
            self._closed.set()

    # -- no answer ------------------------------------------------------------------------------

    async def gone(self, *, final: bool) -> bool:
        """Probe the endpoint; if it does not serve, close the gate and return True.

        `final`: the row would be given up otherwise, so what was true a moment ago is not enough.
        """
        loop = asyncio.get_running_loop()
        asked_at = loop.time()
        async with self._asking:
            if not self.is_open:
                return True
            believed_s = 0.0 if final else _BELIEVED_S
            if self._checked_at is not None and self._checked_at > asked_at - believed_s:
                return False  # another row has just probed it successfully
            if await self._serves():
                self._checked_at = loop.time()
                return False
            self._close(_Trouble(self._absence()))
            return True

    def _absence(self) -> str:
        """The message for an endpoint that does not serve now."""
        if self._has_served or self.standing.proven:
            return f"the endpoint {self.url} does not answer; waiting for it"
        if self._heard or self._expected:
            return f"the endpoint {self.url} is starting; waiting for it"
        return f"no answer so far from {self.url} yet; trying again"

    async def _serves(self) -> bool:
        """Whether it lists a model and, if it reports replicas, one is ready."""
        try:
            listing = await self._get("/v1/models")
            if listing.status not in (200, 404, 405):
                return listing.status < 500 and listing.status != 429
            if listing.status == 200 and not _lists_a_model(listing.body):
                return False
            readiness = await self._get("/readiness")
        except RequestError as error:
            self._unheard = error.message
            return False
        self._has_served |= readiness.status != 503
        return readiness.status != 503

    async def _get(self, path: str) -> HttpReply:
        """GET from the endpoint; without a file for the connection the result is unknown."""
        while True:
            try:
                reply = await self._client.request("GET", self.url + path, None, 10.0)
                self._heard = True
                return reply
            except NoFileLeft:
                await asyncio.sleep(_FILES_S)

    # -- answers, but not to rows ---------------------------------------------------------------

    async def whose_fault(
        self, error: RequestError, kind: Kind, since: float, limit_s: float
    ) -> Fault:
        """Decides who caused a refusal or a time-out: the row, if other requests have been answered
        since.

        If every request is affected, the gate is closed when this returns: rows wait, and are sent
        again.
        """
        if self._is_of_the_row(error, kind, since):
            return Fault.ROW
        if not self.standing.proven:
            return await self._before_any_answer(error, kind, since, limit_s)
        if error.server is not None and self._others_are_answered():
            return Fault.REPLICA
        body = self.standing.known(kind)
        if body is None:
            return Fault.ROW  # other requests are different, and are answered
        async with self._probing:
            if not self.is_open:
                return Fault.ALL
            return await self._by_a_probe(error, _Probe(kind, body, limit_s), since)

    async def _by_a_probe(self, error: RequestError, probe: _Probe, since: float) -> Fault:
        timed_out = isinstance(error, RequestTimeout)
        if not timed_out:  # one token is enough to test for refusals
            body = brief(probe.kind.path, probe.body)
            probe = _Probe(probe.kind, body, min(probe.limit_s, _PROBE_S))
        result = await self._result_since(since, probe)
        if result is (_ProbeResult.NOTHING if timed_out else _ProbeResult.BARRED):
            self._close(_Trouble(self._refusal(error), probe))
            return Fault.ALL
        if timed_out or self._is_of_the_row(error, probe.kind, since):
            return Fault.ROW
        return Fault.REPLICA

    def _others_are_answered(self) -> bool:
        now = asyncio.get_running_loop().time()
        return self.standing.answered_since(now - _OTHERS_S)

    def _is_of_the_row(self, error: RequestError, kind: Kind, since: float) -> bool:
        """Whether other requests are answered at the same time."""
        if isinstance(error, RequestTimeout):
            return self.standing.answered_since(since)
        return self.standing.serves(kind, error.server, since)

    async def _before_any_answer(
        self, error: RequestError, kind: Kind, since: float, limit_s: float
    ) -> Fault:
        """The decision while nothing was answered in this run: requests in flight may still be."""
        if isinstance(error, RequestTimeout):
            return Fault.ROW  # `FailureLimit` ends the run after a few rows, as below
        await comes_true_async(
            lambda: self.standing.proven or not self.traffic.in_flight, every_s=_LOOK_S
        )
        if self.standing.proven:
            return await self.whose_fault(error, kind, since, limit_s)
        return Fault.ROW if error.server is None else Fault.REPLICA

    async def _result_since(self, moment: float, probe: _Probe) -> _ProbeResult:
        """The result of a probe of this kind that was sent since then."""
        if self._probed is not None:
            sent_at, asked, result = self._probed
            if sent_at >= moment and asked == probe and result is not _ProbeResult.NOTHING:
                return result
        return await self._ask(probe)

    async def _ask(self, probe: _Probe) -> _ProbeResult:
        loop = asyncio.get_running_loop()
        sent_at = loop.time()
        url = self.url + probe.kind.path
        result = _ProbeResult.ELSE
        try:
            reply = await self._client.request("POST", url, probe.body, probe.limit_s)
        except RequestTimeout:
            result = _ProbeResult.NOTHING
        except RequestError:
            result = _ProbeResult.ELSE
        else:
            if reply.status >= 300:
                error = error_from_status(reply.status, reply.body, reply.retry_after_s)
                result = _ProbeResult.BARRED if error.barred else _ProbeResult.ELSE
                if not error.barred and not error.retryable:
                    result = _ProbeResult.ANSWERED  # let in, though one token is too few for it
            elif page_instead(reply.body, None) is not None:
                result = _ProbeResult.BARRED
            else:
                result = _ProbeResult.ANSWERED
                self.standing.answered(
                    probe.kind, reply.served_by, sent_at, loop.time(), probe.body
                )
        self._probed = sent_at, probe, result
        return result

    def _refusal(self, error: RequestError) -> str:
        if isinstance(error, RequestTimeout):
            return (
                f"no request to {self.url} is answered any more: {error.message}; waiting until "
                "one is. Look at the server's log and load"
            )
        return (
            f"the endpoint {self.url} turns every request away: {error.message}; waiting until it "
            f"lets them in. {remedy(error)}"
        )

    # -- probing while closed -------------------------------------------------------------------

    async def keep_knocking(self) -> None:
        """Open the gate again whenever it was closed, until cancelled. Runs beside the rows.

        Raises:
            JobError: the endpoint will never answer again, or that cannot be determined; rows would
                wait for ever.
        """
        while True:
            await self._closed.wait()
            self._closed.clear()
            try:
                await self._knock()
            except SwarmError:
                raise
            except Exception as error:
                raise JobError(
                    f"Cannot determine whether the endpoint {self.url} answers: {error!r}.",
                    hint="Submit the same job again: finished rows are kept.",
                ) from error

    async def _knock(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        self._report_state()
        wait_s = 0.2
        for tries in count(1):
            await asyncio.sleep(wait_s)
            wait_s = min(self._knock_max_s, wait_s * 1.5)
            with contextlib.suppress(JobError):  # while it moves it has no address
                self.url = self._locate()
            if await self._serves_again(self._trouble.probe):
                break
            await self._look_at_its_fate()
            self._check_that_it_exists(tries)
        _log.info("the endpoint answers again after %.1f s", loop.time() - began)
        self.suspects.all_back()
        self.is_open = True
        self._opened.set()
        self._report_state()

    async def _serves_again(self, probe: _Probe | None) -> bool:
        return await self._serves() and (
            probe is None or await self._ask(probe) is _ProbeResult.ANSWERED
        )

    def _check_that_it_exists(self, tries: int) -> None:
        if self._expected or self._heard or self.standing.proven or tries < _FIRST_TRIES:
            return
        raise JobError(
            f"Nothing answers at {self.url}: {self._unheard.rstrip('.')}.",
            hint="Check host and port of the endpoint (--endpoint), and that a server runs there; "
            "then run the same again.",
        )

    async def _look_at_its_fate(self) -> None:
        for fate in self._fates:
            why = await fate()
            if why is None:
                continue
            raise JobError(
                f"{why}. Nothing will answer at {self.url} again.",
                hint="Finished rows are kept. Bring up a swarm again and continue there: "
                "domyn-swarm job resume JOB --name SWARM",
            )


def remedy(error: RequestError) -> str:
    """What the user can do about a refused request."""
    if error.status in (401, 407):
        return "Is the key right, and still valid?"
    if error.status in (402, 403, 429):
        return "Is the key still allowed to ask this model, and is there credit?"
    if error.status == 404:
        return "Is this model still served under its name, and at this path?"
    return "A login page or a proxy seems to stand before it"


def _lists_a_model(body: bytes | memoryview) -> bool:
    try:
        listing = msgspec.json.decode(body)
    except NOT_JSON:
        return False
    return not isinstance(listing, dict) or bool(listing.get("data", True))
