"""How rows are shared by workers that are slow, die, stay away or cannot go on, in virtual time.

The workers are coroutines; where it matters what a worker does with its rows, it is the real one.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from batch.coroutine_workers import (
    GRACE_S,
    KEYS,
    Behaviour,
    Died,
    Run,
    Worker,
    real,
    scripted,
    source,
)
from domyn_swarm.batch.checkpoint import job_store
from domyn_swarm.batch.checkpoint.frames import FrameRef
from domyn_swarm.batch.outcomes.tally import Counters, Tally
from domyn_swarm.batch.run.asking import RetryPolicy
from domyn_swarm.batch.run.dispatch import Capacity, Dispatch
from domyn_swarm.batch.run.link import Counted, Failed, Link, Order, Report, Rows
from domyn_swarm.batch.run.pending import PendingRows, joined
from domyn_swarm.batch.run.standing import FailureLimit
from domyn_swarm.batch.run.worker_loop import RangeWorker
from domyn_swarm.batch.run.worker_processes import WorkPlan
from domyn_swarm.errors import JobError, PlatformError, TooManyFailures
from virtual_time import in_virtual_time, now_s

REPLICAS = ("http://fast", "http://slow")


@pytest.mark.parametrize("rows", [0, 1, 3, 1000])
def test_every_row_is_asked_once(tmp_path: Path, rows: int) -> None:
    @in_virtual_time
    async def run() -> None:
        whole = Run(tmp_path, lambda nth: scripted(row_s=0.01 * (nth + 1)), rows=rows)
        await whole.run()
        assert whole.asked == Counter(range(rows))
        assert whole.settled == rows
        assert whole.tally.rows_answered == rows

    run()


@in_virtual_time
async def test_the_end_waits_for_no_slow_worker(tmp_path: Path) -> None:
    """One is fifty times slower than the others: in the end it holds a row or two, not a share."""
    whole = Run(tmp_path, lambda nth: scripted(row_s=5.0 if nth == 0 else 0.1), rows=2000)
    began = now_s()
    await whole.run()
    alone_s = 2000 * 0.1 / 3
    assert now_s() - began < alone_s + 20


@in_virtual_time
async def test_however_many_rows_a_worker_wants_it_gets_few_towards_the_end(tmp_path: Path) -> None:
    """Each has room for all rows, and one is five times slower than the others."""
    behaviours = [scripted(row_s=0.5), *[scripted(row_s=0.1)] * 3]
    whole = Run(tmp_path, lambda nth: behaviours[nth], rows=2000, limit=8000)
    began = now_s()
    await whole.run()
    together_s = 2000 / (3 / 0.1 + 1 / 0.5)
    assert now_s() - began < together_s + 2
    heard = [order for one in whole.started for order in one.heard if isinstance(order, Rows)]
    heard.sort(key=lambda order: order.number)
    sizes = [len(order.pending().ordinals) for order in heard]
    assert sizes[0] > 100  # as long as there are many
    assert sizes[-10:] == [1] * 10


@in_virtual_time
async def test_slow_rows_hold_nothing_back_that_another_worker_could_do(tmp_path: Path) -> None:
    """With the real worker: what it has asked for beside rows that take an hour goes on."""
    last: list[float] = []

    def row_s(item: str) -> float:
        last.append(now_s())
        return 3600.0 if int(item[1:]) < 4 else 0.1

    whole = Run(tmp_path, lambda _nth: real(row_s), rows=300, workers=2, limit=8)
    began = now_s()
    await whole.run()
    assert max(last) - began < 60
    assert whole.asked == Counter(range(300))


@pytest.mark.parametrize(("workers", "limit"), [(3, 20), (4, 2), (1, 7)])
def test_concurrency_is_the_total_of_all_workers_and_is_used(
    tmp_path: Path, workers: int, limit: int
) -> None:
    @in_virtual_time
    async def run() -> None:
        whole = Run(tmp_path, lambda _nth: real(lambda _: 1.0), rows=400, workers=workers)
        whole.coordinator.set_limit(limit)
        await whole.run()
        assert whole.most_at_once == limit
        assert len(whole.started) == min(workers, limit)
        assert whole.settled == 400

    run()


@in_virtual_time
async def test_a_limit_that_moves_is_never_exceeded_by_all_together(tmp_path: Path) -> None:
    whole = Run(tmp_path, lambda _nth: real(lambda _: 1.0), rows=4000, workers=4, limit=None)
    seen: list[tuple[int, int]] = []

    async def steer() -> None:
        for limit in (40, 8, 24, 4, 64):
            whole.coordinator.set_limit(limit)
            await asyncio.sleep(10)  # those above it are back by then
            whole.most_at_once = whole.at_once
            await asyncio.sleep(10)
            seen.append((limit, whole.most_at_once))

    steering = asyncio.create_task(steer())
    await whole.run()
    await steering
    assert [most for _, most in seen] == [limit for limit, _ in seen]


@pytest.mark.parametrize("dies_at", [0, 1, 5, 100])
def test_a_worker_that_dies_costs_the_row_in_flight_and_is_replaced(
    tmp_path: Path, dies_at: int
) -> None:
    @in_virtual_time
    async def run() -> None:
        whole = Run(
            tmp_path, lambda nth: scripted(dies_at=dies_at if nth == 1 else None), rows=1000
        )
        await whole.run()
        assert whole.kept == Counter(range(1000))  # none twice: those it had kept were looked up
        assert whole.settled == 1000
        assert len(whole.started) == 5

    run()


@in_virtual_time
async def test_what_a_dead_worker_settled_is_known_whatever_the_order_of_rows(
    tmp_path: Path,
) -> None:
    whole = Run(tmp_path, lambda nth: scripted(dies_at=5 if nth == 1 else None), rows=1000)
    order = np.random.default_rng(1).permutation(1000)
    shuffled = joined(list(source(1000))).some(order)
    await whole.run(shuffled.some(np.arange(at, at + 50)) for at in range(0, 1000, 50))
    assert whole.kept == Counter(range(1000))
    assert whole.settled == 1000


@in_virtual_time
async def test_a_worker_that_ends_well_with_rows_in_its_hands_is_replaced_as_well(
    tmp_path: Path,
) -> None:
    whole = Run(tmp_path, lambda nth: scripted(ends_at=7 if nth == 0 else None), rows=200)
    await whole.run()
    assert whole.kept == Counter(range(200))
    assert len(whole.started) == 5


@in_virtual_time
async def test_a_worker_killed_in_the_middle_of_a_row_has_that_row_asked_again(
    tmp_path: Path,
) -> None:
    whole = Run(tmp_path, lambda _nth: scripted(row_s=1.0), rows=100)
    running = asyncio.create_task(whole.run())
    await asyncio.sleep(3.5)
    whole.started[2].kill()
    await running
    assert whole.kept == Counter(range(100))
    assert sorted(whole.asked.values())[-2:] == [1, 2]


@pytest.mark.parametrize(("deaths", "ends"), [(10, False), (11, True)])
def test_ten_deaths_without_a_settled_row_are_an_accident_and_more_are_not(
    tmp_path: Path, deaths: int, ends: bool
) -> None:
    @in_virtual_time
    async def run() -> None:
        whole = Run(tmp_path, lambda nth: scripted(dies_at=0 if nth < deaths else None), workers=1)
        if ends:
            with pytest.raises(JobError, match=r"11 worker processes that died.*exit code 9"):
                await whole.run()
        else:
            await whole.run()
        assert whole.settled == whole.kept.total() == (0 if ends else 1000)

    run()


@in_virtual_time
async def test_workers_that_are_preempted_for_days_are_replaced_as_often(tmp_path: Path) -> None:
    """Each settles some rows before; now and then all are taken at once."""
    whole = Run(tmp_path, lambda _nth: scripted(row_s=60.0, dies_at=10), rows=3000, workers=8)
    await whole.run()
    assert whole.kept == Counter(range(3000))
    assert len(whole.started) > 200


@in_virtual_time
async def test_all_workers_taken_at_once_before_their_first_row_are_replaced(
    tmp_path: Path,
) -> None:
    behaviours = {True: scripted(dies_at=0), False: scripted()}
    whole = Run(tmp_path, lambda nth: behaviours[nth < 20], rows=200, workers=20, limit=40)
    await whole.run()
    assert whole.kept == Counter(range(200))


@in_virtual_time
async def test_a_row_that_kills_its_worker_ends_the_run_though_others_go_on(tmp_path: Path) -> None:
    def kills(ordinal: int) -> None:
        if ordinal == 70:
            raise Died

    whole = Run(tmp_path, lambda _nth: scripted(row=kills), rows=100_000)
    with pytest.raises(JobError, match=r"Row 70\b.* with 11 worker .*exit code 9"):
        await whole.run()
    assert whole.asked[70] == 11
    assert max(whole.kept.values()) == 1


@in_virtual_time
async def test_where_no_successor_settles_a_row_the_others_go_on_alone(tmp_path: Path) -> None:
    """As with a node that is broken, and free all the time."""

    async def dies(_worker: Worker, link: Link[Order], _run: Run) -> int:
        await anext(link.listen())
        return 1

    whole = Run(
        tmp_path, lambda nth: scripted(row_s=10.0) if nth < 3 else dies, rows=1000, workers=4
    )
    await whole.run()
    assert whole.kept == Counter(range(1000))
    assert len(whole.started) == 3 + 11


@in_virtual_time
async def test_for_a_dead_workers_rows_only_its_own_files_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others' may hold a hundred million rows."""
    read: list[str] = []
    scan = job_store.scan_descriptor

    def noted(descriptor: int) -> list[FrameRef]:
        read.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        return scan(descriptor)

    whole = Run(tmp_path, lambda nth: scripted(dies_at=20 if nth == 1 else None))
    settle = whole.coordinator.run

    async def settle_and_note(rows: Iterator[PendingRows]) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(job_store, "scan_descriptor", noted)
            await settle(rows)

    monkeypatch.setattr(whole.coordinator, "run", settle_and_note)
    await whole.run()
    assert len({name.split("-")[1] for name in read}) == 1
    assert whole.kept == Counter(range(1000))


