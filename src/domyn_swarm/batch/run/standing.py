"""Attributes failures: to the server, the request, or a row under which engines end; and decides
when a run stops because of too many failures.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from domyn_swarm.batch.checkpoint.checkpoint_folder import SUSPECTS
from domyn_swarm.batch.outcomes.row_outcomes import Row
from domyn_swarm.batch.outcomes.tally import Tally
from domyn_swarm.errors import TooManyFailures, quantity
from domyn_swarm.logs import get_logger
from domyn_swarm.probing import comes_true_async

_KINDS_KEPT = 16  # of requests: a job usually uses one or two paths and models
_PAIRS_KEPT = 4096  # of kinds and replicas; beyond it evidence is collected again
_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_GENERATING = ("/v1/chat/completions", "/v1/completions")


class Fault(Enum):
    """Who caused a failure."""

    ROW = "row"
    REPLICA = "replica"  # others are answered, but not by the replica of this request
    ALL = "all"


class Kind(NamedTuple):
    """The properties of a request on which access depends: key, path and model."""

    path: str
    model: str | None


def kind_of(path: str, body: dict[str, Any]) -> Kind:
    """The kind of a request."""
    model = body.get("model")
    return _kind(path, model if type(model) is str else None)


_kind = lru_cache(_KINDS_KEPT)(Kind)


class Standing:
    """The recent answers. Times are the event loop's."""

    def __init__(self) -> None:
        self._good: dict[Kind, bytes] = {}
        self._served: dict[tuple[Kind, str | None], float] = {}
        self.last_answer_at: float | None = None

    def answered(
        self, kind: Kind, server: str | None, sent_at: float, now: float, body: bytes
    ) -> None:
        """Record an answered request; `server` is the replica, if the router names it."""
        self.last_answer_at = now
        self._served[kind, server] = sent_at
        if kind not in self._good:
            self._first_of(kind, body)

    def _first_of(self, kind: Kind, body: bytes) -> None:
        if len(self._good) < _KINDS_KEPT:
            self._good[kind] = body
        if len(self._served) > _PAIRS_KEPT:
            self._served.clear()

    @property
    def proven(self) -> bool:
        """Whether any request was answered in this run."""
        return self.last_answer_at is not None

    @property
    def routed(self) -> bool:
        """Whether requests pass a router: a broken connection is then the router's."""
        return any(server is not None for _, server in self._served)

    def known(self, kind: Kind) -> bytes | None:
        """The body of an answered request of this kind."""
        return self._good.get(kind)

    def serves(self, kind: Kind, server: str | None, since: float) -> bool:
        """Whether this server answered such a request that was sent since then."""
        return self._served.get((kind, server), float("-inf")) >= since

    def alive_since(self, server: str | None, moment: float) -> bool:
        """Whether this server answered a request that was sent after a moment."""
        return any(sent_at > moment for (_, one), sent_at in self._served.items() if one == server)

    def answered_since(self, moment: float) -> bool:
        """Whether any request was answered since then."""
        return self.last_answer_at is not None and self.last_answer_at >= moment


def brief(path: str, body: bytes) -> bytes:
    """The same request at the least cost: one token, without streaming."""
    asked = msgspec.json.decode(body)
    for name in [name for name in _LIMITS if name in asked] or ["max_tokens"]:
        if path in _GENERATING or name in asked:
            asked[name] = 1
    for name in ("stream", "stream_options", "n", "best_of", "min_tokens"):
        asked.pop(name, None)
    return msgspec.json.encode(asked)


_log = get_logger(__name__)

ALONE_AFTER = 2  # engines that ended under a row
GUILTY_AFTER = 3
# The longest time for which a dead replica is believed alive. An engine that returns sooner and
# ends again is counted twice only if it proved itself or answered in between. A router reports
# neither: its message is the same for requests in flight at the dead replica and for later ones.
# Behind a router such an engine counts once, and its row costs more engines.
_SAME_DEATH_S = 1.2
_ON_ITS_WAY_S = 0.2  # a request sent so shortly before a break may not have been affected by it
_LOOK_S = 0.05
_LEAVES_S = 3.0  # the time in which an engine that its watchdog reported dead has left the router
_AT_ONCE_S = 1.0  # the time in which all connections to an engine that ended have broken


class Death(NamedTuple):
    """The end of an engine, as derived from its requests."""

    server: str | None
    heard_at: float  # when it was first noticed
    last_heard_at: float


