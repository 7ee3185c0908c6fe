"""What a run has done so far: counted by the engine, whether or not anybody looks."""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

_Key = TypeVar("_Key", int, str)
_NUMBERS = re.compile(r"\d+")
_SIGNATURES = 200  # different ones that are counted apart; the rest is "other"


class LatencyHistogram:
    """Quantiles in constant memory: buckets that grow by 5 %, from 0.1 ms up."""

    _BASE_S = 1e-4
    _LOG_STEP = math.log(1.05)

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self._count = 0

    def add(self, seconds: float) -> None:
        """Count one request."""
        bucket = int(math.log(max(seconds, self._BASE_S) / self._BASE_S) / self._LOG_STEP)
        self._buckets[bucket] += 1
        self._count += 1

    @property
    def counts(self) -> dict[int, int]:
        """How many requests fell into each bucket."""
        return dict(self._buckets)

    def merge(self, counts: Mapping[int, int]) -> None:
        """Count what another histogram counted; `counts` are its buckets."""
        self._buckets.update(counts)
        self._count += sum(counts.values())

    def quantile(self, share: float) -> float | None:
        """The latency (seconds, within 5 %) that `share` of the requests stayed below."""
        if not self._count:
            return None
        left = share * self._count
        for bucket in sorted(self._buckets):
            left -= self._buckets[bucket]
            if left <= 0:
                break
        return self._BASE_S * math.exp((bucket + 1) * self._LOG_STEP)


class Counters(msgspec.Struct, frozen=True):
    """What one worker has counted since it began; in flight and paused are as of now."""

    rows_answered: int = 0
    rows_failed: int = 0
    requests: int = 0
    retries: int = 0
    turned_away: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    latency: dict[int, int] = {}
    failures: dict[str, int] = {}
    repeated: dict[str, int] = {}
    in_flight: int = 0
    paused: str | None = None


_SUMS = (
    "rows_answered",
    "rows_failed",
    "requests",
    "retries",
    "turned_away",
    "prompt_tokens",
    "completion_tokens",
    "in_flight",
)


@dataclass
class Tally:
    """Counters of one run."""

    rows_total: int | None = None
    rows_resumed: int = 0  # settled by earlier runs
    resumed_failed: int = 0  # of those: with an error
    rows_answered: int = 0  # by this run
    rows_failed: int = 0  # by this run
    in_flight: int = 0
    requests: int = 0
    retries: int = 0
    turned_away: int = 0  # back-pressure replies
    prompt_tokens: int = 0
    completion_tokens: int = 0
    latency: LatencyHistogram = field(default_factory=LatencyHistogram)
    failures: Counter[str] = field(default_factory=Counter)  # failed rows by signature
    repeated: Counter[str] = field(default_factory=Counter)  # retries by signature
    began: float = field(default_factory=time.monotonic)
    first_row_at: float | None = None
    paused: str | None = None  # why, while it is
    limit: int | None = None  # calls that may be in flight
    running: float | None = None  # at the whole endpoint, by its own gauges
    waiting: float | None = None

    def count_failure(self, kind: str, message: str) -> None:
        """Count a failed row by its signature: the error without the numbers that differ."""
        self.rows_failed += 1
        _count(self.failures, failure_signature(kind, message))

    def count_retry(self, kind: str, message: str) -> None:
        """Count a request that is sent again because of an error."""
        self.retries += 1
        _count(self.repeated, failure_signature(kind, message))

    def counters(self) -> Counters:
        """What was counted so far, to be told to a coordinator."""
        sums = {name: getattr(self, name) for name in _SUMS}
        return Counters(
            **sums,
            latency=self.latency.counts,
            failures=dict(self.failures),
            repeated=dict(self.repeated),
            paused=self.paused,
        )

    def add(self, now: Counters, before: Counters) -> None:
        """Count what a worker did between two of its reports."""
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(now, name) - getattr(before, name))
        self.latency.merge(_grown(now.latency, before.latency))
        self.failures.update(_grown(now.failures, before.failures))
        self.repeated.update(_grown(now.repeated, before.repeated))
        if self.first_row_at is None and (now.in_flight or now.rows_answered or now.rows_failed):
            self.first_row_at = time.monotonic()

    @property
    def rows_done(self) -> int:
        """Settled rows, those of earlier runs included."""
        return self.rows_resumed + self.rows_answered + self.rows_failed

    @property
    def all_failed(self) -> int:
        """Settled rows that carry an error, those of earlier runs included."""
        return self.resumed_failed + self.rows_failed

    def rows_per_s(self) -> float | None:
        """Rows this run settled per second since it took its first."""
        if self.first_row_at is None:
            return None
        elapsed = time.monotonic() - self.first_row_at
        settled = self.rows_answered + self.rows_failed
        return settled / elapsed if elapsed > 0 and settled else None

    def eta_s(self) -> float | None:
        """Seconds until the last row is settled, at the rate so far."""
        rate = self.rows_per_s()
        if not rate or self.rows_total is None:
            return None
        return max(0, self.rows_total - self.rows_done) / rate


def _grown(now: Mapping[_Key, int], before: Mapping[_Key, int]) -> dict[_Key, int]:
    return {key: count - before.get(key, 0) for key, count in now.items()}


def _count(counter: Counter[str], signature: str) -> None:
    known = signature in counter or len(counter) < _SIGNATURES
    counter[signature if known else "other"] += 1


def failure_signature(kind: str, message: str) -> str:
    """What errors of one cause have in common: their kind, and their words without numbers."""
    return f"{kind}: {_NUMBERS.sub('#', message[:160])}"
