"""Statistics of a run's requests beside sums: bounded in memory, and cheap per request."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import msgspec
import numpy as np

from domyn_swarm.model import Histogram

_SLOWEST_KEPT = 20
_REPLICAS_KEPT = 4096  # counted separately, by their URLs; the rest is "other"


class LatencyHistogram:
    """Quantiles in constant memory: buckets that grow by 5 %, from 0.1 ms up."""

    _UPPER_S = np.array([1e-4 * 1.05 ** (bucket + 1) for bucket in range(500)])  # the last: 45 days

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()

    def add(self, seconds: Sequence[float]) -> None:
        """Count requests with this latency."""
        self._buckets.update(np.searchsorted(self._UPPER_S, seconds, "right").tolist())

    @property
    def counts(self) -> dict[int, int]:
        """The number of requests in each bucket."""
        return dict(self._buckets)

    def merge(self, counts: Mapping[int, int]) -> None:
        """Add the counts of another histogram; `counts` are its buckets."""
        self._buckets.update(counts)

    @classmethod
    def upper_s(cls, bucket: int) -> float:
        """The upper bound of a bucket, in seconds."""
        return float(cls._UPPER_S[min(bucket, len(cls._UPPER_S) - 1)])

    def quantile(self, share: float) -> float | None:
        """The latency (seconds, within 5 %) that `share` of the requests stayed below."""
        if not self._buckets:
            return None
        left = share * self._buckets.total()
        for bucket in sorted(self._buckets):
            left -= self._buckets[bucket]
            if left <= 0:
                break
        return self.upper_s(bucket)

    def within(self, bounds: Sequence[float], total_s: float) -> Histogram:
        """The same with other bounds (seconds), each off by 5 % at most."""
        found = {self.upper_s(bucket): count for bucket, count in self._buckets.items()}
        return _by_bounds(found, bounds, total_s)


class SizeHistogram:
    """Numbers of tokens by powers of two: bucket `n` holds what is at most 2 ** n."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()

    def add(self, tokens: Iterable[int]) -> None:
        """Count replies with this number of tokens."""
        for size, count in Counter(tokens).items():
            self.counts[(size - 1).bit_length() if size > 1 else 0] += count

    def merge(self, counts: Mapping[int, int]) -> None:
        """Add the counts of another histogram."""
        self.counts.update(counts)

    def within(self, bounds: Sequence[float], total: int) -> Histogram:
        """The same with other bounds, exact if those are powers of two."""
        return _by_bounds({2.0**bucket: n for bucket, n in self.counts.items()}, bounds, total)


def _by_bounds(found: Mapping[float, int], bounds: Sequence[float], total: float) -> Histogram:
    counts = [0] * (len(bounds) + 1)
    for upper, count in found.items():
        at = next((at for at, bound in enumerate(bounds) if upper <= bound * 1.0001), len(bounds))
        counts[at] += count
    return Histogram(bounds=tuple(bounds), counts=tuple(counts), total=total)


class ReplicaShare(msgspec.Struct):
    """The part of one replica in a run: replies, their tokens, and the sum of their durations."""

    answers: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    latency_s: float = 0.0

    def add(self, now: ReplicaShare, before: ReplicaShare) -> None:
        """Add the difference between two snapshots."""
        self.answers += now.answers - before.answers
        self.prompt_tokens += now.prompt_tokens - before.prompt_tokens
        self.completion_tokens += now.completion_tokens - before.completion_tokens
        self.latency_s += now.latency_s - before.latency_s


_NOTHING = ReplicaShare()


class ReplicaShares(dict[str, ReplicaShare]):
    """The parts of all replicas, by their URLs."""

    def __missing__(self, url: str) -> ReplicaShare:
        if len(self) >= _REPLICAS_KEPT and url != "other":
            return self["other"]
        share = self[url] = ReplicaShare()
        return share

    def copied(self) -> dict[str, ReplicaShare]:
        """A copy of the present state."""
        return {url: msgspec.structs.replace(share) for url, share in self.items()}

    def add(
        self, now: Mapping[str, ReplicaShare], before: Mapping[str, ReplicaShare] | None = None
    ) -> None:
        """Add the difference between two reports of a worker."""
        for url, share in now.items():
            self[url].add(share, (before or {}).get(url, _NOTHING))


class Dispatched(msgspec.Struct):
    """The effect of dispatching a run's requests by prefix."""

    rows_grouped: int = 0  # rows that were sent together with others that share a prefix,
    groups: int = 0  # in this number of groups
    requests_known: int = 0  # sent to a replica that had received their prefix
    requests_new: int = 0  # whose prefix no replica had received
    requests_moved: int = 0  # that others had been sent: those had their share, or were gone
    cached_tokens: int = 0  # of prompts: tokens that were in engines' prefix caches,
    prompt_tokens_counted: int = 0  # of so many; both of all that the engines were asked meanwhile
    switched_off: int = 0  # times that measurements showed no gain

    def add(self, now: Dispatched, before: Dispatched) -> None:
        """Add the difference between two snapshots."""
        for name in self.__struct_fields__:
            more = getattr(now, name) - getattr(before, name)
            setattr(self, name, getattr(self, name) + more)


class SlowRow(msgspec.Struct, frozen=True, order=True):
    """A slow row, including retries and waiting."""

    latency_s: float
    row: int  # its position in the input
    attempts: int
    completion_tokens: int
    failed: bool


class SlowestRows:
    """The slowest rows of a run. `floor_s`: faster rows are not recorded."""

    def __init__(self, rows: Iterable[SlowRow] = ()) -> None:
        self.floor_s = 0.0
        self._heap: list[SlowRow] = []
        self.merge(rows)

    def add(self, row: SlowRow) -> None:
        """Add a row if it is one of them."""
        if len(self._heap) < _SLOWEST_KEPT:
            heapq.heappush(self._heap, row)
        else:
            heapq.heappushpop(self._heap, row)
        if len(self._heap) == _SLOWEST_KEPT:
            self.floor_s = self._heap[0].latency_s

    def merge(self, rows: Iterable[SlowRow]) -> None:
        """Add those of another; a row that is recorded already counts once."""
        known = set(self._heap)
        for row in rows:
            if row not in known and (row.latency_s > self.floor_s or not self.floor_s):
                self.add(row)

    @property
    def rows(self) -> list[SlowRow]:
        """The slowest first."""
        return sorted(self._heap, reverse=True)