@in_virtual_time
async def test_what_each_replica_did_is_told_seldom_and_whole(tmp_path: Path) -> None:
    """A coordinator of many workers would do little else than read it."""
    told: list[bool] = []

    def counted(link: Link[Order], tally: Tally) -> None:
        say = link.say

        def noted(message: Order | Report) -> None:
            if isinstance(message, Counted):
                told.append(message.replicas is not None)
            say(message)

        link.say = noted  # type: ignore[method-assign]

    def row_s(_item: str) -> float:
        for tally in tallies:
            tally.replies.count(0.5, 1, 2, "http://replica")
        return 1.0

    tallies: list[Tally] = []

    async def work(worker: Worker, link: Link[Order], run: Run) -> int:
        tallies.append(Tally())
        counted(link, tallies[-1])
        return await real(row_s, tallies[-1])(worker, link, run)

    whole = Run(tmp_path, lambda _nth: work, rows=400, workers=1, limit=4)
    await whole.run()
    share = whole.tally.replies.sums.replicas["http://replica"]
    assert share.answers == whole.tally.replies.sums.latency._buckets.total() == 400
    assert len(told) > 350
    assert sum(told) < 25


@in_virtual_time
async def test_workers_that_are_told_to_stop_have_their_grace_and_are_killed_after_it(
    tmp_path: Path,
) -> None:
    def behaviour(nth: int) -> Behaviour:
        late_s = (1.0, GRACE_S, GRACE_S + 10.0, 3600.0)[nth]
        return scripted(row_s=0.1, on_stop=lambda: asyncio.sleep(late_s))

    whole = Run(tmp_path, behaviour, rows=100_000, workers=4)
    asyncio.get_running_loop().call_later(60, whole.coordinator.stop)
    began = now_s()
    await whole.run()
    killed = [worker.killed_at for worker in whole.started]
    assert killed[:3] == [None, None, None]
    assert killed[3] is not None
    assert killed[3] - began == pytest.approx(60 + GRACE_S + 15, abs=2)
    assert whole.settled == whole.kept.total() > 0
    assert max(whole.kept.values()) == 1
    assert len(whole.started) == 4  # nobody is replaced any more


