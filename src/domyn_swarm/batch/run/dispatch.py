"""Chooses the replica for a request of this process. Pure: no clock, no requests of its own.

Requests with a common prefix go to the same replica, whose engine has computed that prefix already:

- A request is identified by its prefixes at fixed lengths, each by a checksum. The longest prefix
  that was sent before gives the replicas that hold it.
- A request with a new prefix is placed by rendezvous hashing (Thaler and Ravishankar, 1998) of its
  first characters, so that other processes and jobs of the swarm choose the same replica for it: of
  the first two replicas the less loaded (Mitzenmacher, "The power of two choices in randomized load
  balancing", 2001).
- No replica gets much more than its share (Mirrokni, Thorup and Zadimoghaddam, "Consistent hashing
  with bounded loads", 2018): a request above it goes to the least loaded replica, which holds the
  prefix from then on, so that a prefix that many requests have spreads over as many replicas as it
  needs. Shares are proportional to the replicas' capacities, if known; a replica that would become
  slower above its capacity gets next to nothing above it.

If requests have nothing in common, only one in `_SAMPLE` is examined, in case that changes, and the
others go to the replica with the fewest. The same holds for all while measurements show that
affinity does not pay (`worth`). Later requests of a row, the turns of a conversation, follow its
first request.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from typing import NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from domyn_swarm.batch.outcomes.row_outcomes import current_trace
from domyn_swarm.batch.run.worth import Worth
from domyn_swarm.model import Dispatching
from domyn_swarm.net.http import HttpClient, HttpReply

_STEP = 512  # bytes between two prefixes
_STEPS = 16  # at first; each further step is half as long again
_LONGEST = 1 << 20
_LIKE = 0.5  # of the longest prefix: this part must have been sent before to be followed
_PLACED_BY = 4  # a new prefix is placed by this one, or by the first longer one that is new
_PREFIXES_KEPT = 1 << 16
_TRIED = 2  # candidate replicas for a new prefix: the less loaded is chosen
_HOLDERS = 8  # replicas remembered per prefix; with more of them any replica will do
_ABOVE_SHARE = 1.25  # of the mean of requests in flight
_LEAST_ABOVE = 2.0
_ABOVE_FIRM = 1.05  # of the capacity of a replica that becomes slower above it
_MOST_UNEQUAL = 64.0  # capacities are limited to the mean divided, or multiplied, by this
_WINDOW = 512  # requests between two decisions whether prefixes are shared
_WORTH_IT = 0.05  # of the examined requests
_SAMPLE = 16  # one in this number is examined while it is not worth it
_BACK_PRESSURE = frozenset({429, 503})
_BEGINS = (b'"messages":', b'"prompt":', b'"input":')

_Prefix = tuple[int, int]


def _lengths() -> tuple[int, ...]:
    lengths = [_STEP * (step + 1) for step in range(_STEPS)]
    while lengths[-1] < _LONGEST:
        lengths.append(lengths[-1] * 3 // 2)
    return tuple(lengths)


_LENGTHS = _lengths()


def prefixes_of(body: bytes) -> list[_Prefix]:
    """The prefixes of a request's content, the shortest first; none if it is short."""
    begin = next((at for name in _BEGINS if (at := body.find(name, 0, 4096)) >= 0), 0)
    asked = memoryview(body)[begin:]
    found, checksum, before = list[_Prefix](), 0, 0
    for length in _LENGTHS:
        if length > len(asked):
            break
        checksum = crc32(asked[before:length], checksum)
        found.append((length, checksum))
        before = length
    return found


class Capacity(NamedTuple):
    """How many requests of this process a replica should have in flight."""

    limit: float
    is_firm: bool  # more requests make it slower, rather than only its queue longer


class AtReplica(NamedTuple):
    """The requests of this process at a replica: now, and since the process began."""

    in_flight: int
    answered: int
    turned_away: int  # with 429 or 503
    tokens: int = 0  # generated, in its replies

    def plus(self, other: AtReplica) -> AtReplica:
        """The sum with the requests of another process."""
        return AtReplica(*(one + more for one, more in zip(self, other, strict=True)))


