"""What is done about an elastic swarm's size, in virtual time: files are real, the platform and the
replicas are as a test says.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest

from domyn_swarm.backends.endpoint.collector import Collector
from domyn_swarm.backends.endpoint.doorkeeper import Doorkeeper
from domyn_swarm.backends.endpoint.elastic_state import ElasticState, read_state
from domyn_swarm.backends.endpoint.elasticity import Elasticity
from domyn_swarm.backends.endpoint.endpoint_spec import ElasticSpec
from domyn_swarm.backends.endpoint.platform_protocol import Placed
from domyn_swarm.backends.endpoint.router import SmgRouter
from domyn_swarm.backends.endpoint.supervision import Activity
from domyn_swarm.batch.background import beside
from domyn_swarm.errors import PlatformError
from domyn_swarm.model import JobProgress, ReplicaReport, utc_now
from domyn_swarm.paths import JobPaths, SwarmPaths, write_private
from endpoint.bench import Bench
from virtual_time import in_virtual_time, now_s


class LoopClock:
    """The time of a test's event loop."""

    def monotonic(self) -> float:
        return now_s()

    def time(self) -> float:
        return 1e9 + now_s()

    def sleep(self, seconds: float, /) -> None:
        raise AssertionError(seconds)


@dataclass
class Platform:
    """Starts what it is asked for at once, and ends it."""

    per_place: int = 1
    there: dict[int, Placed] = field(default_factory=dict)
    started: list[list[int]] = field(default_factory=list)
    released: list[list[int]] = field(default_factory=list)
    refuses: bool = False
    silent: bool = False

    def places(self) -> Mapping[int, Placed]:
        if self.silent:
            raise PlatformError("the scheduler does not answer", hint="")
        return dict(self.there)

    def start(self, places: Collection[int]) -> None:
        if self.refuses:
            raise PlatformError("nodes may not submit", hint="")
        self.started.append(sorted(places))
        self.there |= dict.fromkeys(places, Placed(runs=True))

    def release(self, places: Collection[int]) -> None:
        self.released.append(sorted(places))
        for one in places:
            self.there.pop(one, None)


class Swarm:
    """An elastic swarm, as its endpoint program has it."""

    def __init__(self, bench: Bench, platform: Platform | None = None, **elastic: Any) -> None:
        self.paths: SwarmPaths = bench.paths
        keys = {"least": 0, "full_at": 8, "ledger_entry": bench.paths.root / "entry", **elastic}
        spec = bench.endpoint_spec(replicas=4, stale_after_s=1e9)
        self.spec = spec.model_copy(update={"elastic": ElasticSpec.model_validate(keys)})
        self.collector = Collector(self.spec, self.paths, SmgRouter().manifest, settle_s=0.3)
        self.platform = platform or Platform()
        self.door = Doorkeeper(self.spec, 0.0, self.collector.serving)
        self.activity = Activity(0, 0)
        self._sequence = 0
        self.elasticity = self._elasticity()

    def _elasticity(self) -> Elasticity:
        return Elasticity(
            *(self.paths, self.spec, self.platform, self.collector, self._activity),
            door=self.door,
            clock=LoopClock(),
        )

    def killed_and_started_again(self) -> None:
        self.collector = Collector(self.spec, self.paths, SmgRouter().manifest, settle_s=0.3)
        self.elasticity = self._elasticity()

    async def _activity(self) -> Activity:
        return self.activity

    async def lives(self, seconds: float) -> None:
        async with beside(self.elasticity.run()):
            await asyncio.sleep(seconds)

    def report(self, replica: int, state: str, **changes: Any) -> None:
        self._sequence += 1
        url = f"http://127.0.0.1:{9000 + replica}"
        report = {"replica": replica, "state": state, "url": url, "incarnation": "a", **changes}
        self.collector.take(ReplicaReport.model_validate({**report, "sequence": self._sequence}))

    def job(self, total: int | None, done: int, in_flight: int = 0, state: str = "running") -> None:
        """As its worker writes it now."""
        progress = JobProgress.model_validate(
            {
                "state": state,
                "rows_total": total,
                "rows_done": done,
                "in_flight": in_flight,
                "updated_at": utc_now(),
            }
        )
        write_private(JobPaths(self.paths.jobs / "20261126-1").progress, progress.model_dump_json())

    @property
    def state(self) -> ElasticState:
        found = read_state(self.paths, self.spec.tag)
        assert found is not None
        return found


