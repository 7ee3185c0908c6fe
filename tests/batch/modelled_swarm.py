"""A job over replicas that take the time and the memory of vLLM, in virtual time: the real runner,
dispatch and limits; the simulator's model in place of engines, its metrics in place of a collector.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from domyn_swarm.batch.outcomes.row_outcomes import Result, Row
from domyn_swarm.batch.outcomes.tally import Tally
from domyn_swarm.batch.run.dispatch import Dispatch
from domyn_swarm.batch.run.request_limits import Limits, Loads, ReplicaLoad
from domyn_swarm.batch.run.runner import Events, Runner, RunPolicy
from domyn_swarm.batch.run.steering import Placed, Saturation, steer
from domyn_swarm.engine_load import MetricsReader, Reading, together
from domyn_swarm.engines.sim_options import VllmOptions
from domyn_swarm.engines.sim_pace import ByModel
from virtual_time import in_virtual_time, now_s

_READER = MetricsReader(
    {
        "running": ["vllm:num_requests_running"],
        "waiting": ["vllm:num_requests_waiting"],
        "tokens": ["vllm:generation_tokens_total"],
        "preemptions": ["vllm:num_preemptions_total"],
        "kv_usage": ["vllm:kv_cache_usage_perc"],
    }
)
_BATCH_ROWS = 512


@dataclass(frozen=True)
class Asked:
    """What the pace asks of a question."""

    prompt_tokens: int
    answer_tokens: int
    n: int = 1
    whole: str = ""
    answer: str = ""


def lengths(
    rows: int, prompt_tokens: int, answer_tokens: int, sigma: float = 0.0, seed: int = 1
) -> list[Asked]:
    """Rows whose answers have lognormal lengths around a median."""
    drawn = random.Random(seed)
    return [
        Asked(prompt_tokens, max(1, round(answer_tokens * math.exp(drawn.gauss(0, sigma)))))
        for _ in range(rows)
    ]


class Engines:
    """Replicas, each with a model of an engine."""

    def __init__(
        self, options: VllmOptions, slots: int, replicas: int = 1, *, have_metrics: bool = True
    ) -> None:
        self.models = {
            f"http://replica{one}": ByModel(options, slots, one) for one in range(replicas)
        }
        self._have_metrics = have_metrics
        self._readings: dict[str, Reading] = {}
        self._each: dict[str, ReplicaLoad] = {}
        self._looked_s = -1.0

    async def read(self) -> Loads | None:
        """As a job's look at the collector, which many jobs share."""
        if not self._have_metrics:
            return None
        now = now_s()
        if now - self._looked_s >= 0.5:
            self._looked_s = now
            for url, model in self.models.items():
                figures = model.figures(0, 0)
                text = "".join(f"{one.name} {one.value}\n" for one in figures).encode()
                reading = _READER.read(text, now)
                assert reading is not None
                load = reading.load(self._readings.get(url))
                self._readings[url] = reading
                look = self._each[url].look + 1 if url in self._each else 1
                self._each[url] = ReplicaLoad(look, load)
        loads = [one.load for one in self._each.values()]
        return Loads(together(loads, len(loads)), dict(self._each))