class _Loads:
    """Replicas by the used part of their capacity, with the least loaded at hand.

    A level is a number of requests at a replica of the mean capacity.
    """

    def __init__(self) -> None:
        self.of: dict[str, int] = {}
        self.total = 0
        self._capacities: Mapping[str, Capacity] = {}
        self._mean = 1.0  # capacity
        self._sum = 0.0  # of the capacities of the present replicas
        self._scales: dict[str, float] = {}
        self._levels: dict[int, dict[str, None]] = {}
        self._least = 0

    def fit(self, capacities: Mapping[str, Capacity]) -> None:
        """Set these capacities; a replica without one has the mean."""
        self._capacities = capacities
        limits = [one.limit for one in capacities.values()]
        self._mean = max(1e-9, sum(limits) / len(limits)) if limits else 1.0
        of, self.of, self.total, self._sum = self.of, {}, 0, 0.0
        self._levels, self._scales, self._least = {}, {}, 0
        for url, load in of.items():
            self.add(url, load)

    def add(self, url: str, load: int) -> None:
        capacity = self._capacities.get(url)
        scale = 1.0 if capacity is None else self._mean / max(1e-9, capacity.limit)
        self._scales[url] = min(_MOST_UNEQUAL, max(1 / _MOST_UNEQUAL, scale))
        self._sum += self._mean / self._scales[url]
        self.of[url] = load
        self.total += load
        level = self.level(url)
        self._levels.setdefault(level, {})[url] = None
        self._least = min(self._least, level) if len(self.of) > 1 else level

    def remove(self, url: str) -> None:
        self._leave(url)
        self.total -= self.of.pop(url)
        self._sum -= self._mean / self._scales.pop(url)

    def level(self, url: str) -> int:
        return int(self.of[url] * self._scales[url] + 1e-6)  # a sum of floats is not exact

    def _leave(self, url: str) -> None:
        at = self.level(url)
        level = self._levels[at]
        del level[url]
        if not level:
            del self._levels[at]

    def change(self, url: str, by: int) -> None:
        self._leave(url)
        self.of[url] += by
        self.total += by
        level = self.level(url)
        self._levels.setdefault(level, {})[url] = None
        self._least = min(self._least, level)

    def least(self) -> str:
        """The replica with the least used, and among equals the longest so."""
        while self._least not in self._levels:
            self._least += 1
        return next(iter(self._levels[self._least]))

    def has_room(self, url: str) -> bool:
        """Whether a replica is below the limit of its share."""
        share = (self.total + 1) * self._mean / (self._scales[url] * self._sum)
        bound = max(_ABOVE_SHARE * share, share + _LEAST_ABOVE)
        capacity = self._capacities.get(url)
        if capacity is not None and capacity.is_firm:
            bound = min(bound, _ABOVE_FIRM * capacity.limit)
        return self.of[url] < bound


class Sent:
    """A request in flight at a replica. Unless it is answered, its row may go elsewhere next."""

    def __init__(self, worth: Worth, url: str | None, known: bool | None) -> None:
        self._worth, self._url, self._known = worth, url, known
        self._at_s = worth.clock()
        self._trace = current_trace.get()
        if self._trace is not None:
            self._trace.replica = None

    def answered(self, reply: HttpReply) -> HttpReply:
        """Record the reply, and return it."""
        if reply.status < 300:
            if self._trace is not None:
                self._trace.replica = self._url
            if self._known is not None:
                self._worth.took(self._worth.clock() - self._at_s, known=self._known)
        return reply


