"""Gauges out of Prometheus texts, and what a run shows its limiter of them, in virtual time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from domyn_swarm.batch.outcomes.tally import Tally
from domyn_swarm.batch.run.request_limits import Limits, Loads, ReplicaLoad
from domyn_swarm.batch.run.steering import (
    ReadLoads,
    Saturation,
    fate_reader,
    meter_reader,
    metrics_reader,
    steer,
)
from domyn_swarm.engine_load import EngineLoad
from domyn_swarm.errors import JobError
from domyn_swarm.net.http import HttpReply
from domyn_swarm.net.request_errors import RequestTimeout
from virtual_time import in_virtual_time, now_s


@pytest.mark.parametrize(
    ("text", "load"),
    [
        (
            '# HELP vllm:num_requests_running x\nvllm:num_requests_running{engine="0"} 3.0\n'
            'vllm:num_requests_running{engine="1"} 4.0\nvllm:num_requests_waiting{a="b"} 1e1\n'
            'vllm:kv_cache_usage_perc{engine="0"} 0.5\nvllm:kv_cache_usage_perc{engine="1"} 0.9\n',
            EngineLoad(7.0, 10.0, kv_usage=0.9),
        ),
        ("llamacpp:requests_processing 2\nllamacpp:requests_deferred 5\n", EngineLoad(2.0, 5.0)),
        (
            'sglang:num_running_reqs{m="x"} 4\nsglang:num_queue_reqs{m="x"} 1\n',
            EngineLoad(4.0, 1.0),
        ),
        ("python_gc_objects_collected_total 3\n", None),
        ("", None),
    ],
)
@in_virtual_time
async def test_metrics_are_summed(text: str, load: EngineLoad | None) -> None:
    loads = await metrics_reader(Engine(text), lambda: "http://engine")()  # type: ignore[arg-type]
    assert loads == (None if load is None else Loads(load))


class Engine:
    """An `HttpClient` to an engine: each look finds the next of these metrics."""

    def __init__(self, *texts: str) -> None:
        self.texts = list(texts)

    async def request(
        self, _method: str, url: str, _body: bytes | None, _limit_s: float
    ) -> HttpReply:
        assert url == "http://engine/metrics"
        return HttpReply(200, self.texts.pop(0).encode(), None)


@in_virtual_time
async def test_what_an_engine_counts_becomes_a_rate() -> None:
    def text(tokens: int, preemptions: int) -> str:
        return (
            f"vllm:num_requests_running 3\nvllm:generation_tokens_total {tokens}\n"
            f"vllm:num_preemptions_total {preemptions}\n"
        )

    restarted = text(5, 0)
    engine = Engine(text(100, 1), text(300, 2), restarted, text(45, 0))
    read = metrics_reader(engine, lambda: "http://engine")  # type: ignore[arg-type]
    found = []
    for _ in range(4):
        await asyncio.sleep(2.0)
        found.append(await read())
    assert found == [
        Loads(EngineLoad(3.0, 0.0)),
        Loads(EngineLoad(3.0, 0.0, 100.0, 0.5)),
        Loads(EngineLoad(3.0, 0.0)),
        Loads(EngineLoad(3.0, 0.0, 20.0, 0.0)),
    ]


class Collector:
    """An `HttpClient` to a collector that says the same each time."""

    def __init__(self, reply: HttpReply | Exception) -> None:
        self.reply = reply

    async def request(
        self, method: str, url: str, _body: bytes | None, _timeout_s: float
    ) -> HttpReply:
        assert method == "GET"
        assert url in ("http://collector/v1/gauges", "http://collector/v1/replicas")
        if isinstance(self.reply, Exception):
            raise self.reply
        return self.reply

    def stream(self, _url: str, _body: bytes, _limit_s: float) -> AsyncIterator[bytes | HttpReply]:
        raise NotImplementedError

    async def close(self) -> None:
        return


WHOLE = {"running": 3.0, "waiting": 4.0, "replicas": 2}
RATES = {"tokens_s": 50.0, "preemptions_s": 0.5, "kv_usage": 0.75}
EACH = {"url": "http://a", "look": 7, "running": 3.0, "waiting": 4.0, **RATES}


def metered(answered: int) -> HttpReply:
    return HttpReply(200, json.dumps({**WHOLE, "answered": answered}).encode(), None)


@pytest.mark.parametrize(
    ("reply", "gauges"),
    [
        (metered(2), Loads(EngineLoad(3.0, 4.0))),
        (metered(1), Loads(EngineLoad(3.0, 4.0))),  # the collector has made of it what both have
        (
            HttpReply(200, json.dumps({**WHOLE, "answered": 1, "each": [EACH]}).encode(), None),
            Loads(
                EngineLoad(3.0, 4.0),
                {"http://a": ReplicaLoad(7, EngineLoad(3.0, 4.0, 50.0, 0.5, 0.75))},
            ),
        ),
        (metered(0), None),
        (HttpReply(404, b"", None), None),
        (HttpReply(200, b"?", None), None),
        (RequestTimeout("slow"), None),
    ],
)
async def test_a_swarms_gauges_are_believed_when_some_replica_answered(
    reply: HttpReply | Exception, gauges: Loads | None
) -> None:
    assert await meter_reader(Collector(reply), lambda: "http://collector")() == gauges


async def test_a_collector_that_is_nowhere_now_has_no_gauges() -> None:
    def locate() -> str:
        raise JobError("nowhere", hint="")

    assert await meter_reader(Collector(metered(1)), locate)() is None


def view(wanted: int | None, *states: str) -> HttpReply:
    replicas = [
        {"replica": number, "state": state, "reason": "out of memory"}
        for number, state in enumerate(states)
    ]
    document = {"replicas": replicas, "taken_at": "2026-01-01T00:00:00Z"}
    if wanted is not None:
        document["wanted"] = wanted
    return HttpReply(200, json.dumps(document).encode(), None)


@pytest.mark.parametrize(
    ("reply", "failed"),
    [
        (view(2, "failed", "failed"), True),
        (view(1, "failed", "ready"), True),  # scaled down: the other one drains
        (view(2, "failed", "ready"), False),
        (view(2, "failed"), False),  # the other one waits in the queue
        (view(2, "exited", "failed"), False),  # its successor is on the way
        (view(None, "failed"), False),  # an older collector
        (HttpReply(500, b"no", None), False),
        (HttpReply(200, b"no JSON", None), False),
        (RequestTimeout("slow"), False),
    ],
)
async def test_a_swarm_has_failed_when_all_replicas_that_are_wanted_have(
    reply: HttpReply | Exception, failed: bool
) -> None:
    why = await fate_reader(Collector(reply), lambda: "http://collector")()
    assert (why is not None) is failed
    if why is not None:
        assert "out of memory" in why


@dataclass
class Job:
    """A run that always has as many calls in flight as it may, and a server of so many slots."""

    slots: int
    service_s: float
    limit: int = 64
    tally: Tally = field(default_factory=Tally)
    judged: list[tuple[float, int]] = field(default_factory=list)

    def set_limit(self, limit: int) -> None:
        self.judged.append((now_s(), limit))
        self.limit = limit

    async def serve(self) -> None:
        answered = 0.0
        while True:
            self.tally.in_flight = self.limit
            await asyncio.sleep(0.05)
            answered += min(self.limit, self.slots) / self.service_s * 0.05
            self.tally.rows_answered = int(answered)

    async def gauges(self) -> Loads:
        running = min(self.limit, self.slots)
        return Loads(EngineLoad(running, max(0, self.limit - self.slots)))

    async def no_gauges(self) -> None:
        return None

    async def steered(self, seconds: float, gauges: ReadLoads | None = None) -> None:
        saturation = Saturation(gauges or self.no_gauges)
        work = [self.serve(), steer(self, self.tally, Limits(), saturation)]
        tasks = [asyncio.create_task(one) for one in work]
        await asyncio.sleep(seconds)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("with_gauges", [False, True])
@pytest.mark.parametrize(("slots", "service_s"), [(500, 1.0), (500, 20.0), (16, 5.0)])
def test_concurrency_comes_to_rest_at_what_the_server_can_do(
    slots: int, service_s: float, with_gauges: bool
) -> None:
    @in_virtual_time
    async def run() -> None:
        job = Job(slots, service_s)
        await job.steered(3600, job.gauges if with_gauges else None)
        late = sorted(limit for at, limit in job.judged[len(job.judged) // 2 :])
        assert 0.9 * slots <= late[len(late) // 2] <= 1.7 * slots + 7

    run()


@in_virtual_time
async def test_a_window_is_long_enough_to_say_something_and_a_minute_at_most() -> None:
    quick, slow, stuck = Job(1000, 0.5), Job(64, 20.0), Job(64, 1e9)
    for job, least_s, most_s in ((quick, 0.5, 1.2), (slow, 30.0, 60.2), (stuck, 60.0, 60.2)):
        began = now_s()
        await job.steered(61)
        assert least_s <= job.judged[0][0] - began <= most_s


@in_virtual_time
async def test_gauges_are_read_every_second_however_slow_the_rows_are() -> None:
    job = Job(64, 1e9)
    began = now_s()
    await job.steered(10.1, job.gauges)
    assert len(job.judged) == 10
    assert job.judged[0][0] - began == pytest.approx(1.0)
    assert (job.tally.running, job.tally.waiting) == (await job.gauges()).together[:2]


@in_virtual_time
async def test_while_the_run_is_paused_nothing_is_judged() -> None:
    job = Job(64, 0.1)
    job.tally.paused = "the endpoint does not answer"
    await job.steered(600)
    assert job.judged == []