@dataclass
class Job:
    """One job at those engines."""

    engines: Engines
    rows: Sequence[Asked]
    concurrency: int | None = None  # None: it finds its limits
    straight: bool = True  # to the replicas themselves
    trace: list[tuple[float, int, dict[str, int]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tally = Tally()
        self.limits = Limits()
        self.dispatch = Dispatch("least_load")
        for url in self.engines.models:
            self.dispatch.offer(url)
        self.answered = 0
        self.at_once: dict[str, list[int]] = {url: [] for url in self.engines.models}
        self._runner = Runner(
            self._ask,
            self,
            RunPolicy(self.concurrency, failure_limit=None),
            encode=lambda *_: b"{}",
            tally=self.tally,
            events=Events(),
        )

    async def run(self) -> float:
        """Settle all rows; the rows per second until the last one was taken, drain left out."""
        began = now_s()
        steering = None
        if self.concurrency is None:
            placing = Placed(self.dispatch, self.tally.replies) if self.straight else None
            saturation = Saturation(self.engines.read, placing)
            steering = asyncio.create_task(steer(self, self.tally, self.limits, saturation))
        await self._runner.run(self._batches())
        if steering is not None:
            steering.cancel()
            await asyncio.gather(steering, return_exceptions=True)
        return len(self.rows) / (self.last_taken_s - began)

    def set_limit(self, limit: int) -> None:
        """See `Steered`."""
        for url, at in self.dispatch.at_replicas().items():
            self.at_once[url].append(at.in_flight)
        each = {url: int(one.limit) for url, one in self.limits.capacities.items()}
        self.trace.append((now_s(), limit, each))
        self._runner.set_limit(limit)

    def append(self, results: Sequence[Result]) -> None:
        """See `Sink`."""
        self.answered += len(results)

    def _batches(self) -> Iterator[list[Row]]:
        for first in range(0, len(self.rows), _BATCH_ROWS):
            yield [
                Row(ordinal, b"", asked)
                for ordinal, asked in enumerate(self.rows[first : first + _BATCH_ROWS], first)
            ]

    async def _ask(self, items: list[Any]) -> list[str]:
        self.last_taken_s = began_s = now_s()
        url = self.dispatch.take(b"{}")
        assert url is not None
        try:
            await self.engines.models[url].write(items[0])
            self.dispatch.replied(url, 200)
            tokens = items[0].prompt_tokens, items[0].answer_tokens
            self.tally.replies.count(now_s() - began_s, *tokens, url)
        finally:
            self.dispatch.release(url)
        return ["x"]


@dataclass(frozen=True)
class Case:
    """What a job meets, and fixed numbers around the best one for it."""

    options: VllmOptions
    slots: int
    replicas: int
    rows: Callable[[], list[Asked]]
    fixed: Sequence[int]
    have_metrics: bool = True
    straight: bool = True
    jobs: int = 1
    worth: float = 0.95  # of the best fixed number


_PLAIN = VllmOptions(prefix_cache=False)
_UNEQUAL = VllmOptions(prefix_cache=False, speed=(1.0, 2.0, 4.0))
_NARROW = VllmOptions(  # KV memory holds 48 short answers; with more the service collapses
    prefix_cache=False,
    speed=8.0,
    kv_tokens=12_288,
    prefill_tokens_per_s=500.0,
    sequence_step_s=0.00003,
)
_AROUND_128 = (112, 128, 160, 256)
_AROUND_48 = (36, 40, 44, 48, 52)


def _longer_from_the_middle_on() -> list[Asked]:
    return lengths(3000, 16, 100) + lengths(5000, 16, 300)


CASES = {
    "plain slots": Case(_PLAIN, 64, 2, lambda: lengths(5000, 100, 100, 0.5), _AROUND_128),
    "KV cliff": Case(_NARROW, 256, 1, lambda: lengths(12_000, 16, 240), _AROUND_48),
    "a cliff in mid-run": Case(_NARROW, 256, 1, _longer_from_the_middle_on, _AROUND_48),
    "speeds 1 : 2 : 4": Case(
        _UNEQUAL, 128, 3, lambda: lengths(16_000, 200, 100, 0.4), (300, 500, 768)
    ),
    "no gauges, a KV cliff": Case(
        _NARROW,
        *(256, 1, lambda: lengths(12_000, 16, 200, 0.6), _AROUND_48),
        have_metrics=False,
        worth=0.8,
    ),
    "no gauges, a cliff in mid-run": Case(
        *(_NARROW, 256, 1, _longer_from_the_middle_on, _AROUND_48), have_metrics=False
    ),
    "no gauges": Case(
        _PLAIN, 64, 2, lambda: lengths(8000, 100, 100, 0.5), _AROUND_128, have_metrics=False
    ),
    "two jobs": Case(_PLAIN, 64, 2, lambda: lengths(6000, 100, 100, 0.5), _AROUND_128, jobs=2),
    "through the router alone": Case(
        _PLAIN, 64, 2, lambda: lengths(5000, 100, 100, 0.5), _AROUND_128, straight=False
    ),
}


def rates(case: Case, concurrency: int | None) -> list[float]:
    """Rows per second of each job of a case; `concurrency` is of all together, None: found."""
    found = list[float]()

    @in_virtual_time
    async def run() -> None:
        found.extend(await _rates(case, concurrency))

    run()
    return found


async def _rates(case: Case, concurrency: int | None) -> list[float]:
    engines = Engines(case.options, case.slots, case.replicas, have_metrics=case.have_metrics)
    rows = case.rows()
    each = None if concurrency is None else concurrency // case.jobs
    jobs = [Job(engines, rows[one :: case.jobs], each, case.straight) for one in range(case.jobs)]
    found = await asyncio.gather(*[job.run() for job in jobs])
    assert sum(job.tally.rows_answered for job in jobs) == len(rows)
    return found
