"""Measures whether sending rows by prefix pays.

If engines report the hits of their prefix caches (vLLM, SGLang), these decide. Otherwise the
durations of requests decide: those sent to a replica that held their prefix, against those with a
new prefix. A negative result has to be certain, since a wrong no costs more than a wrong yes; and
it is tested again, at growing intervals.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable, Collection

from domyn_swarm.batch.outcomes.histograms import Dispatched
from domyn_swarm.engine_load import MetricsReader
from domyn_swarm.net.http import HttpClient
from domyn_swarm.net.request_errors import RequestError

_FIRST_S = 1.0  # until the first poll of the engines; then the interval doubles,
_EVERY_S = 8.0  # up to this
_TIMEOUT_S = 5.0
_ASKED = 4  # replicas, as a sample for all: each worker polls others
_LEAST_TOKENS = 100_000  # of prompts, before caches are judged,
_LEAST_REQUESTS = 64  # and requests with a known prefix, or with a new one
_LEAST_CACHED = 0.05  # of the tokens; below this it does not pay
_LEAST_SAVED = 0.02  # of the duration of a request with a new prefix
_SURE = 2.0  # standard errors
_KEPT = 2048  # durations that are judged together; then the older half weighs less
_AGAIN_S = 60.0  # after this time it is tested again, then after twice that, and so on
_RARELY_S = 3600.0
_METRICS = MetricsReader(
    {
        "asked": [
            "vllm:prefix_cache_queries_total",
            "vllm:gpu_prefix_cache_queries_total",
            "sglang:prompt_tokens_total",
        ],
        "cached": [
            "vllm:prefix_cache_hits_total",
            "vllm:gpu_prefix_cache_hits_total",
            "sglang:cached_tokens_total",
        ],
    }
)


class _Times:
    """Mean and variance of durations in seconds."""

    def __init__(self) -> None:
        self.number = self.total = self.squares = 0.0

    def add(self, seconds: float) -> None:
        self.number += 1
        self.total += seconds
        self.squares += seconds * seconds
        if self.number >= _KEPT:
            self.number, self.total, self.squares = (
                one / 2 for one in (self.number, self.total, self.squares)
            )

    @property
    def mean(self) -> float:
        return self.total / self.number

    @property
    def error(self) -> float:
        """The square of the mean's standard error."""
        return max(0.0, self.squares / self.number - self.mean**2) / self.number


class Worth:
    """The present measurement. `pays` may be called on any thread, everything else on the event
    loop's.
    """

    def __init__(
        self, counts: Dispatched | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`counts` are those of the run, to which cache hits are added, too."""
        self.counts = Dispatched() if counts is None else counts
        self.clock = clock
        self._off_until: float | None = None
        self._pause_s = _AGAIN_S
        self._counted = False  # whether engines report cache hits
        self._last: dict[str, dict[str, float]] = {}
        self._begin()

    def _begin(self) -> None:
        self._known, self._new = _Times(), _Times()
        self._asked_tokens = self._cached_tokens = 0.0
        self._known_before = self.counts.requests_known

    def pays(self) -> bool:
        """Whether it pays, as far as is known."""
        return self._off_until is None or self.clock() >= self._off_until

    def took(self, seconds: float, *, known: bool) -> None:
        """Record the duration of an answered request, with a known prefix or a new one."""
        if self._counted or not self._judging():
            return
        (self._known if known else self._new).add(seconds)
        known_times, new = self._known, self._new
        if min(known_times.number, new.number) >= _LEAST_REQUESTS:
            saved = new.mean - known_times.mean
            most_saved = saved + _SURE * math.sqrt(new.error + known_times.error)
            if most_saved < _LEAST_SAVED * new.mean:
                self._switch_off()

    def heard(self, url: str, metrics: bytes) -> None:
        """Record an engine's counters since its start, from its `/metrics`."""
        found = {meaning: sum(values) for meaning, values in _METRICS.values(metrics).items()}
        if len(found) < 2:
            return
        self._counted = True
        before = self._last.get(url)
        self._last[url] = found
        if before is None or any(found[name] < before[name] for name in found):  # it was restarted
            return
        asked, cached = (found[name] - before[name] for name in ("asked", "cached"))
        self.counts.prompt_tokens_counted += int(asked)
        self.counts.cached_tokens += int(cached)
        if not self._judging():
            return
        self._asked_tokens += asked
        self._cached_tokens += cached
        sent = self.counts.requests_known - self._known_before
        if self._asked_tokens >= _LEAST_TOKENS and sent >= _LEAST_REQUESTS:
            if self._cached_tokens < _LEAST_CACHED * self._asked_tokens:
                self._switch_off()
            else:
                self._pause_s = _AGAIN_S
                self._begin()

    def _judging(self) -> bool:
        """Whether rows are sent by prefix now; measurements start again with each new test."""
        if not self.pays():
            return False
        if self._off_until is not None:
            self._off_until = None
            self._begin()
        return True

    def _switch_off(self) -> None:
        self.counts.switched_off += 1
        self._off_until = self.clock() + self._pause_s
        self._pause_s = min(_RARELY_S, 2 * self._pause_s)

    async def keep_asking(self, client: HttpClient, urls: Callable[[], Collection[str]]) -> None:
        """Poll the prefix caches of some replicas until cancelled."""
        asked, pause_s = list[str](), _FIRST_S
        while True:
            there = set(urls())
            asked = [url for url in asked if url in there]
            others = sorted(there.difference(asked))
            asked += random.sample(others, min(len(others), _ASKED - len(asked)))
            async with asyncio.TaskGroup() as asking:
                for url in asked:
                    asking.create_task(self._ask(client, url))
            await asyncio.sleep(pause_s)
            pause_s = min(_EVERY_S, 2 * pause_s)

    async def _ask(self, client: HttpClient, url: str) -> None:
        try:
            reply = await client.request("GET", f"{url}/metrics", None, _TIMEOUT_S)
        except RequestError:  # says nothing about affinity
            return
        if reply.status == 200:
            self.heard(url, bytes(reply.body))