@in_virtual_time
async def test_without_room_for_a_replacement_the_others_go_on(tmp_path: Path) -> None:
    async def may_start(attempt: int) -> None:
        if attempt >= 4:
            await _refuse(attempt)

    whole = Run(
        tmp_path, lambda nth: scripted(dies_at=9 if nth == 0 else None), may_start=may_start
    )
    await whole.run()
    assert whole.kept == Counter(range(1000))
    assert len(whole.started) == 4


@in_virtual_time
async def test_without_room_for_a_single_worker_the_run_ends(tmp_path: Path) -> None:
    with pytest.raises(PlatformError, match="no room"):
        await Run(tmp_path, lambda _: scripted(), may_start=_refuse).run()


async def _refuse(_attempt: int) -> None:
    await asyncio.sleep(60)
    raise PlatformError("no room", hint="")


@in_virtual_time
async def test_a_worker_that_waits_for_room_for_hours_is_not_waited_for(tmp_path: Path) -> None:
    async def may_start(attempt: int) -> None:
        await asyncio.sleep(0 if attempt < 2 else 24 * 3600)

    whole = Run(tmp_path, lambda _nth: scripted(row_s=0.1), may_start=may_start)
    began = now_s()
    await whole.run()
    assert now_s() - began < 1000 * 0.1 / 2 + 30
    assert whole.kept == Counter(range(1000))