class Dispatch:
    """The replicas that may be sent to, and this process's requests in flight at each."""

    def __init__(self, policy: Dispatching = "auto", worth: Worth | None = None) -> None:
        """`worth` decides under `auto` whether affinity pays, and holds the counts of the run."""
        self._policy = policy
        self.worth = Worth() if worth is None else worth
        self.known: bool | None = None  # whether the last prefix was known; None: not examined
        self._taken: str | None = None  # the replica that was taken last
        self._loads = _Loads()
        self._gone: Counter[str] = Counter()  # in flight at withdrawn replicas
        self._answered: Counter[str] = Counter()
        self._turned_away: Counter[str] = Counter()
        self._seeds: NDArray[np.uint32] = np.empty(0, np.uint32)
        self._seeded: tuple[str, ...] = ()
        self._holders: OrderedDict[_Prefix, list[str]] = OrderedDict()
        self._paused = False  # whether most requests are not examined
        self._asked = self._looked = self._alike = 0

    @property
    def urls(self) -> frozenset[str]:
        """The replicas that may be sent to."""
        return frozenset(self._loads.of)

    @property
    def in_flight(self) -> int:
        """Requests that were taken and not released, including those at withdrawn replicas."""
        return self._loads.total + self._gone.total()

    def offer(self, url: str) -> None:
        """Send requests to a replica from now on."""
        if url not in self._loads.of:
            self._loads.add(url, self._gone.pop(url, 0))
            self._seeded = ()

    def withdraw(self, url: str) -> None:
        """Send it no further requests; those in flight continue."""
        load = self._loads.of.get(url)
        if load is not None:
            self._loads.remove(url)
            self._seeded = ()
            if load:
                self._gone[url] = load

    def keep_only(self, urls: Iterable[str]) -> None:
        """Withdraw all others."""
        for url in self.urls.difference(urls):
            self.withdraw(url)

    def take(self, body: bytes) -> str | None:
        """The replica for a request, which counts as in flight there until `release`; None: no
        replica is available. The replica that answered the row's last request gets its next one.
        """
        self.known = self._taken = None
        if not self._loads.of:
            return None
        trace = current_trace.get()
        stay = None if trace is None else trace.replica
        if stay in self._loads.of and self._policy != "least_load":
            url = stay
            self.worth.counts.requests_known += 1
        else:
            url = self._by_prefix(body) if self._is_looked_at() else self._loads.least()
        self._loads.change(url, 1)
        self._taken = url
        return url

    def sent(self) -> Sent:
        """The last request taken, now in flight."""
        return Sent(self.worth, self._taken, self.known)

    def set_capacities(self, capacities: Mapping[str, Capacity]) -> None:
        """Distribute requests in proportion to these capacities; without any, all replicas are
        equal.
        """
        self._loads.fit(capacities)

    def at_replicas(self) -> dict[str, AtReplica]:
        """Requests now and in total, at each replica that may be sent to."""
        answered, turned_away = self._answered, self._turned_away
        return {
            url: AtReplica(load, answered[url], turned_away[url])
            for url, load in self._loads.of.items()
        }

    def replied(self, url: str, status: int) -> None:
        """Count a reply of this HTTP status from the replica."""
        if status < 300:
            self._answered[url] += 1
        elif status in _BACK_PRESSURE:
            self._turned_away[url] += 1

    def release(self, url: str) -> None:
        """Count a request as ended there."""
        if url in self._loads.of:
            self._loads.change(url, -1)
        else:
            self._gone[url] -= 1
            if not self._gone[url]:
                del self._gone[url]

    async def keep_measuring(self, client: HttpClient) -> None:
        """Measure the engines' prefix caches until cancelled."""
        await self.worth.keep_asking(client, lambda: self.urls if self.in_flight else ())

    # -- by prefix -----------------------------------------------------------------------------

    def _is_looked_at(self) -> bool:
        if self._policy == "least_load" or len(self._loads.of) == 1:
            return False
        if self._policy == "affinity":
            return True
        if not self.worth.pays():
            return False
        self._asked += 1
        if self._asked >= _WINDOW * (_SAMPLE if self._paused else 1):
            self._paused = self._alike < _WORTH_IT * self._looked
            self._asked = self._looked = self._alike = 0
        return not self._paused or self._asked % _SAMPLE == 0

    def _by_prefix(self, body: bytes) -> str:
        self._looked += 1
        prefixes = prefixes_of(body)
        if not prefixes:
            return self._loads.least()
        holders, counts = self._known(prefixes), self.worth.counts
        if holders is None:
            url, self.known = self._placed(self._first_new(prefixes)), False
            counts.requests_new += 1
        else:
            self._alike += 1
            url = self._among(holders)
            self.known = url in holders
            counts.requests_known += self.known
            counts.requests_moved += not self.known
        self._remember(prefixes, url)
        return url

    def _known(self, prefixes: list[_Prefix]) -> list[str] | None:
        """The holders of the longest prefix that was sent before, if it is most of the request."""
        enough = _LIKE * prefixes[-1][0]
        for prefix in reversed(prefixes):
            if prefix[0] < enough:
                return None
            if (holders := self._holders.get(prefix)) is not None:
                return holders
        return None

    def _among(self, holders: list[str]) -> str:
        """The least loaded of these replicas, or of all if these have their share."""
        loads = self._loads.of
        if len(holders) < _HOLDERS:
            there = [url for url in holders if url in loads]
            if there:
                url = min(there, key=self._loads.level)
                if self._loads.has_room(url):
                    return url
        return self._loads.least()

    def _first_new(self, prefixes: list[_Prefix]) -> _Prefix:
        """The first prefix that distinguishes this request from known ones."""
        longer = prefixes[min(_PLACED_BY, len(prefixes)) - 1 :]
        return next((one for one in longer if one not in self._holders), longer[-1])

    def _placed(self, prefix: _Prefix) -> str:
        loads = self._loads.of
        if not self._seeded:
            self._seeded = tuple(loads)
            self._seeds = np.array([crc32(url.encode()) for url in loads], np.uint32)
        best: list[int] = np.argsort(_mixed(self._seeds, prefix[1]))[:_TRIED].tolist()
        url = min((self._seeded[at] for at in best), key=self._loads.level)
        return url if self._loads.has_room(url) else self._loads.least()

    def _remember(self, prefixes: list[_Prefix], url: str) -> None:
        known = self._holders
        for prefix in prefixes:
            holders = known.get(prefix)
            if holders is None:
                known[prefix] = [url]
                continue
            known.move_to_end(prefix)
            if url not in holders:
                holders.append(url)
                del holders[:-_HOLDERS]
        while len(known) > _PREFIXES_KEPT:
            known.popitem(last=False)


def _mixed(seeds: NDArray[np.uint32], checksum: int) -> NDArray[np.uint32]:
    """A pseudo-random number per seed (the finaliser of MurmurHash3)."""
    mixed = seeds ^ np.uint32(checksum)
    mixed ^= mixed >> np.uint32(16)
    mixed *= np.uint32(0x85EBCA6B)
    mixed ^= mixed >> np.uint32(13)
    mixed *= np.uint32(0xC2B2AE35)
    return mixed ^ (mixed >> np.uint32(16))