@dataclass
class Break:
    """Broken connections, and the fate of the other requests in flight at that time.

    An engine that a supervisor restarts at once is never observed absent. Its end differs from a
    proxy that cut one connection in that it breaks all connections, and there were several.
    """

    at: float  # the first break
    left: int  # requests sent before, without a result since
    broke: int = 1
    outlived: bool = False  # by a request that was sent well before and was answered after it

    async def took_all(self) -> bool:
        """Whether most connections broke and no request outlived the break.

        Waits until that is certain, a second at most: a request on its way may have reached the
        next engine, and take long there.
        """
        left_s = self.at + _AT_ONCE_S - asyncio.get_running_loop().time()
        await comes_true_async(
            lambda: not self.left or self.outlived, within_s=left_s, every_s=_LOOK_S
        )
        return self.broke > max(1, self.left) and not self.outlived


class Suspects:
    """Rows by the number of engines that ended under them. Times are the event loop's."""

    def __init__(self) -> None:
        self.marks: dict[bytes, int] = {}
        """The number of engines that ended under a row, by its digest. Read only."""
        self._marked_for: dict[bytes, Death] = {}
        self._deaths: dict[str | None, Death] = {}
        self._proved_at: dict[str, float] = {}
        self._broke_at = float("-inf")
        self.last_break = Break(float("-inf"), 0)
        self._file: Path | None = None

    def __len__(self) -> int:
        return len(self.marks)

    def keep_in(self, folder: Path) -> None:
        """Load the records of earlier runs, and append those of this run."""
        self._file = folder / SUSPECTS
        try:
            lines = self._file.read_text("ascii").split()
        except (OSError, ValueError):
            return
        for line in lines:
            if len(line) == 32:  # else a line that was cut off
                row = bytes.fromhex(line)
                self.marks[row] = self.marks.get(row, 0) + 1

    def deaths_under(self, rows: Sequence[Row]) -> int:
        """The number of engines that ended under one of these rows."""
        return max((self.marks.get(row.digest, 0) for row in rows), default=0)

    @property
    def few(self) -> int:
        """The number of rows under which one engine ended that may be in flight together: when the
        next engine ends, about as many are left to be sent one by one.
        """
        return max(1, math.isqrt(len(self.marks)))

    def died_under(
        self, server: str | None, sent_at: float, now: float, *, alive: bool = False
    ) -> Death | None:
        """The end of the engine that had this request in flight, which was not answered.

        None: the engine had ended before it was sent. `alive`: it has served since its last known
        end.
        """
        death = self._deaths.get(server)
        if death is not None and server is not None:
            alive |= sent_at >= self._proved_at.get(server, -math.inf) > death.heard_at
        if death is None or alive or now - death.last_heard_at > _SAME_DEATH_S:
            death = self._deaths[server] = Death(server, now, now)
            return death
        self._deaths[server] = death._replace(last_heard_at=now)
        return death if sent_at < death.heard_at else None

    def proved(self, server: str, asked_at: float) -> None:
        """Record that a server under doubt has answered a request sent at that time."""
        self._proved_at[server] = asked_at

    def death_of(self, server: str | None, since: float) -> Death | None:
        """The last known end of this server, if it was noticed since then."""
        death = self._deaths.get(server)
        return death if death is not None and death.last_heard_at >= since else None

    def rest_s(self, now: float) -> float:
        """Seconds to wait until a request reaches no replica that is known to have ended, over no
        connection that breaks with it: a request that fails after that was in flight.
        """
        heard = [one.last_heard_at for one in self._deaths.values() if one.server is not None]
        over_at = max([self._broke_at, *heard]) + _LEAVES_S
        return max(0.0, over_at - now, self.last_break.at + _AT_ONCE_S - now)

    def broke(self, server: str | None, now: float) -> None:
        """Record that this replica did not answer a request: it may have ended."""
        if server is not None:
            self._broke_at = now

    def broke_off(self, sent_at: float, now: float, others: int) -> None:
        """Record a connection that broke under a request while so many others were in flight."""
        last = self.last_break
        if sent_at < last.at and last.left:
            last.left -= 1
            last.broke += 1
        elif now < last.at + _AT_ONCE_S and last.broke + last.left > 1:
            last.broke += 1  # it was sent to an engine that had ended
        else:
            self.last_break = Break(now, others)

    def ended(self, sent_at: float, *, replied: bool = True) -> None:
        """Record any other end of a request."""
        last = self.last_break
        if sent_at < last.at and last.left:
            last.left -= 1
            last.outlived |= replied and sent_at < last.at - _ON_ITS_WAY_S

    def all_back(self) -> None:
        """Record that the endpoint serves again: replicas that fail from now on were alive."""
        self._deaths.clear()

    def mark(self, rows: Sequence[Row], death: Death) -> int:
        """Record that the engine ended under these rows; returns the number of ends by now."""
        new = []
        for row in rows:
            before = self._marked_for.get(row.digest)
            if before is None or before[:2] != death[:2]:  # it may have had several in flight
                self._marked_for[row.digest] = death
                self.marks[row.digest] = self.marks.get(row.digest, 0) + 1
                new.append(row.digest)
        self._keep(new)
        return self.deaths_under(rows)

    def answered(self, rows: Sequence[Row]) -> None:
        """Record an answered request of these rows: a single row is no longer a suspect."""
        if len(rows) == 1:
            self.marks.pop(rows[0].digest, None)

    def _keep(self, rows: Iterable[bytes]) -> None:
        if self._file is None:
            return
        lines = "".join(f"{row.hex()}\n" for row in rows).encode("ascii")
        try:
            descriptor = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                os.write(descriptor, lines)
            finally:
                os.close(descriptor)
        except OSError as error:  # a full disk ends a run where results are written
            _log.warning("cannot note in %s under which rows an engine died: %s", self._file, error)


