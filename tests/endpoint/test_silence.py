"""What the collector does as time passes without a report, in virtual time."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from domyn_swarm.backends.endpoint.collector import Collector
from domyn_swarm.backends.endpoint.router import SmgRouter
from domyn_swarm.backends.endpoint.view import CollectorView
from domyn_swarm.model import ReplicaReport
from endpoint.bench import Bench
from virtual_time import in_virtual_time, now_s

STALE_S = 12.0
SETTLE_S = 1.5


class Watched:
    """A collector that keeps its files, and replicas that report to it."""

    def __init__(self, bench: Bench) -> None:
        self.paths = bench.paths
        spec = bench.endpoint_spec(stale_after_s=STALE_S)
        self.collector = Collector(spec, self.paths, SmgRouter().manifest, SETTLE_S)
        self._sequence = 0

    def report(self, replica: int, state: str = "ready", **changes: Any) -> None:
        self._sequence += 1
        fields = {"replica": replica, "state": state, "url": url(replica), "incarnation": "a"}
        report = {**fields, "sequence": self._sequence, **changes}
        self.collector.take(ReplicaReport.model_validate(report))

    async def beat(self, replica: int, every_s: float, times: int) -> None:
        for _ in range(times):
            self.report(replica)
            await asyncio.sleep(every_s)

    def manifest(self) -> list[str]:
        document = json.loads(self.paths.router_manifest.read_text())
        return [worker["url"] for worker in document["workers"]]

    def history(self) -> list[tuple[int, str, str | None]]:
        with sqlite3.connect(self.paths.watchdog_db) as database:
            rows = database.execute("SELECT replica, state, reason FROM replica_status").fetchall()
        database.close()
        return rows


def url(replica: int) -> str:
    return f"http://127.0.0.1:{9000 + replica}"


@asynccontextmanager
async def watched(bench: Bench) -> AsyncIterator[Watched]:
    made = Watched(bench)
    files = asyncio.create_task(made.collector.keep_files())
    await asyncio.sleep(0)
    try:
        yield made
    finally:
        files.cancel()
        await asyncio.wait([files])
        await made.collector.close()


@in_virtual_time
async def test_a_replica_that_falls_silent_leaves_the_router_and_its_word_brings_it_back(
    bench: Bench,
) -> None:
    async with watched(bench) as swarm:
        others = asyncio.create_task(swarm.beat(1, 4.0, 900))
        swarm.report(0)
        await asyncio.sleep(STALE_S - 0.5)
        assert swarm.manifest() == [url(0), url(1)]
        await asyncio.sleep(2)
        assert swarm.manifest() == [url(1)]
        await asyncio.sleep(600)
        assert swarm.manifest() == [url(1)]
        swarm.report(0)
        await asyncio.sleep(1.1)
        assert swarm.manifest() == [url(0), url(1)]
        others.cancel()
    silent = "no reports received for 12 s; removed from routing"
    assert swarm.history() == [
        (0, "ready", None),
        (1, "ready", None),
        (0, "unhealthy", silent),
        (0, "ready", None),
    ]


@in_virtual_time
async def test_a_heartbeat_slower_than_the_silence_keeps_nobody_in(bench: Bench) -> None:
    async with watched(bench) as swarm:
        beating = asyncio.create_task(swarm.beat(0, STALE_S + 3, 100))
        there = []
        for _ in range(600):
            await asyncio.sleep(1)
            there.append(bool(swarm.manifest()))
        beating.cancel()
        assert 0.7 < sum(there) / len(there) < 0.95


@in_virtual_time
async def test_what_is_said_to_be_unwell_leaves_at_once(bench: Bench) -> None:
    async with watched(bench) as swarm:
        for state in ("unhealthy", "draining", "restarting", "failed"):
            swarm.report(0)
            await asyncio.sleep(0.1)
            assert swarm.manifest() == [url(0)]
            swarm.report(0, state)
            await asyncio.sleep(0.1)
            assert swarm.manifest() == []


@in_virtual_time
async def test_drained_is_said_once_the_router_has_had_its_time(bench: Bench) -> None:
    async with watched(bench) as swarm:
        swarm.report(0)
        await asyncio.sleep(1)
        swarm.report(0, "draining")
        began = now_s()
        while not await swarm.collector._is_drained(url(0)):  # noqa: ASYNC110 - as a watchdog
            await asyncio.sleep(0.05)
        assert SETTLE_S <= now_s() - began <= SETTLE_S + 0.2
        assert await swarm.collector._is_drained(url(1))  # it never was in
        assert await swarm.collector._is_drained(None)


@in_virtual_time
async def test_a_restarted_collector_believes_what_it_knew_until_that_is_stale(
    bench: Bench,
) -> None:
    async with watched(bench) as swarm:
        swarm.report(0)
        swarm.report(1)
        await asyncio.sleep(1)
    await asyncio.sleep(3600)
    async with watched(bench) as swarm:
        await asyncio.sleep(1)
        assert swarm.manifest() == [url(0), url(1)]
        await asyncio.sleep(STALE_S / 2)
        swarm._sequence = 10
        swarm.report(1)
        await asyncio.sleep(STALE_S / 2 + 1)
        assert swarm.manifest() == [url(1)]


@in_virtual_time
async def test_the_view_on_disk_is_written_now_and_then_though_nothing_changes(
    bench: Bench,
) -> None:
    async with watched(bench) as swarm:
        writes = set()
        await asyncio.sleep(0.1)
        for _ in range(60):
            text = swarm.paths.replicas.read_text()
            writes.add(CollectorView.model_validate_json(text).taken_at)
            await asyncio.sleep(1)
        assert 10 <= len(writes) <= 13  # every five seconds


@in_virtual_time
async def test_a_disk_that_refuses_is_tried_again(bench: Bench) -> None:
    async with watched(bench) as swarm:
        await asyncio.sleep(1)
        swarm.paths.router_manifest.unlink()
        swarm.paths.router_manifest.mkdir()
        swarm.report(0)
        await asyncio.sleep(5)
        swarm.paths.router_manifest.rmdir()
        await asyncio.sleep(1.1)
        assert swarm.manifest() == [url(0)]
