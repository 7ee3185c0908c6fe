"""One request over all its attempts: which failures do not count as retries, and when it is given
up.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import NamedTuple

from domyn_swarm.batch.outcomes.row_outcomes import OneByOne, RowTrace
from domyn_swarm.batch.outcomes.tally import Tally
from domyn_swarm.batch.run.gate import EndpointGate
from domyn_swarm.batch.run.standing import ALONE_AFTER, GUILTY_AFTER, Break, Death, Fault, Kind
from domyn_swarm.net.request_errors import (
    BackPressure,
    CannotConnect,
    ConnectionBroken,
    DeadlyRow,
    EngineDead,
    NobodyThere,
    NoFileLeft,
    ReplicaAway,
    ReplicaLost,
    RequestError,
    RequestTimeout,
    ServerFailed,
)

# The router's reply when its replicas are lost; 404 when it has none at all.
_GONE_STATUSES = frozenset({404, 500, 502, 503, 504})
_REPLICA_LEAVES_S = 60.0  # after this time a lost replica has left the router for certain
_COMES_BACK_S = 3.0  # a refused connection so soon after an engine's end has the same cause
_UNPROVEN_S = 5.0  # the same before the first answer: more likely all of them refuse


@dataclass(frozen=True)
class RetryPolicy:
    """How often, and with which pauses, a row's requests are repeated. Seconds throughout."""

    retries: int = 5
    timeout_s: float = 600.0
    timeout_retries: int = 1  # of those: after time-outs
    backoff_initial_s: float = 0.5
    backoff_max_s: float = 30.0
    pressure_limit_s: float = 3600.0  # how long one request may be deferred by back-pressure
    knock_max_s: float = 5.0  # the longest pause between two probes of a lost endpoint

    def backoff_s(self, failures: int) -> float:
        """The pause in seconds before the next attempt: uniform between 0 and the exponential
        bound.
        """
        bound = min(self.backoff_max_s, self.backoff_initial_s * 2 ** (failures - 1))
        return random.uniform(0, bound)  # noqa: S311 - jitter


class Request(NamedTuple):
    """The request and the rows that it belongs to."""

    kind: Kind
    limit_s: float  # time limit of one attempt
    trace: RowTrace | None