SHUT_OUT = 5  # rows refused or timed out, without any answer
WHOLESALE_FAILURES = 50  # failed rows without any answer: the cause affects all rows
FREE_RETRIES = 1000  # retries of a run that are not yet compared with its requests
RETRY_SHARE = 2 / 3  # of the requests: fewer than one in three is answered


@dataclass(frozen=True)
class FailureLimit:
    """How many rows may fail before the run stops. None: only a wholesale failure stops it."""

    rows: int | None = None
    share: float | None = None  # of the settled rows of this run, judged from 50 rows on

    def reason_to_stop(self, tally: Tally) -> TooManyFailures | None:
        """Why the run must stop now; None: it need not."""
        if self._exceeded(tally):
            return _too_many_failed(tally)
        if tally.retries > max(FREE_RETRIES, RETRY_SHARE * tally.requests):
            return _too_many_repeated(tally)
        return None

    def reason_at_end(self, tally: Tally) -> TooManyFailures | None:
        """Why a run whose rows are all settled has failed; None: it has not. It failed if every row
        that was sent was refused and no row of the job was ever answered: then the cause is a key,
        a URL or a model's name, however few rows there are.
        """
        if self.rows is not None or self.share is not None or not tally.rows_shut_out:
            return None
        answered = tally.rows_answered + tally.rows_resumed - tally.resumed_failed
        late = any(signature.startswith("RequestTimeout") for signature in tally.failures)
        if answered or late or tally.rows_shut_out < tally.rows_failed:
            return None
        return _too_many_failed(tally)

    def _exceeded(self, tally: Tally) -> bool:
        failed, answered = tally.rows_failed, tally.rows_answered
        if self.rows is not None:
            return failed > self.rows
        if self.share is not None:
            settled = failed + answered
            return settled >= WHOLESALE_FAILURES and failed > self.share * settled
        all_of_them = failed >= WHOLESALE_FAILURES or tally.rows_shut_out >= SHUT_OUT
        return all_of_them and answered == 0


def _too_many_failed(tally: Tally) -> TooManyFailures:
    signature, count = tally.failures.most_common(1)[0]
    remedy = "Remove the cause"
    if tally.rows_shut_out and not tally.rows_answered:
        remedy = (
            "Check the key (of an endpoint that is no swarm's: OPENAI_API_KEY), the model's name, "
            "the URL and --timeout"
        )
    return TooManyFailures(
        f"{quantity(tally.rows_failed, 'row')} failed and {tally.rows_answered} "
        f"{'was' if tally.rows_answered == 1 else 'were'} answered; "
        f"the commonest error, {quantity(count, 'time')}: {signature}",
        hint=f"{remedy} and submit the same job again, or `domyn-swarm job resume` it: answered "
        "rows are kept, the failed ones are sent again. --max-failures sets how many may fail.",
    )


def _too_many_repeated(tally: Tally) -> TooManyFailures:
    commonest = tally.repeated.most_common(1)
    cause = (
        f"; the commonest cause, {quantity(commonest[0][1], 'time')}: {commonest[0][0]}"
        if commonest
        else ""
    )
    return TooManyFailures(
        f"{tally.retries} of {tally.requests} requests had to be repeated{cause}",
        hint="The endpoint answers, but not one request in three. Remove the cause and submit the "
        "same job again: answered rows are kept.",
    )


DEFAULT_LIMIT = FailureLimit()
