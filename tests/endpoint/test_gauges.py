"""The collector asks engines how busy they are, when a job wants to know."""

from __future__ import annotations

import asyncio
import http.server
import json
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import pytest

from domyn_swarm.backends.endpoint.gauges import EngineGauges
from endpoint.bench import API_KEY, COLLECTOR_KEY, Bench
from endpoint.test_collector import Client, report
from patience import limit_s, until

NO_RATES = {"tokens_s": None, "preemptions_s": None, "kv_usage": None}
METRICS = {"metrics_path": "/metrics", "running_metric": "e:run", "waiting_metric": "e:wait"}


class Engine(http.server.ThreadingHTTPServer):
    """Metrics that a test sets; counts who asks."""

    request_queue_size = 128

    def __init__(self, text: str, delay_s: float = 0.0) -> None:
        engine = self
        self.text, self.delay_s, self.asked, self.keys = text, delay_s, 0, set[str]()

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                engine.asked += 1
                engine.keys.add(self.headers.get("Authorization", ""))
                time.sleep(engine.delay_s)
                body = engine.text.encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                return

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@pytest.fixture
def engines() -> Iterator[list[Engine]]:
    started = [
        Engine('# HELP e:run x\ne:run{model="a",n="1"} 3.0\ne:run{model="b"} 2\ne:wait 1e1\n'),
        Engine("e:running 99\ne:run 4.0\n"),
    ]
    yield started
    for engine in started:
        if engine.fileno() >= 0:  # not closed by the test
            engine.shutdown()
            engine.server_close()


def test_gauges_are_summed_over_replicas_that_serve(bench: Bench, engines: list[Engine]) -> None:
    client = Client(bench.start_collector(**METRICS))
    assert client.send("GET", "/v1/gauges") == (
        200,
        {"running": 0.0, "waiting": 0.0, "replicas": 0, "answered": 0, "each": [], **NO_RATES},
    )
    time.sleep(0.6)
    client.report(0, url=engines[0].url)
    client.report(1, url=engines[1].url)
    gauges = client.send("GET", "/v1/gauges")[1]
    looks = [one.pop("look") for one in gauges["each"]]
    assert looks[0] == looks[1] > 0
    urls = [engine.url for engine in engines]
    assert sorted(gauges.pop("each"), key=lambda one: urls.index(one["url"])) == [
        {"url": urls[0], "running": 5.0, "waiting": 10.0, **NO_RATES},
        {"url": urls[1], "running": 4.0, "waiting": 0.0, **NO_RATES},
    ]
    assert gauges == {"running": 9.0, "waiting": 10.0, "replicas": 2, "answered": 2, **NO_RATES}
    assert engines[0].keys == {f"Bearer {API_KEY}"}


async def test_what_engines_count_becomes_a_rate_of_all(
    bench: Bench, engines: list[Engine]
) -> None:
    counted = {"generated_tokens_metric": "e:tokens", "preemptions_metric": "e:preempted"}
    gauges = EngineGauges(bench.endpoint_spec(**METRICS, **counted))
    urls = [engine.url for engine in engines]
    began = time.monotonic()
    try:
        for engine in engines:
            engine.text = "e:run 1\ne:tokens 1000\n"
        engines[0].text += "e:preempted 7\n"
        assert (await gauges.read(urls)).tokens_s is None  # type: ignore[union-attr]
        await asyncio.sleep(0.6)
        engines[0].text = "e:run 1\ne:tokens 1500\ne:preempted 9\n"
        engines[1].text = "e:run 1\ne:tokens 100\n"  # it was started again
        found = await gauges.read(urls)
        took_s = time.monotonic() - began
    finally:
        await gauges.close()
    assert found is not None
    assert found.tokens_s is not None
    assert found.preemptions_s is not None
    # one of two says how many since the last look, and stands for both
    assert 1000 / took_s <= found.tokens_s <= 1000 / 0.5
    assert 4 / took_s <= found.preemptions_s <= 4 / 0.5


def test_many_that_ask_cost_the_engines_one_look(bench: Bench, engines: list[Engine]) -> None:
    client = Client(bench.start_collector(**METRICS))
    client.report(0, url=engines[0].url)
    for _ in range(20):
        assert client.send("GET", "/v1/gauges")[0] == 200
    assert engines[0].asked <= 3


def test_an_engine_that_does_not_answer_is_told_and_delays_nobody(
    bench: Bench, engines: list[Engine]
) -> None:
    engines[1].delay_s = 10.0
    client = Client(bench.start_collector(**METRICS))
    client.report(0, url=engines[0].url)
    client.report(1, url=engines[1].url)
    began = time.monotonic()
    gauges = client.send("GET", "/v1/gauges")[1]
    # the one that answered stands for both
    assert (gauges["running"], gauges["replicas"], gauges["answered"]) == (10.0, 2, 1)
    assert time.monotonic() - began < engines[1].delay_s
    assert client.report(0, url=engines[0].url, sequence=2)[0] == 200


async def test_of_hundreds_of_replicas_some_dozens_are_asked_by_turns_and_stand_for_all(
    bench: Bench, engines: list[Engine]
) -> None:
    gauges = EngineGauges(bench.endpoint_spec(**METRICS))
    urls = [f"{engines[0].url}/{number}" for number in range(300)]
    looks, answered = 0, set[str]()

    async def all_have_answered() -> bool:
        nonlocal looks
        found = await gauges.read(urls)
        looks += 1
        assert found is not None
        assert found.replicas == 300
        assert engines[0].asked <= 64 * looks
        assert (found.running, found.waiting) == pytest.approx((300 * 5.0, 300 * 10.0))
        newest = {one.url for one in found.each if one.look == looks}
        assert len(newest) <= 64
        answered.update(newest)
        await asyncio.sleep(0.51)  # then engines are asked again
        return answered == set(urls)

    try:
        while not await all_have_answered():
            assert looks < 50
    finally:
        await gauges.close()


def test_engines_without_metrics_have_no_gauges(bench: Bench) -> None:
    client = Client(bench.start_collector())
    assert client.send("GET", "/v1/gauges")[0] == 404
    assert client.send("GET", "/v1/gauges", key="wrong")[0] == 401
    assert client.send("GET", "/v1/gauges", key=API_KEY)[0] == 401


def test_a_replica_whose_port_is_gone_leaves_the_router_before_it_is_stale(
    bench: Bench, engines: list[Engine]
) -> None:
    """As when its node is lost: nobody reports it."""
    bench.start_endpoint(stale_after_s=60.0)
    place = urlsplit(bench.address().collector_url)
    for index, engine in enumerate(engines):
        body = json.dumps(report(index, url=engine.url)).encode()
        connection = HTTPConnection(str(place.hostname), place.port, timeout=limit_s())
        key = {"Authorization": f"Bearer {COLLECTOR_KEY}"}
        connection.request("POST", "/v1/report", body, key)
        assert connection.getresponse().status == 200
        connection.close()
    manifest = bench.paths.router_manifest
    until(lambda: manifest.exists() and manifest.read_text().count("127.0.0.1") == 2)
    engines[0].shutdown()
    engines[0].server_close()
    until(lambda: engines[0].url not in manifest.read_text())
    assert engines[1].url in manifest.read_text()
