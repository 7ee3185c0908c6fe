"""When a swarm ends itself and what it does about lost replicas, in virtual time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from domyn_swarm.backends.endpoint import supervision
from domyn_swarm.backends.endpoint.collector import Collector
from domyn_swarm.backends.endpoint.platform_protocol import Placed
from domyn_swarm.backends.endpoint.router import SmgRouter
from domyn_swarm.backends.endpoint.supervision import Activity, Supervision
from domyn_swarm.batch.background import beside
from domyn_swarm.claims import claim
from domyn_swarm.errors import PlatformError
from domyn_swarm.model import JobHandle, ReplicaReport, ReplicaState, utc_now
from domyn_swarm.paths import SwarmPaths, write_private
from endpoint.bench import Bench
from virtual_time import in_virtual_time, now_s

HOUR_S = 3600.0


@dataclass
class Platform:
    """What runs on it, as a test says; when it was asked what."""

    jobs_over: Callable[[], bool] = lambda: False
    fails: Callable[[], bool] = lambda: False
    asked: list[int] = field(default_factory=list)
    ended: int = 0
    given_up: Sequence[int] = ()

    per_place = 1

    def replace_lost(self, replicas: Collection[int]) -> Sequence[int]:
        if self.fails():
            raise PlatformError("the scheduler does not answer", hint="")
        self.asked.append(len(replicas))
        return self.given_up

    def places(self) -> Mapping[int, Placed]:
        return {}

    def start(self, places: Collection[int]) -> None:
        raise AssertionError(places)  # the swarm is not elastic

    def release(self, places: Collection[int]) -> None:
        raise AssertionError(places)

    def job_over(self, _handle: JobHandle) -> bool:
        return self.jobs_over()

    def end_rest(self) -> None:
        self.ended += 1


class Swarm:
    """One supervised swarm: its files are real, its replicas report as a test says."""

    def __init__(self, bench: Bench, **spec: Any) -> None:
        self.paths: SwarmPaths = bench.paths
        made = bench.endpoint_spec(replicas=2, stale_after_s=10.0, **spec)
        write_private(self.paths.endpoint_spec, made.model_dump_json())
        self.collector = Collector(made, self.paths, SmgRouter().manifest, settle_s=0.3)
        self.platform = Platform()
        self.activity: Callable[[], Activity | None] = lambda: Activity(0, 0)
        self.supervision = Supervision(self.paths, self.platform, self.collector, self._activity)
        self._sequence = 0

    async def _activity(self) -> Activity | None:
        return self.activity()

    def report(self, replica: int, state: str, **changes: Any) -> None:
        self._sequence += 1
        url = f"http://127.0.0.1:{9000 + replica}"
        report = {"replica": replica, "state": state, "url": url, "incarnation": "a", **changes}
        self.collector.take(ReplicaReport.model_validate({**report, "sequence": self._sequence}))

    def keep_for(self, *jobs: str) -> None:
        for job in jobs:
            handle = JobHandle(
                job_id=job,
                swarm="demo",
                platform="slurm",
                platform_id="1",
                job_dir="/x",
                log_path="/x",
                exit_path="/x",
                submitted_at=utc_now(),
            )
            write_private(self.paths.down_after / f"{job}.json", handle.model_dump_json())

    async def ends_after(self, within_s: float = HOUR_S) -> float | None:
        """Seconds until it ended itself; None: it did not."""
        began = now_s()
        try:
            async with asyncio.timeout(within_s):
                await self.supervision.run()
        except TimeoutError:
            return None
        return now_s() - began

    @property
    def reason(self) -> str:
        return str(json.loads(self.paths.ended.read_text())["reason"])


@in_virtual_time
async def test_a_swarm_that_nobody_uses_ends_after_its_idle_time(bench: Bench) -> None:
    swarm = Swarm(bench, idle_timeout_s=600.0)
    swarm.report(0, "ready")
    ended_s = await swarm.ends_after()
    assert ended_s is not None
    assert 600 <= ended_s <= 604
    assert swarm.reason == "nobody has used it for 600 s"
    assert swarm.platform.ended == 1


@pytest.mark.parametrize(
    "used",
    [
        lambda at: Activity(requests=at // 590, in_flight=0),  # one request in ten minutes
        lambda _at: Activity(requests=1, in_flight=1),  # one that takes an hour
        lambda _at: None,  # the router cannot be asked: no sign of idleness
    ],
)
def test_a_swarm_that_is_used_or_may_be_stays(
    bench: Bench, used: Callable[[float], Activity | None]
) -> None:
    @in_virtual_time
    async def run() -> None:
        swarm = Swarm(bench, idle_timeout_s=600.0)
        swarm.report(0, "ready")
        began = now_s()
        swarm.activity = lambda: used(now_s() - began)
        assert await swarm.ends_after() is None
        assert swarm.platform.ended == 0

    run()


@in_virtual_time
async def test_replicas_that_the_platform_gives_up_have_failed(bench: Bench) -> None:
    swarm = Swarm(bench)
    swarm.report(0, "ready")
    swarm.report(1, "restarting", reason="broken, 2 times on n2 as it started")
    swarm.platform.given_up = (1,)
    await swarm.ends_after(10.0)
    [ready, failed] = swarm.collector.view().replicas
    assert (ready.state, failed.state) == ("ready", "failed")
    assert swarm.collector.failures() == ["broken, 2 times on n2 as it started"]
    swarm.platform.given_up = ()
    swarm.report(1, "starting", incarnation="b")  # somebody starts it all the same
    assert swarm.collector.failures() == []


@in_virtual_time
async def test_a_job_that_sends_to_the_replicas_themselves_uses_the_swarm(bench: Bench) -> None:
    swarm = Swarm(bench, idle_timeout_s=600.0)
    swarm.report(0, "ready")

    async def job() -> None:
        """It asks for replicas while it has requests, for an hour."""
        for _ in range(60):
            await asyncio.sleep(60)
            swarm.collector.drivers_looked += 1

    async with beside(job()):
        assert await swarm.ends_after(2 * HOUR_S) == pytest.approx(4200, abs=4)


@in_virtual_time
async def test_without_an_idle_time_it_stays_for_ever(bench: Bench) -> None:
    swarm = Swarm(bench)
    swarm.report(0, "ready")
    assert await swarm.ends_after() is None


@pytest.mark.parametrize("state", ["starting", "restarting", "failed", "exited"])
def test_the_idle_time_begins_when_a_replica_can_be_used(bench: Bench, state: str) -> None:
    @in_virtual_time
    async def run() -> None:
        swarm = Swarm(bench, idle_timeout_s=600.0)
        swarm.report(0, state)
        asyncio.get_running_loop().call_later(1800, lambda: swarm.report(1, "ready"))
        assert await swarm.ends_after() == pytest.approx(2400, abs=4)

    run()


@pytest.mark.parametrize("states", [("ready", "ready"), ("failed", "failed"), ("starting",), ()])
def test_a_swarm_kept_for_jobs_ends_after_them_whatever_its_replicas_do(
    bench: Bench, states: tuple[str, ...]
) -> None:
    """All may have failed, or wait in the queue still: nobody is there who could use them."""

    @in_virtual_time
    async def run() -> None:
        swarm = Swarm(bench)
        for replica, state in enumerate(states):
            swarm.report(replica, state)
        swarm.keep_for("first", "second")
        over_at = now_s() + 1800
        swarm.platform.jobs_over = lambda: now_s() >= over_at
        swarm.activity = lambda: Activity(0 if now_s() < over_at else 7, 0)  # the last of them
        ended_s = await swarm.ends_after()
        assert ended_s is not None
        assert 15 <= ended_s - 1800 <= 20
        assert swarm.reason == "the jobs that it was kept for are over"

    run()


@in_virtual_time
async def test_another_job_than_those_it_was_kept_for_is_not_cut_off(bench: Bench) -> None:
    swarm = Swarm(bench)
    swarm.report(0, "ready")
    swarm.keep_for("first")
    swarm.platform.jobs_over = lambda: True
    until_s = now_s() + 1800
    swarm.activity = lambda: Activity(min(now_s(), until_s), 0)
    ended_s = await swarm.ends_after()
    assert ended_s is not None
    assert 15 <= ended_s - 1800 <= 20


@in_virtual_time
async def test_one_job_of_several_that_runs_keeps_it(bench: Bench) -> None:
    swarm = Swarm(bench)
    swarm.keep_for("first", "second")
    answers = iter([True, False] * 10_000)
    swarm.platform.jobs_over = lambda: next(answers)
    assert await swarm.ends_after() is None


@in_virtual_time
async def test_the_platform_is_asked_only_while_not_all_replicas_serve(bench: Bench) -> None:
    swarm = Swarm(bench)
    running = asyncio.create_task(swarm.ends_after(100))
    await asyncio.sleep(9)
    assert swarm.platform.asked == [2] * 4  # every two seconds
    for _ in range(10):
        swarm.report(0, "ready")
        swarm.report(1, "ready")
        await asyncio.sleep(3)
    assert len(swarm.platform.asked) == 4
    await asyncio.sleep(10.5)  # silence: they are gone, as far as anybody knows
    before = len(swarm.platform.asked)
    await asyncio.sleep(6)
    assert len(swarm.platform.asked) - before == 3
    await running


@in_virtual_time
async def test_a_platform_that_does_not_answer_is_asked_again(bench: Bench) -> None:
    swarm = Swarm(bench, idle_timeout_s=60.0)
    back_at = now_s() + 1800
    swarm.platform.fails = lambda: now_s() < back_at
    swarm.report(0, "ready")
    ended_s = await swarm.ends_after()
    assert ended_s is not None
    assert 1800 <= ended_s <= 1800 + 66
    assert len(swarm.platform.asked) >= 1


@in_virtual_time
async def test_a_bug_in_what_it_asks_ends_neither_it_nor_the_endpoint(bench: Bench) -> None:
    swarm = Swarm(bench, idle_timeout_s=60.0)
    back_at = now_s() + 600

    def broken() -> Activity | None:
        if now_s() < back_at:
            raise KeyError("worker")
        return Activity(0, 0)

    swarm.activity = broken
    swarm.report(0, "ready")
    ended_s = await swarm.ends_after()
    assert ended_s is not None
    assert 600 <= ended_s <= 600 + 66


@in_virtual_time
async def test_a_swarm_that_is_scaled_is_supervised_by_its_new_size(bench: Bench) -> None:
    swarm = Swarm(bench)
    asyncio.get_running_loop().call_later(
        10,
        lambda: write_private(
            swarm.paths.endpoint_spec, bench.endpoint_spec(replicas=5).model_dump_json()
        ),
    )
    await swarm.ends_after(20)
    assert swarm.platform.asked == [2] * 4 + [5] * 5
    swarm.report(4, "ready")
    assert swarm.collector.view().replicas[0].state is ReplicaState.READY


@in_virtual_time
async def test_a_torn_spec_is_read_again(bench: Bench) -> None:
    swarm = Swarm(bench, idle_timeout_s=60.0)
    swarm.report(0, "ready")
    spec = swarm.paths.endpoint_spec
    whole = spec.read_text()
    write_private(spec, whole[:20])
    asyncio.get_running_loop().call_later(300, write_private, spec, whole)
    ended_s = await swarm.ends_after()
    assert ended_s is not None
    assert ended_s >= 300


@pytest.mark.parametrize("launched_by", ["nobody", "a process that was killed", "this process"])
def test_a_swarm_that_fails_later_says_so_unless_somebody_waits_for_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, launched_by: str
) -> None:
    told: list[str] = []
    monkeypatch.setattr(supervision, "notify", lambda _file, event, **_: told.append(event))

    @in_virtual_time
    async def run() -> None:
        swarm = Swarm(bench)
        launcher = swarm.paths.launcher(bench.endpoint_spec(replicas=2).tag)
        if launched_by != "nobody":
            claim(launcher)
        if launched_by == "a process that was killed":
            left = {**json.loads(launcher.read_text()), "started_at": -1.0}
            launcher.write_text(json.dumps(left))
        for replica in range(2):
            swarm.report(replica, "failed", reason="out of memory")
        await swarm.ends_after(30.0)

    run()
    assert told == ([] if launched_by == "this process" else ["swarm_failed"])
