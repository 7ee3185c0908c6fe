"""What a run has done so far: counted by the engine, whether or not anybody looks."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from domyn_swarm.batch.observations import (
    LatencyHistogram,
    ReplicaShare,
    ReplicaShares,
    SizeHistogram,
    SlowestRows,
    SlowRow,
)

_Key = TypeVar("_Key", int, str)
_NUMBERS = re.compile(r"\d+")
_SIGNATURES = 200  # different ones that are counted apart; the rest is "other"


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
    latency_s: float = 0.0  # of all requests together
    prompt_sizes: dict[int, int] = {}
    completion_sizes: dict[int, int] = {}
    replicas: dict[str, ReplicaShare] = {}
    slowest: list[SlowRow] = []
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
    "latency_s",
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
    latency_s: float = 0.0
    prompt_sizes: SizeHistogram = field(default_factory=SizeHistogram)
    completion_sizes: SizeHistogram = field(default_factory=SizeHistogram)
    replicas: ReplicaShares = field(default_factory=ReplicaShares)
    slowest: SlowestRows = field(default_factory=SlowestRows)
    failures: Counter[str] = field(default_factory=Counter)  # failed rows by signature
    repeated: Counter[str] = field(default_factory=Counter)  # retries by signature
    began: float = field(default_factory=time.monotonic)
    first_row_at: float | None = None
    paused: str | None = None  # why, while it is
    limit: int | None = None  # calls that may be in flight
    running: float | None = None  # at the whole endpoint, by its own gauges
    waiting: float | None = None

    def count_reply(
        self, latency_s: float, prompt_tokens: int, completion_tokens: int, replica: str | None
    ) -> None:
        """Count an answer; `replica` is who gave it, where that is known."""
        self.latency.add(latency_s)
        self.latency_s += latency_s
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens
        self.prompt_sizes.add(prompt_tokens)
        self.completion_sizes.add(completion_tokens)
        if replica is not None:
            share = self.replicas[replica]
            share.answers += 1
            share.prompt_tokens += prompt_tokens
            share.completion_tokens += completion_tokens
            share.latency_s += latency_s

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
            prompt_sizes=dict(self.prompt_sizes.counts),
            completion_sizes=dict(self.completion_sizes.counts),
            replicas=self.replicas.copied(),
            slowest=self.slowest.rows,
            failures=dict(self.failures),
            repeated=dict(self.repeated),
            paused=self.paused,
        )

    def add(self, now: Counters, before: Counters) -> None:
        """Count what a worker did between two of its reports."""
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(now, name) - getattr(before, name))
        self.latency.merge(_grown(now.latency, before.latency))
        self.prompt_sizes.merge(_grown(now.prompt_sizes, before.prompt_sizes))
        self.completion_sizes.merge(_grown(now.completion_sizes, before.completion_sizes))
        self.replicas.add(now.replicas, before.replicas)
        if now.slowest != before.slowest:
            self.slowest.merge(now.slowest)
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