@in_virtual_time
async def test_a_request_wakes_one_that_is_given_back_when_nobody_comes_again(
    bench: Bench,
) -> None:
    swarm = Swarm(bench, keep_s=60.0)
    await swarm.lives(5)
    assert swarm.platform.started == []
    swarm.door.held = 1
    await swarm.lives(2)
    assert swarm.platform.started == [[0]]
    assert swarm.collector.wanted == {0}
    swarm.door.held = 0  # its client gave up: who comes next need not wait
    await swarm.lives(40)
    swarm.report(0, "ready")
    await swarm.lives(10)
    assert swarm.state.starts_s[0] >= 40  # measured
    assert swarm.platform.released == []
    await swarm.lives(60)
    assert swarm.platform.released == [[0]]
    assert swarm.collector.wanted == frozenset()
    assert swarm.state.wanted == ()


@in_virtual_time
async def test_who_was_turned_away_finds_a_replica_as_he_comes_again(bench: Bench) -> None:
    swarm = Swarm(bench, keep_s=0.0)
    swarm.door.turned_away += 1
    swarm.door.came.set()
    await swarm.lives(200)
    swarm.report(0, "ready")
    await swarm.lives(55)
    assert swarm.platform.released == []
    swarm.activity = Activity(1, 0)  # there he is
    await swarm.lives(10)
    assert swarm.platform.released == [[0]]
    swarm.report(0, "exited")
    swarm.door.turned_away += 1
    await swarm.lives(2)
    swarm.report(0, "ready")
    await swarm.lives(75)  # nobody comes
    assert swarm.platform.released == [[0], [0]]


@in_virtual_time
async def test_a_replica_leaves_the_list_before_it_is_told_to_end(bench: Bench) -> None:
    swarm = Swarm(bench, keep_s=0.0)
    swarm.job(100, 0)
    await swarm.lives(2)
    for one in range(4):
        swarm.report(one, "ready")
    swarm.job(100, 96, in_flight=4)
    await swarm.lives(2)
    assert swarm.collector.serving_replicas() == (0, 1, 2, 3)
    swarm.job(100, 100, state="ended")
    await swarm.lives(2.5)
    assert swarm.collector.serving_replicas() == ()
    assert swarm.platform.released == []  # drivers and router follow first
    await swarm.lives(5)
    assert sorted(one for some in swarm.platform.released for one in some) == [0, 1, 2, 3]