@in_virtual_time
async def test_a_worker_that_comes_late_gets_its_share(tmp_path: Path) -> None:
    async def may_start(attempt: int) -> None:
        await asyncio.sleep(0 if attempt < 1 else 20)

    whole = Run(
        tmp_path,
        lambda _nth: real(lambda _: 1.0),
        rows=1000,
        workers=2,
        limit=10,
        may_start=may_start,
    )
    await whole.run()
    assert len(whole.started) == 2
    assert whole.most_at_once == 10
    assert whole.asked == Counter(range(1000))


@in_virtual_time
async def test_what_one_worker_cannot_do_no_other_is_asked_to(tmp_path: Path) -> None:
    async def fails(_worker: Worker, link: Link[Order], _run: Run) -> int:
        await anext(link.listen())
        link.say(Failed("Cannot write the checkpoint: the disk is full.", "Make room."))
        return 1

    whole = Run(tmp_path, lambda nth: fails if nth == 1 else scripted())
    with pytest.raises(JobError, match="the disk is full"):
        await whole.run()
    assert len(whole.started) == 4
    assert whole.settled == whole.kept.total()


@in_virtual_time
async def test_rows_that_fail_wholesale_end_the_run(tmp_path: Path) -> None:
    async def fails(worker: Worker, link: Link[Order], _run: Run) -> int:
        orders = link.listen()
        await anext(orders)
        for failed in range(1, 100):
            failures = {"RequestRefused: HTTP #": failed}
            counters = Counters(rows_failed=failed, failures=failures)
            link.say(Counted(counters, [], 4, 4))
            await asyncio.sleep(1)
        return 0

    whole = Run(tmp_path, lambda _nth: fails, failure_limit=FailureLimit())
    began = now_s()
    with pytest.raises(TooManyFailures, match=r"5\d rows failed and 0 were answered"):
        await whole.run()
    assert now_s() - began < 14 + GRACE_S + 16