class Asking:
    """Receives each failed attempt; when `failed` returns, the request may be sent again."""

    def __init__(
        self, gate: EndpointGate, policy: RetryPolicy, tally: Tally, request: Request
    ) -> None:
        self._gate = gate
        self._suspects = gate.suspects
        self._policy = policy
        self._tally = tally
        self._request = request
        self._trace = RowTrace() if request.trace is None else request.trace
        self._timeouts = 0
        self._pressed_since: float | None = None
        self._away_since: float | None = None
        self._refused_since: float | None = None

    async def failed(self, error: RequestError, sent_at: float) -> None:
        """Return when the next attempt may be sent.

        Raises:
            RequestError: no further attempt: the row caused the error, or its attempts are used up.
            OneByOne: the rows of the call have to be sent separately.
        """
        now = asyncio.get_running_loop().time()
        last_break = self._suspects.last_break
        final = error.barred or not error.retryable or self._trace.failures >= self._policy.retries
        gone = _may_be_outage(error) and await self._gate.gone(final=final)
        broke = isinstance(error, ReplicaLost) and not isinstance(error, ReplicaAway)
        if not gone and not broke and await self._died_and_is_back(error, last_break, now):
            broke = not isinstance(error, CannotConnect)
            if not broke and await self._waited_for_the_router():
                self._trace.attempts -= 1  # nothing was sent
                return
        if await self._engine_died(error, sent_at, now, gone=gone, broke=broke):
            return
        if gone:
            if error.barred or isinstance(error, CannotConnect):  # it reached no engine
                self._trace.attempts -= 1
            return
        if error.may_meet_all and await self._is_not_the_rows(error, sent_at, now):
            return
        if error.barred or not error.retryable:
            raise error
        if await self._forgiven(error):
            return
        await self._repeated(error)

    async def _repeated(self, error: RequestError) -> None:
        """Count the retry, and pause."""
        trace = self._trace
        trace.failures += 1
        self._timeouts += isinstance(error, RequestTimeout)
        too_often = self._timeouts > self._policy.timeout_retries
        if trace.failures > self._policy.retries or too_often:
            raise error
        self._tally.count_retry(type(error).__name__, str(error))
        received_at = asyncio.get_running_loop().time()
        await asyncio.sleep(self._policy.backoff_s(trace.failures))
        if isinstance(error, ServerFailed) and error.server is not None:
            death = self._suspects.death_of(error.server, received_at)
            if death is not None:  # the engine ended just after this reply
                trace.failures -= 1
                self._accuse(death, error)

    # -- engines that end ------------------------------------------------------------------------

    async def _engine_died(
        self, error: RequestError, sent_at: float, now: float, *, gone: bool, broke: bool
    ) -> bool:
        """Whether the engine ended during the request, or had ended before. Returns after the time
        in which other components notice it. `broke`: the engine was processing the request when it
        ended.
        """
        death = None
        if isinstance(error, NobodyThere):  # nothing was sent
            self._trace.attempts -= 1
            self._tally.requests -= 1
            return gone or await self._waited_for_the_router()
        if isinstance(error, ReplicaAway | EngineDead) or (broke and self._trace.rows):
            last = self._suspects.death_of(error.server, 0.0)
            alive = last is not None and self._gate.standing.alive_since(
                error.server, last.last_heard_at
            )
            death = self._suspects.died_under(error.server, sent_at, now, alive=alive)
            if death is None and broke:  # it was being processed after all
                death = self._suspects.died_under(error.server, sent_at, now, alive=True)
            if death is None:
                self._trace.attempts -= 1
                return gone or await self._waited_for_the_router()
        elif gone and _broke_off(error) and not self._gate.standing.routed:
            death = self._suspects.died_under(None, sent_at, now)
        if death is None:
            return False
        self._accuse(death, error)
        if not gone:
            await self._waited_for_the_router()
        return True

    async def _died_and_is_back(self, error: RequestError, last_break: Break, now: float) -> bool:
        """Whether an engine that is addressed directly ended during the request, and serves again
        by now.

        It did if its connections broke all at once, or if one broke under a row that is already a
        suspect, or if connections were refused shortly after that.
        """
        if self._gate.standing.routed or not self._trace.rows:
            return False
        if isinstance(error, CannotConnect):
            return now - last_break.at < _COMES_BACK_S and await last_break.took_all()
        if type(error) is not ConnectionBroken:
            return False
        return self._suspects.deaths_under(self._trace.rows) > 0 or await last_break.took_all()

    def _accuse(self, death: Death, error: RequestError) -> None:
        rows = self._trace.rows
        deaths = self._suspects.mark(rows, death)
        if deaths == ALONE_AFTER and len(rows) > 1:
            raise OneByOne
        if deaths >= GUILTY_AFTER:
            times = "three" if deaths == GUILTY_AFTER else str(deaths)
            raise DeadlyRow(
                f"the engine died {times} times while it answered this row",
                server=error.server,
            )

    async def _waited_for_the_router(self, patience_s: float = _REPLICA_LEAVES_S) -> bool:
        """Pause briefly; return whether the router may still send requests to a replica that has
        ended.

        A dead replica looks least loaded, so until it leaves the router most requests are sent to
        it.
        """
        now = asyncio.get_running_loop().time()
        self._away_since = now if self._away_since is None else self._away_since
        await asyncio.sleep(random.uniform(0.1, 1.0))  # noqa: S311 - jitter
        return now - self._away_since < patience_s

    # -- failures that may affect every row ------------------------------------------------------

    async def _is_not_the_rows(self, error: RequestError, sent_at: float, now: float) -> bool:
        timed_out = isinstance(error, RequestTimeout)
        self._tally.timed_out += timed_out
        kind, limit_s = self._request.kind, self._request.limit_s
        if timed_out:  # answers in the first half may come from a server that was alive then
            self._refused_since = sent_at + limit_s / 2
        elif self._refused_since is None:
            self._refused_since = now
        fault = await self._gate.whose_fault(error, kind, self._refused_since, limit_s)
        if fault is Fault.ROW:
            return False
        if fault is Fault.REPLICA:
            proven = self._gate.standing.proven
            if not await self._waited_for_the_router(_REPLICA_LEAVES_S if proven else _UNPROVEN_S):
                return False
        else:
            self._refused_since = None
        self._trace.attempts -= not timed_out
        return True

    # -- pauses that are waited for --------------------------------------------------------------

    async def _forgiven(self, error: RequestError) -> bool:
        """Sleep as the error demands, and return True if the request should be sent again without
        spending one of the row's retries. Never sleeps beyond `pressure_limit_s`: then the request
        is sent a last time.

        Raises:
            BackPressure, NoFileLeft: that has been so for too long.
        """
        if not isinstance(error, BackPressure | NoFileLeft):
            return False
        now = asyncio.get_running_loop().time()
        self._pressed_since = now if self._pressed_since is None else self._pressed_since
        left_s = self._pressed_since + self._policy.pressure_limit_s - now
        if left_s <= 0:
            raise error
        if isinstance(error, NoFileLeft):  # nothing was sent
            self._trace.attempts -= 1
            self._tally.requests -= 1
            self._tally.count_retry(type(error).__name__, str(error))
        else:
            self._tally.turned_away += 1
        asked_s = 1.0 if error.retry_after_s is None else error.retry_after_s
        await asyncio.sleep(min(asked_s + random.uniform(0, 0.25), left_s))  # noqa: S311 - jitter
        return True


def _broke_off(error: RequestError) -> bool:
    """Whether an engine may have been processing the request when it failed."""
    return isinstance(error, ConnectionBroken | ServerFailed)


def _may_be_outage(error: RequestError) -> bool:
    return isinstance(error, CannotConnect | ConnectionBroken) or error.status in _GONE_STATUSES