@in_virtual_time
async def test_in_the_tail_what_is_not_needed_gets_no_more_and_ends_with_its_last_request(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    swarm = Swarm(bench, keep_s=60.0)
    requests = {0: 8, 1: 2, 2: 1, 3: 5}

    async def requests_at(urls: Collection[str]) -> dict[str, float]:
        return {url: float(requests[int(url[-1])]) for url in urls}

    monkeypatch.setattr(swarm.collector.gauges, "requests_at", requests_at)
    swarm.job(100, 0)
    await swarm.lives(2)
    for one in range(4):
        swarm.report(one, "ready")
    swarm.job(100, 84, in_flight=16)
    await swarm.lives(8)
    # 16 rows fill two places, should all have to be asked again.
    assert swarm.collector.wanted == {0, 3}
    assert swarm.platform.released == []  # they have requests
    requests[2] = 0
    await swarm.lives(0.6)  # sooner than the next look
    assert swarm.platform.released == [[2]]
    requests |= {0: 0, 3: 0}
    for _ in range(5):
        swarm.job(100, 98, in_flight=2)
        await swarm.lives(1)
    assert swarm.collector.wanted == {1}  # the last rows are there
    assert sorted(swarm.platform.released) == [[0], [2], [3]]
    assert swarm.platform.started == [[0, 1, 2, 3]]
    swarm.job(1000, 98, in_flight=2)  # another job: none that was told to end comes back
    await swarm.lives(1.5)
    assert swarm.platform.started[1:] != []


@in_virtual_time
async def test_a_jobs_end_reaches_the_rule(bench: Bench) -> None:
    swarm = Swarm(bench, keep_s=60.0)
    swarm.job(1000, 0)
    await swarm.lives(2)
    path = JobPaths(swarm.paths.jobs / "20261126-1").progress
    ends = JobProgress.model_validate_json(path.read_text()).model_copy(update={"ends_in_s": 7.5})
    write_private(path, ends.model_dump_json())
    work = await swarm.elasticity._demand.look(0)
    assert [(one.in_s, one.unsent) for one in work.ending] == [(7.5, 1000)]


@pytest.mark.parametrize(("follows_s", "within_s"), [(20.0, 24.0), (None, 66.0)])
def test_the_router_always_has_somebody_that_it_uses_by_its_own_word(
    bench: Bench, follows_s: float | None, within_s: float
) -> None:
    """A router on a busy machine takes a while to use what is new; one that never says so (None)
    is not waited for without end.
    """
    door, replica = "http://127.0.0.1:8999", "http://127.0.0.1:9000"

    @in_virtual_time
    async def run() -> None:
        swarm = Swarm(bench, keep_s=5.0)
        swarm.collector.stand_in = door

        def listed() -> set[str]:
            return {
                one["url"] for one in json.loads(swarm.paths.router_manifest.read_text())["workers"]
            }

        async def turns(of: str, to: str) -> None:
            began = now_s()
            while of in listed():
                assert to in listed() or now_s() - began < 3.0
                if follows_s is not None and now_s() - began >= follows_s:
                    swarm.activity = Activity(0, 0, frozenset({to}))
                assert swarm.platform.released == []
                await asyncio.sleep(0.5)
            assert (follows_s or 60.0) <= now_s() - began < within_s

        swarm.activity = Activity(0, 0, frozenset({door}))
        async with beside(swarm.elasticity.run(), swarm.collector.keep_files()):
            await asyncio.sleep(10.0)
            assert listed() == {door}
            swarm.door.held = 1
            await asyncio.sleep(2.0)
            swarm.report(0, "ready")
            await asyncio.sleep(0.1)
            await turns(door, replica)
            swarm.activity = Activity(0, 0, frozenset({replica}))
            swarm.door.held = 0
            while swarm.collector.wanted:  # noqa: ASYNC110 - virtual time
                await asyncio.sleep(0.2)
            await turns(replica, door)
            await asyncio.sleep(10.0)
            assert swarm.platform.released == [[0]]

    run()


@in_virtual_time
async def test_engines_without_gauges_are_busy_while_anybody_has_a_request(bench: Bench) -> None:
    swarm = Swarm(bench, keep_s=5.0)
    swarm.job(16, 0)
    await swarm.lives(2)
    assert swarm.platform.started == [[0, 1]]
    swarm.report(0, "ready")
    swarm.report(1, "ready")
    for _ in range(60):
        swarm.job(16, 15, in_flight=1)
        await swarm.lives(1)
    assert swarm.platform.released == []


@in_virtual_time
async def test_who_decides_may_be_killed_at_any_time(bench: Bench) -> None:
    swarm = Swarm(bench)
    swarm.job(100, 0)
    await swarm.lives(2)
    assert swarm.platform.started == [[0, 1, 2, 3]]
    swarm.killed_and_started_again()
    assert swarm.collector.wanted == {0, 1, 2, 3}
    await swarm.lives(2)
    assert swarm.platform.started == [[0, 1, 2, 3]]  # they are there
    assert swarm.platform.released == []

    # Between the file and the platform: what it had decided is done.
    written = swarm.state.model_copy(update={"wanted": (0, 1, 2), "asked_at": {}})
    del swarm.platform.there[2]
    write_private(swarm.paths.elastic, written.model_dump_json())
    swarm.killed_and_started_again()
    swarm.job(100, 76)
    await swarm.lives(1.5)
    assert swarm.platform.started[1:] == [[2]]
    assert swarm.platform.released == [[3]]


@in_virtual_time
async def test_what_is_not_known_is_no_reason(bench: Bench) -> None:
    swarm = Swarm(bench)
    swarm.door.held = 1
    await swarm.lives(2)
    swarm.platform.silent = True
    swarm.door.held = 0
    await swarm.lives(3600)
    assert swarm.platform.released == []
    assert swarm.state.wanted == (0,)


@in_virtual_time
async def test_what_cannot_be_started_is_said_and_tried_again(bench: Bench) -> None:
    swarm = Swarm(bench, platform=Platform(refuses=True))
    swarm.door.held = 1
    await swarm.lives(3)
    assert swarm.state.trouble == "nodes may not submit"
    assert swarm.elasticity.why_not() == "no replica can be started: nodes may not submit"
    swarm.platform.refuses = False
    await swarm.lives(60)
    assert swarm.platform.started == [[0]]
    assert swarm.state.trouble == ""
    assert swarm.elasticity.why_not() is None


@in_virtual_time
async def test_a_replica_that_failed_is_replaced_by_another_once_some_served(bench: Bench) -> None:
    swarm = Swarm(bench)
    swarm.door.held = 1
    await swarm.lives(2)
    swarm.report(0, "failed", reason="out of memory")
    await swarm.lives(60)
    assert swarm.platform.started == [[0]]  # what is wrong there may be wrong everywhere
    assert swarm.elasticity.why_not() == "its replicas failed: out of memory"
    await swarm.lives(600)
    swarm.platform.there.pop(0, None)
    assert swarm.platform.started == [[0], [1]]  # it is time to see whether it goes now
    swarm.report(1, "ready")
    await swarm.lives(2)
    swarm.report(1, "failed", reason="its node burns")
    swarm.platform.there.pop(1)
    await swarm.lives(3)
    assert swarm.platform.started == [[0], [1], [2]]


@in_virtual_time
async def test_where_no_other_is_left_a_failed_replica_is_shown_and_tried_again(
    bench: Bench,
) -> None:
    swarm = Swarm(bench)
    swarm.job(400, 0)
    await swarm.lives(2)
    for one in range(4):
        swarm.report(one, "ready")
    await swarm.lives(2)
    for one in range(4):
        swarm.report(one, "failed", reason="the weights are gone")
        swarm.platform.there.pop(one)
    for _ in range(590):
        swarm.job(400, 8)
        await swarm.lives(1)
    # Nobody waits in vain for a swarm that says it is asleep.
    assert swarm.collector.wanted == {0, 1, 2, 3}
    assert swarm.elasticity.why_not() == "its replicas failed: the weights are gone"
    assert swarm.platform.started == [[0, 1, 2, 3]]
    for _ in range(20):
        swarm.job(400, 8)
        await swarm.lives(1)
    assert swarm.platform.started == [[0, 1, 2, 3]] * 2
    # That they failed before says nothing of how they start now.
    assert swarm.elasticity.why_not() is None
    assert swarm.platform.released == []


@in_virtual_time
async def test_a_replica_that_ended_without_a_word_is_missed_where_no_other_is_left(
    bench: Bench,
) -> None:
    swarm = Swarm(bench, least=4)
    swarm.platform.there = dict.fromkeys(range(4), Placed(runs=True))
    await swarm.lives(1)
    for one in range(4):
        swarm.report(one, "ready")
    await swarm.lives(2)
    swarm.report(3, "exited")
    swarm.platform.there.pop(3)
    await swarm.lives(300)
    assert swarm.collector.wanted == {0, 1, 2, 3}  # status shows it as it is
    await swarm.lives(320)
    assert swarm.platform.started == [[3]]


@in_virtual_time
async def test_a_replica_that_has_not_been_told_to_end_yet_is_kept_for_who_comes(
    bench: Bench,
) -> None:
    swarm = Swarm(bench, keep_s=5.0)
    swarm.door.held = 1
    await swarm.lives(2)
    swarm.report(0, "ready")
    swarm.door.held = 0
    while swarm.collector.wanted:
        await swarm.lives(0.5)
    starts = swarm.state.starts_s
    swarm.door.held = 1
    await swarm.lives(1.5)
    assert swarm.collector.serving_replicas() == (0,)  # no other start is paid for
    assert swarm.platform.started == [[0]]
    swarm.door.held = 0
    swarm.activity = Activity(1, 0)
    await swarm.lives(3)
    assert swarm.platform.released == []
    assert swarm.state.starts_s == starts  # that was none
    await swarm.lives(15)
    assert swarm.platform.released == [[0]]
    swarm.door.held = 1  # now it has ended
    await swarm.lives(2)
    assert swarm.platform.started == [[0], [0]]

    # Who decides is killed: whether that has told it to end yet, nobody knows.
    swarm.report(0, "ready")
    swarm.door.held = 0
    while swarm.collector.wanted:
        await swarm.lives(0.5)
    swarm.killed_and_started_again()
    swarm.door.held = 1
    await swarm.lives(2)
    assert swarm.platform.started == [[0], [0], [1]]


@in_virtual_time
async def test_a_job_whose_worker_is_dead_wants_nothing(bench: Bench) -> None:
    swarm = Swarm(bench, keep_s=0.0)
    swarm.job(100, 0)
    path = JobPaths(swarm.paths.jobs / "20261126-1").progress
    old = JobProgress.model_validate_json(path.read_text())
    long_ago = old.model_copy(update={"updated_at": utc_now() - timedelta(minutes=5)})
    write_private(path, long_ago.model_dump_json())
    await swarm.lives(30)
    assert swarm.platform.started == []


@in_virtual_time
async def test_replicas_that_share_a_node_come_and_go_together(bench: Bench) -> None:
    swarm = Swarm(bench, platform=Platform(per_place=2), keep_s=5.0)
    swarm.door.held = 1
    await swarm.lives(2)
    assert swarm.platform.started == [[0]]
    assert swarm.collector.wanted == {0, 1}
    swarm.report(0, "ready")
    swarm.report(1, "ready")
    swarm.door.held = 0
    await swarm.lives(20)
    assert swarm.platform.released == [[0]]