@in_virtual_time
async def test_a_checkpoint_that_another_driver_took_over_ends_the_run(tmp_path: Path) -> None:
    whole = Run(tmp_path, lambda _nth: scripted())

    def taken_over() -> None:
        (whole.checkpoint.folder / "lease-000002.json").write_text("{}")
        whole.checkpoint._lease.beat()

    asyncio.get_running_loop().call_later(5, taken_over)
    with pytest.raises(JobError, match="Another driver took over"):
        await whole.run()


@in_virtual_time
async def test_the_run_is_paused_while_a_worker_says_so(tmp_path: Path) -> None:
    async def pauses(worker: Worker, link: Link[Order], run: Run) -> int:
        link.say(Counted(Counters(paused="the endpoint does not answer"), [], 4, 4))
        await asyncio.sleep(600)
        link.say(Counted(Counters(), [], 4, 4))
        return await scripted()(worker, link, run)

    whole = Run(tmp_path, lambda nth: pauses if nth == 0 else scripted(row_s=2.0), 1500)
    seen: list[str | None] = []
    for at in (300, 640):
        asyncio.get_running_loop().call_later(at, lambda: seen.append(whole.tally.paused))
    await whole.run()
    assert seen == ["the endpoint does not answer", None]


def at_two_replicas(placed: list[Dispatch]) -> Behaviour:
    """The real worker, whose requests go to one of two replicas themselves, a second each."""

    async def work(_worker: Worker, link: Link[Order], run: Run) -> int:
        dispatch = Dispatch("least_load")
        placed.append(dispatch)
        for url in REPLICAS:
            dispatch.offer(url)

        async def transform(items: list[str]) -> list[str]:
            run.asked.update(int(item[1:]) for item in items)
            url = dispatch.take(b"{}")
            assert url is not None
            run.at_once += 1
            try:
                await asyncio.sleep(1.0)
                dispatch.replied(url, 200)
            finally:
                run.at_once -= 1
                dispatch.release(url)
            return items

        plan = WorkPlan(run.policy, RetryPolicy(), encode=lambda *_: b"{}", sync_s=5.0)
        worker = RangeWorker(link, KEYS, Tally())
        worker.placing = dispatch
        await worker.run(transform, plan)
        return 0

    return work


def in_flight(placed: list[Dispatch]) -> Counter[str]:
    there = Counter[str]()
    for dispatch in placed:
        there.update({url: at.in_flight for url, at in dispatch.at_replicas().items()})
    return there


@in_virtual_time
async def test_workers_share_the_limit_of_each_replica_and_report_what_is_there(
    tmp_path: Path,
) -> None:
    placed: list[Dispatch] = []
    whole = Run(tmp_path, lambda _nth: at_two_replicas(placed), rows=4000, workers=3, limit=None)
    fast, slow = REPLICAS

    async def steer() -> None:
        await asyncio.sleep(3)
        for more, less in ((60, 30), (20, 70)):
            capacities = {fast: Capacity(more, False), slow: Capacity(less, False)}
            whole.coordinator.set_capacities(capacities)
            whole.coordinator.set_limit(more + less)
            await asyncio.sleep(10)
            moments = []
            for _ in range(9):  # at some all are between two requests
                await asyncio.sleep(0.13)
                moments.append(in_flight(placed))
            there = max(moments, key=Counter.total)
            assert there[fast] == pytest.approx(more, abs=4)
            assert there[slow] == pytest.approx(less, abs=4)
            reported = whole.coordinator.at_replicas()
            assert all(0 < at.in_flight <= more + less for at in reported.values())
            before = sum(at.answered for at in reported.values())
            whole.started[0].kill()  # what it did goes on to count
            await asyncio.sleep(5)
            after = sum(at.answered for at in whole.coordinator.at_replicas().values())
            assert after > before

    steering = asyncio.create_task(steer())
    await whole.run()
    await steering
    assert set(whole.asked) == set(range(4000))
