"""The counters of a run and the statistics of its replies."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from domyn_swarm.batch.outcomes.forecaster import Forecaster
from domyn_swarm.batch.outcomes.histograms import (
    Dispatched,
    LatencyHistogram,
    ReplicaShare,
    ReplicaShares,
    SizeHistogram,
    SlowestRows,
    SlowRow,
)
from domyn_swarm.batch.outcomes.row_outcomes import RowError, RowValue
from domyn_swarm.batch.outcomes.strata import Strata, StratumSums
from domyn_swarm.batch.outcomes.verdicts import outcome_of, verdict_of
from domyn_swarm.model import FailureGroup, ReplyVerdict, TimeLeft

_TOGETHER = 1024


@dataclass
class ReplySums:
    """Statistics of replies, bounded in memory."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    latency_s: float = 0.0
    latency: LatencyHistogram = field(default_factory=LatencyHistogram)
    prompt_sizes: SizeHistogram = field(default_factory=SizeHistogram)
    completion_sizes: SizeHistogram = field(default_factory=SizeHistogram)
    replicas: ReplicaShares = field(default_factory=ReplicaShares)


class Replies:
    """Receives each reply, and adds up many at once: one at a time would cost a row 3 % more."""

    def __init__(self) -> None:
        self._sums = ReplySums()
        self._told: list[tuple[float, int, int, str | None]] = []

    def count(
        self, latency_s: float, prompt_tokens: int, completion_tokens: int, replica: str | None
    ) -> None:
        """Count a reply; `replica` sent it, if that is known."""
        self._told.append((latency_s, prompt_tokens, completion_tokens, replica))
        if len(self._told) >= _TOGETHER:
            self._add_up()

    @property
    def sums(self) -> ReplySums:
        """The statistics of all replies so far."""
        if self._told:
            self._add_up()
        return self._sums

    def _add_up(self) -> None:
        replies, self._told = self._told, []
        sums = self._sums
        latencies, prompts, completions, _ = zip(*replies, strict=True)
        sums.latency_s += sum(latencies)
        sums.prompt_tokens += sum(prompts)
        sums.completion_tokens += sum(completions)
        sums.latency.add(latencies)
        sums.prompt_sizes.add(prompts)
        sums.completion_sizes.add(completions)
        for latency_s, prompt_tokens, completion_tokens, replica in replies:
            if replica is not None:
                share = sums.replicas[replica]
                share.answers += 1
                share.prompt_tokens += prompt_tokens
                share.completion_tokens += completion_tokens
                share.latency_s += latency_s


_Key = TypeVar("_Key", int, str)
_NUMBERS = re.compile(r"(\bHTTP \d{3}\b|\bwithin [\d.]+ s\b)|\d+")  # the first two are the cause
_SIGNATURES = 200  # different signatures that are counted separately; the rest is "other"
_EXAMPLES = 20  # signatures that have an example, in order of occurrence
_EXAMPLE_CHARACTERS = 500


class FailureExample(msgspec.Struct, frozen=True):
    """One of the rows that failed with the same signature."""

    row: int  # its position in the input
    status: int | None  # of HTTP, when there was one
    message: str


class Counters(msgspec.Struct, frozen=True):
    """The counters of one worker since it began; in flight and paused are present values."""

    rows_answered: int = 0
    rows_failed: int = 0
    requests: int = 0
    retries: int = 0
    turned_away: int = 0
    timed_out: int = 0
    rows_shut_out: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    latency: dict[int, int] = {}
    latency_s: float = 0.0  # summed over all requests
    prompt_sizes: dict[int, int] = {}
    completion_sizes: dict[int, int] = {}
    replicas: dict[str, ReplicaShare] = {}
    dispatched: Dispatched = msgspec.field(default_factory=Dispatched)
    slowest: list[SlowRow] = []
    failures: dict[str, int] = {}
    examples: dict[str, FailureExample] = {}
    outcomes: dict[int, int] = {}
    repeated: dict[str, int] = {}
    strata: dict[int, StratumSums] = {}
    reached: int = 0  # the position of the last row that was started
    in_flight: int = 0
    paused: str | None = None

    def ended(self) -> Counters:
        """The same for a worker that has ended: nothing of it is in flight."""
        strata = {
            name: msgspec.structs.replace(one, begun=one.rows) for name, one in self.strata.items()
        }
        return msgspec.structs.replace(self, in_flight=0, paused=None, strata=strata)


_SUMS = (
    *("rows_answered", "rows_failed", "rows_shut_out"),
    *("requests", "retries", "turned_away", "timed_out", "in_flight"),
)
_REPLY_SUMS = ("prompt_tokens", "completion_tokens", "latency_s")


