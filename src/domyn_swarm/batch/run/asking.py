"""One request over all its attempts: what it is forgiven, and when it is given up."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import NamedTuple

from domyn_swarm.batch.outcomes.rows import OneByOne, RowTrace
from domyn_swarm.batch.outcomes.tally import Tally
from domyn_swarm.batch.run.gate import EndpointGate
from domyn_swarm.batch.run.standing import ALONE_AFTER, GUILTY_AFTER, Break, Death, Fault, Kind
from domyn_swarm.net.errors import (
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

# What a router says when its replicas are lost; 404 when it knows of none at all.
_GONE_STATUSES = frozenset({404, 500, 502, 503, 504})
_REPLICA_LEAVES_S = 60.0  # within so long a lost replica has surely left the router
_COMES_BACK_S = 3.0  # within so long after a death who cannot connect has met nothing else
_UNPROVEN_S = 5.0  # the same before anything was answered: as likely all of them refuse


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how patiently a row is repeated. Seconds throughout."""

    retries: int = 5
    timeout_s: float = 600.0
    timeout_retries: int = 1  # of those: after no reply came in time
    backoff_initial_s: float = 0.5
    backoff_max_s: float = 30.0
    pressure_limit_s: float = 3600.0  # how long one request may be turned away as back-pressure
    knock_max_s: float = 5.0  # how often a lost endpoint is tried

    def backoff_s(self, failures: int) -> float:
        """The wait before the next attempt: uniform between 0 and the exponential bound."""
        bound = min(self.backoff_max_s, self.backoff_initial_s * 2 ** (failures - 1))
        return random.uniform(0, bound)  # noqa: S311 - jitter


class Request(NamedTuple):
    """What is asked for which row."""

    kind: Kind
    limit_s: float  # how long one attempt may take
    trace: RowTrace | None


class Asking:
    """Told of each attempt that failed; when it returns, the request may be sent again."""

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
        """Return when it is time for another attempt.

        Raises:
            RequestError: there is none: the row caused it, or its attempts are used up.
            OneByOne: the rows of the call have to be asked each by itself.
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
            if error.barred or isinstance(error, CannotConnect):  # no engine has seen it
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
        """Count it, and rest."""
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
            if death is not None:  # those were its last words
                trace.failures -= 1
                self._accuse(death, error)

    # -- engines that die ------------------------------------------------------------------------

    async def _engine_died(
        self, error: RequestError, sent_at: float, now: float, *, gone: bool, broke: bool
    ) -> bool:
        """Whether the engine died under the request, or had done so before. The time until others
        know it, too, is over by then. `broke`: the request was at work in an engine as that ended.
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
            if death is None and broke:  # it was at work after all
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
        """Whether an engine that is asked directly died under the request, and serves again by
        now: its connections broke all at once, or under a row that is a suspect already. So it did
        where nobody could connect shortly after that.
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
        """Rest a moment; whether the router may still send requests where it should not.

        It is the least loaded replica, too, until it leaves: many come here at once.
        """
        now = asyncio.get_running_loop().time()
        self._away_since = now if self._away_since is None else self._away_since
        await asyncio.sleep(random.uniform(0.1, 1.0))  # noqa: S311 - jitter
        return now - self._away_since < patience_s

    # -- what may break for every row ------------------------------------------------------------

    async def _is_not_the_rows(self, error: RequestError, sent_at: float, now: float) -> bool:
        timed_out = isinstance(error, RequestTimeout)
        self._tally.timed_out += timed_out
        kind, limit_s = self._request.kind, self._request.limit_s
        if timed_out:  # others' answers of the first half may be those of a server that lived
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

    # -- what is waited out ----------------------------------------------------------------------

    async def _forgiven(self, error: RequestError) -> bool:
        """Whether the request may be sent again without counting it, once the pause is over that
        the error asks for. Never longer than until `pressure_limit_s` is over: then it is sent a
        last time.

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
    """Whether an engine may have been at work when the request failed."""
    return isinstance(error, ConnectionBroken | ServerFailed)


def _may_be_outage(error: RequestError) -> bool:
    return isinstance(error, CannotConnect | ConnectionBroken) or error.status in _GONE_STATUSES
