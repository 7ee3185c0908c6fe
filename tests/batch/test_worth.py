"""Whether sending by beginnings pays: by what engines count, else by how long requests take."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from domyn_swarm.batch.background import beside
from domyn_swarm.batch.outcomes.histograms import Dispatched
from domyn_swarm.batch.run.dispatch import Dispatch
from domyn_swarm.batch.run.worth import Worth
from domyn_swarm.net.http import HttpReply
from domyn_swarm.net.request_errors import CannotConnect
from virtual_time import VirtualClock, in_virtual_time

A, B = "http://a:1", "http://b:1"
VLLM = (
    "# HELP vllm:prefix_cache_queries_total Prefix cache queries\n"
    'vllm:prefix_cache_queries_total{{model_name="m",engine="0"}} {asked:.1f}\n'
    'vllm:prefix_cache_hits_total{{model_name="m",engine="0"}} {cached:.1f}\n'
    "vllm:external_prefix_cache_hits_total 999999.0\n"
)
SGLANG = (
    'sglang:prompt_tokens_total{{model_name="m"}} {asked}\n'
    'sglang:cached_tokens_total{{model_name="m",cache_source="device"}} {cached}\n'
)


class Engines:
    """Two engines whose counters go up, and what was sent to them meanwhile."""

    def __init__(self, text: str = VLLM) -> None:
        self.clock = VirtualClock()
        self.worth = Worth(clock=self.clock.monotonic)
        self._text = text
        self._counted = {A: (5000.0, 4000.0), B: (0.0, 0.0)}  # of somebody else, from before
        self.tell()

    def tell(self) -> None:
        for url, (asked, cached) in self._counted.items():
            text = self._text.format(asked=asked, cached=cached)
            self.worth.heard(url, text.encode())

    def work(self, tokens: int, cached: float, requests: int = 100) -> None:
        self.worth.counts.requests_known += requests
        for url, (asked, before) in self._counted.items():
            self._counted[url] = asked + tokens / 2, before + tokens * cached / 2
        self.tell()

    def begin_anew(self, url: str) -> None:
        self._counted[url] = 10.0, 0.0
        self.tell()


@pytest.mark.parametrize("text", [VLLM, SGLANG])
def test_caches_that_hold_nothing_switch_it_off_and_it_is_tried_again(text: str) -> None:
    engines = Engines(text)
    worth = engines.worth
    engines.work(99_000, 0.0)
    assert worth.pays()  # too little to judge by
    engines.work(2_000, 0.0)
    assert not worth.pays()
    engines.work(500_000, 0.9)  # that is not due to how rows are sent now
    engines.clock.sleep(59)
    assert not worth.pays()
    engines.clock.sleep(1)
    assert worth.pays()
    engines.work(1_000, 0.0)  # from here on it is judged anew
    engines.work(100_000, 0.01)
    engines.clock.sleep(119)
    assert not worth.pays()  # twice as long
    engines.clock.sleep(1)
    assert worth.pays()
    for _ in range(5):
        engines.work(101_000, 0.5)
    assert worth.pays()
    assert worth.counts.switched_off == 2


def test_it_stays_on_while_caches_hold_what_rows_begin_with() -> None:
    engines = Engines()
    for _ in range(20):
        engines.work(100_000, 0.06)
    assert engines.worth.pays()
    counts = engines.worth.counts
    assert (counts.prompt_tokens_counted, counts.cached_tokens) == (2_000_000, 120_000)


def test_a_few_requests_and_an_engine_that_begins_anew_prove_nothing() -> None:
    engines = Engines()
    engines.work(1_000_000, 0.0, requests=50)
    assert engines.worth.pays()
    before = engines.worth.counts.prompt_tokens_counted
    engines.begin_anew(A)
    assert engines.worth.counts.prompt_tokens_counted == before


@pytest.mark.parametrize(
    ("saves", "sigma", "requests", "pays"),
    [
        (0.0, 0.02, 2000, False),  # no cache at all
        (0.0, 0.02, 63, True),  # too few to be sure
        (0.1, 0.02, 2000, True),
        (0.1, 1.0, 100, True),  # as good as chance
        (0.5, 1.0, 2000, True),
    ],
)
def test_without_counters_the_time_of_requests_decides(
    saves: float, sigma: float, requests: int, *, pays: bool
) -> None:
    worth, draw = Worth(clock=VirtualClock().monotonic), random.Random(1)
    for _ in range(requests):
        worth.took(draw.lognormvariate(0, sigma), known=False)
        worth.took((1 - saves) * draw.lognormvariate(0, sigma), known=True)
    assert worth.pays() is pays


def test_where_engines_count_times_say_nothing() -> None:
    engines = Engines()
    for _ in range(1000):
        engines.worth.took(1.0, known=False)
        engines.worth.took(1.0, known=True)
    assert engines.worth.pays()


def test_while_it_does_not_pay_the_least_loaded_replica_gets_a_request() -> None:
    clock = VirtualClock()
    worth = Worth(clock=clock.monotonic)
    body = b'{"messages": "' + b"x" * 3000 + b'"}'
    for policy, together in (("auto", False), ("affinity", True)):
        dispatch = Dispatch(policy, worth)  # type: ignore[arg-type]
        dispatch.offer(A)
        dispatch.offer(B)
        for _ in range(1000 if worth.pays() else 0):
            worth.took(1.0, known=True)
            worth.took(1.0, known=False)
        taken = [dispatch.take(body), dispatch.take(body)]
        assert (taken[0] == taken[1]) is together
    clock.sleep(60)
    assert worth.pays()


class Client:
    """The engines' metrics, of which one's cannot be had."""

    def __init__(self) -> None:
        self.asked = Counter[str]()

    async def request(
        self, method: str, url: str, body: bytes | None, timeout_s: float
    ) -> HttpReply:
        await asyncio.sleep(0.01)
        assert (method, body) == ("GET", None)
        assert timeout_s > 0
        self.asked[url] += 1
        if url == f"{B}/metrics":
            raise CannotConnect("refused")
        text = VLLM.format(asked=self.asked[url] * 1000, cached=self.asked[url] * 250)
        return HttpReply(200, text.encode(), None)


@in_virtual_time
async def test_engines_are_asked_while_requests_are_in_flight() -> None:
    counts, client = Dispatched(), Client()
    worth, urls = Worth(counts), {A, B}
    async with beside(worth.keep_asking(client, lambda: urls)):  # type: ignore[arg-type]
        await asyncio.sleep(100)
        assert counts.cached_tokens / counts.prompt_tokens_counted == 0.25
        asked = client.asked.copy()
        assert 10 < asked[f"{A}/metrics"] == asked[f"{B}/metrics"] < 20
        urls.clear()
        await asyncio.sleep(100)
        assert client.asked == asked


@in_virtual_time
async def test_of_many_engines_each_worker_asks_a_few_others() -> None:
    urls = {f"http://node{number}:1" for number in range(64)}
    clients = [Client() for _ in range(64)]
    work = [Worth().keep_asking(one, lambda: urls) for one in clients]  # type: ignore[arg-type]
    async with beside(*work):
        await asyncio.sleep(60)
    assert {len(one.asked) for one in clients} == {4}
    assert max(sum((one.asked for one in clients), Counter()).values()) < 64 * 10 / 2