@dataclass
class Tally:
    """Counters of one run."""

    rows_total: int | None = None
    rows_resumed: int = 0  # settled before this run
    resumed_from: Counter[str] = field(default_factory=Counter)  # of those: other jobs', by key
    rows_waiting: int = 0  # for the result of another row with equal values
    resumed_failed: int = 0  # of those: with an error
    resumed_verdicts: Counter[ReplyVerdict] = field(default_factory=Counter)  # of those
    rows_answered: int = 0  # by this run
    rows_failed: int = 0  # by this run
    in_flight: int = 0
    requests: int = 0
    retries: int = 0
    turned_away: int = 0  # back-pressure replies
    timed_out: int = 0  # requests without a reply within their limit
    rows_shut_out: int = 0  # of those that failed: refused, or timed out
    replies: Replies = field(default_factory=Replies)
    dispatched: Dispatched = field(default_factory=Dispatched)
    slowest: SlowestRows = field(default_factory=SlowestRows)
    failures: Counter[str] = field(default_factory=Counter)  # failed rows by signature
    examples: dict[str, FailureExample] = field(default_factory=dict)  # of those
    outcomes: Counter[int] = field(default_factory=Counter)  # of rows of this run: see `verdicts`
    repeated: Counter[str] = field(default_factory=Counter)  # retries by signature
    strata: Strata = field(default_factory=Strata)  # rows of this run by their prompts' lengths
    reached: int = 0  # the position of the last row that was started
    forecaster: Forecaster = field(default_factory=Forecaster)
    began: float = field(default_factory=time.monotonic)
    first_row_at: float | None = None
    paused: str | None = None  # the reason, while the run is paused
    timeout_s: float | None = None  # the limit of a request, if the run has one for all
    limit: int | None = None  # calls that may be in flight
    replica_limits: Mapping[str, int] = field(default_factory=dict)  # of those, at each replica
    running: float | None = None  # at the whole endpoint, by its own gauges
    waiting: float | None = None
    _published: tuple[int, Mapping[ReplyVerdict, int]] | None = None

    def published(self, rows_failed: int, verdicts: Mapping[ReplyVerdict, int]) -> None:
        """Replace counters by those of the output: an earlier answer may be better than the one of
        a row that was sent again.
        """
        self._published = rows_failed, verdicts

    def count_failure(self, row: int, error: RowError, *, shut_out: bool = False) -> None:
        """Count a failed row by its signature: the error without the numbers that differ.

        `shut_out`: the error is one that every row gets if the endpoint has a problem.
        """
        self.rows_failed += 1
        self.rows_shut_out += shut_out
        signature = failure_signature(error.type, error.message)
        _count(self.failures, signature)
        if len(self.examples) < _EXAMPLES and signature not in self.examples:
            message = error.message[:_EXAMPLE_CHARACTERS]
            self.examples[signature] = FailureExample(row, error.status, message)

    def count_shared(self, row: int, kept: RowValue, counts: RowValue) -> RowError | None:
        """Count a row that waited, as it is kept and as it counts; with its error, if any."""
        self.rows_waiting -= 1
        self.outcomes[outcome_of(kept)] += 1
        if not counts.error:
            self.rows_answered += 1
            return None
        error = msgspec.json.decode(counts.error, type=RowError)
        self.count_failure(row, error)
        return error

    def count_retry(self, kind: str, message: str) -> None:
        """Count a request that is sent again because of an error."""
        self.retries += 1
        _count(self.repeated, failure_signature(kind, message))

    def counters(self, *, with_replicas: bool = True) -> Counters:
        """A copy of the counters; those per replica may be left out."""
        replies = self.replies.sums
        return Counters(
            **{name: getattr(self, name) for name in _SUMS},
            **{name: getattr(replies, name) for name in _REPLY_SUMS},
            latency=replies.latency.counts,
            prompt_sizes=dict(replies.prompt_sizes.counts),
            completion_sizes=dict(replies.completion_sizes.counts),
            replicas=replies.replicas.copied() if with_replicas else {},
            dispatched=msgspec.structs.replace(self.dispatched),
            slowest=self.slowest.rows,
            failures=dict(self.failures),
            examples=dict(self.examples),
            outcomes=dict(self.outcomes),
            repeated=dict(self.repeated),
            strata=self.strata.copied(),
            reached=self.reached,
            paused=self.paused,
        )

    def add(self, now: Counters, before: Counters) -> None:
        """Add the difference between two reports of a worker."""
        replies = self.replies.sums
        for owner, names in ((self, _SUMS), (replies, _REPLY_SUMS)):
            for name in names:
                more = getattr(now, name) - getattr(before, name)
                setattr(owner, name, getattr(owner, name) + more)
        replies.latency.merge(_grown(now.latency, before.latency))
        replies.prompt_sizes.merge(_grown(now.prompt_sizes, before.prompt_sizes))
        replies.completion_sizes.merge(_grown(now.completion_sizes, before.completion_sizes))
        self.dispatched.add(now.dispatched, before.dispatched)
        if now.replicas is not before.replicas:
            replies.replicas.add(now.replicas, before.replicas)
        if now.slowest != before.slowest:
            self.slowest.merge(now.slowest)
        self.failures.update(_grown(now.failures, before.failures))
        self.examples = {**now.examples, **self.examples}
        self.outcomes.update(_grown(now.outcomes, before.outcomes))
        self.repeated.update(_grown(now.repeated, before.repeated))
        self.strata.add(now.strata, before.strata)
        self.reached = max(self.reached, now.reached)
        if self.first_row_at is None and (now.in_flight or now.rows_answered or now.rows_failed):
            self.first_row_at = time.monotonic()

    @property
    def remark(self) -> str | None:
        """A remark for the user about the running job; None: there is none."""
        if not self.timed_out:
            return None
        limit = "" if self.timeout_s is None else f" of {self.timeout_s:g} s"
        about = 1 << (self.timed_out.bit_length() - 1)  # reported again when it has doubled
        return (
            f"{about} or more requests got no reply within the limit{limit} (--timeout sets it, "
            "--timeout-retries how often such a row is asked again)"
        )

    @property
    def commonest_failure(self) -> FailureGroup | None:
        """The most frequent failure of this run, with an example."""
        if not self.failures:
            return None
        signature, rows = self.failures.most_common(1)[0]
        return counted_group(signature, rows, self.examples.get(signature))

    @property
    def rows_done(self) -> int:
        """Settled rows, including those of earlier runs. Once the output is published: all rows,
        since a killed worker did not report its last ones.
        """
        if self._published is not None and self.rows_total is not None:
            return self.rows_total
        return self.rows_resumed + self.rows_answered + self.rows_failed

    @property
    def all_failed(self) -> int:
        """Settled rows with an error, including those of earlier runs."""
        if self._published is not None:
            return self._published[0]
        return self.resumed_failed + self.rows_failed

    @property
    def all_verdicts(self) -> dict[ReplyVerdict, int]:
        """Settled rows by verdict, including those of earlier runs."""
        if self._published is not None:
            return dict(self._published[1])
        found = Counter(self.resumed_verdicts)
        for outcome, rows in self.outcomes.items():
            found[verdict_of(outcome)] += rows
        return {verdict: rows for verdict, rows in found.items() if rows}

    def rows_per_s(self) -> float | None:
        """Rows that this run settled per second since its first row."""
        if self.first_row_at is None:
            return None
        elapsed = time.monotonic() - self.first_row_at
        settled = self.rows_answered + self.rows_failed
        return settled / elapsed if elapsed > 0 and settled else None

    def look(self) -> None:
        """Record the progress for `time_left`: about once a second."""
        if self.first_row_at is not None:
            self.forecaster.look(time.monotonic(), self.in_flight, self.strata)

    def time_left(self) -> TimeLeft | None:
        """Until the last row is settled; None: not known yet."""
        if self.rows_total is None or self.first_row_at is None:
            return None
        # A row that waits for another row's answer costs nothing.
        rows = max(0, self.rows_total - self.rows_done - self.rows_waiting)
        return self.forecaster.time_left(rows, self.reached)


def _grown(now: Mapping[_Key, int], before: Mapping[_Key, int]) -> dict[_Key, int]:
    return {key: count - before.get(key, 0) for key, count in now.items()}


def _count(counter: Counter[str], signature: str) -> None:
    known = signature in counter or len(counter) < _SIGNATURES
    counter[signature if known else "other"] += 1


def counted_group(signature: str, rows: int, example: FailureExample | None) -> FailureGroup:
    """Failed rows of one signature, with an example if there is one."""
    one = example or FailureExample(-1, None, signature)
    return FailureGroup(
        signature=signature,
        rows=rows,
        status=one.status,
        example_row=one.row,
        example_message=one.message,
    )


def failure_signature(kind: str, message: str) -> str:
    """The common part of errors with one cause: their kind, and their message without the numbers
    that differ from row to row; the status of a reply and the limit of a request are kept.
    """
    return f"{kind}: {_NUMBERS.sub(lambda found: found[1] or '#', message[:160])}"
