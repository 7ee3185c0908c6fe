"""Which row kills engines: found by what was in flight, in virtual time."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from batch.mortal_engines import POISON, Engines, Run
from domyn_swarm.batch.checkpoint.checkpoint_folder import forget_suspects
from domyn_swarm.batch.outcomes.row_outcomes import Row
from domyn_swarm.batch.run.gate import ALONE
from domyn_swarm.batch.run.standing import Death, Suspects
from domyn_swarm.net.request_errors import ConnectionBroken
from patience import until_async
from virtual_time import in_virtual_time


def prompts(count: int, *poisonous: int) -> list[str]:
    return [f"{POISON if at in poisonous else 'row'} {at}" for at in range(count)]


@pytest.mark.parametrize("routed", [True, False])
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("slots", [1, 3, 40])
@pytest.mark.parametrize("dies_after_s", [0.0, 1.0])
def test_a_row_that_kills_its_engine_costs_three_of_them_and_no_other_row_anything(
    count: int, slots: int, dies_after_s: float, routed: bool
) -> None:
    @in_virtual_time
    async def run() -> None:
        engines = Engines(count if routed else 1, routed=routed, dies_after_s=dies_after_s)
        work = Run(engines, slots)
        await work(prompts(100, 30))
        assert work.failed == {f"{POISON} 30": "DeadlyRow"}
        assert "died three times" in str(work.outcomes[f"{POISON} 30"])
        assert engines.deaths == 3
        assert engines.beside_poison[-1] == 0  # it was alone
        assert work.tally.retries == 0
        assert max(trace.failures for trace in work.took.values()) == 0
        assert ALONE in work.states

    run()


@pytest.mark.parametrize("slots", [3, 40])
@pytest.mark.parametrize("dies_after_s", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("restart_s", [0.02, 0.6])
def test_so_it_does_where_the_engine_is_back_before_it_is_asked(
    slots: int, dies_after_s: float, restart_s: float
) -> None:
    @in_virtual_time
    async def run() -> None:
        engines = Engines(1, routed=False, dies_after_s=dies_after_s, restart_s=restart_s)
        work = Run(engines, slots)
        await work(prompts(100, 30))
        assert work.failed == {f"{POISON} 30": "DeadlyRow"}
        assert engines.deaths == 3
        assert work.tally.retries == 0

    run()


@in_virtual_time
async def test_a_connection_that_breaks_alone_is_no_death() -> None:
    engines = Engines(1, routed=False)
    work = Run(engines, 8)
    cut: list[str] = []

    def judge(prompt: str) -> None:
        if prompt in ("row 20", "row 60") and cut.count(prompt) < 4:
            cut.append(prompt)
            raise ConnectionBroken("cut by a proxy")

    engines.judge = judge
    await work(prompts(100))
    assert work.failed == {}
    assert (work.tally.retries, len(work.suspects), engines.deaths) == (8, 0, 0)
    assert ALONE not in work.states


@in_virtual_time
async def test_each_of_several_such_rows_is_found() -> None:
    engines = Engines(4, restart_s=5.0)
    work = Run(engines, 40)
    bad = (3, 10, 60, 61, 62)
    await work(prompts(200, *bad))
    assert work.failed == {f"{POISON} {at}": "DeadlyRow" for at in bad}
    assert engines.deaths <= 3 * len(bad)
    assert {engines.executed[f"{POISON} {at}"] for at in bad} <= {1, 2, 3}


@in_virtual_time
async def test_few_are_left_to_be_asked_alone() -> None:
    """All 36 that were beside it were in flight once as an engine died, but few of them twice."""
    engines = Engines(1)
    work = Run(engines, 36)
    await work(prompts(60, 20))
    assert engines.beside_poison == [35, 5, 0]


@in_virtual_time
async def test_an_engine_that_dies_of_something_else_makes_nobody_wait() -> None:
    engines = Engines(2, restart_s=5.0)
    work = Run(engines, 16)
    rows = prompts(100)
    engines.judge = lambda prompt: _dies_once(engines, prompt)
    await work(rows)
    assert work.failed == {}
    assert ALONE not in work.states
    assert not len(work.suspects)


def _dies_once(engines: Engines, prompt: str) -> None:
    if prompt == "row 50" and not engines.deaths:
        engines._die(engines.engines[0])


def test_the_next_run_goes_on_with_what_this_one_knows(tmp_path: Path) -> None:

    @in_virtual_time
    async def first() -> None:
        engines = Engines(2)
        suspects = Suspects()
        suspects.keep_in(tmp_path)
        work = Run(engines, 20, suspects=suspects)
        asking = asyncio.create_task(work(prompts(40, 7)))
        await until_async(lambda: engines.deaths == 2, every_s=0.1)
        await asyncio.sleep(1.0)  # they hear of it
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)

    @in_virtual_time
    async def second() -> None:
        engines = Engines(2)
        suspects = Suspects()
        suspects.keep_in(tmp_path)
        assert len(suspects) > 0
        work = Run(engines, 20, suspects=suspects)
        await work(prompts(40, 7))
        assert engines.deaths == 1
        assert work.failed == {f"{POISON} 7": "DeadlyRow"}

    first()
    second()
    forget_suspects(tmp_path)
    fresh = Suspects()
    fresh.keep_in(tmp_path)
    assert not len(fresh)


ROWS = [Row(at, bytes([at]) * 16, None) for at in range(4)]


def test_who_was_in_flight_and_who_could_not_connect() -> None:
    suspects = Suspects()
    first = suspects.died_under("a", sent_at=9.0, now=10.0)
    assert first is not None
    assert suspects.died_under("a", sent_at=9.9, now=10.01) == first._replace(last_heard_at=10.0)
    assert suspects.died_under("a", sent_at=10.5, now=10.51) is None  # it was dead by then
    assert suspects.died_under("a", sent_at=11.0, now=11.01) is None
    assert suspects.died_under("b", sent_at=10.6, now=10.61) is not None  # another one
    later = suspects.died_under("a", sent_at=60.0, now=61.0)  # it had come back
    assert later is not None
    assert later.heard_at == 61.0
    assert suspects.died_under("a", sent_at=61.2, now=61.3, alive=True) is not None


@pytest.mark.parametrize(
    ("asked_at", "sent_at", "again"),
    [
        (10.4, 10.5, True),  # it was back, and died again
        (10.4, 10.3, False),  # sent before
        (9.9, 10.5, False),  # what it was asked before it died says nothing
        (None, 10.5, False),
    ],
)
def test_a_replica_that_proved_itself_since_its_death_has_died_again(
    asked_at: float | None, sent_at: float, *, again: bool
) -> None:
    suspects = Suspects()
    first = suspects.died_under("a", sent_at=9.0, now=10.0)
    assert suspects.died_under("a", sent_at=10.2, now=10.3) is None  # others hear of it meanwhile
    if asked_at is not None:
        suspects.proved("a", asked_at)
    found = suspects.died_under("a", sent_at=sent_at, now=10.7)
    assert (found is not None) is again
    if again:
        assert found != first
        assert suspects.died_under("a", sent_at=10.6, now=10.71) == found  # one death for all
        assert suspects.died_under("a", sent_at=10.9, now=11.0) is None  # until it proves itself
        suspects.proved("a", 11.1)
        assert suspects.died_under("a", sent_at=11.2, now=11.3) is not None


def test_one_death_counts_once_however_much_a_row_had_in_flight() -> None:
    suspects = Suspects()
    assert suspects.mark(ROWS[:1], Death("a", 1.0, 1.0)) == 1
    assert suspects.mark(ROWS[:1], Death("a", 1.0, 1.5)) == 1
    assert suspects.mark(ROWS[:1], Death("a", 9.0, 9.0)) == 2
    assert suspects.mark(ROWS[:2], Death("b", 9.0, 9.0)) == 3
    assert suspects.deaths_under(ROWS[1:2]) == 1
    suspects.answered(ROWS[1:2])
    assert suspects.deaths_under(ROWS[1:2]) == 0


def test_a_file_that_was_cut_off_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    (tmp_path / "suspects.txt").write_text(f"{'01' * 16}\n{'02' * 16}\n{'01' * 16}\n0304")
    suspects = Suspects()
    suspects.keep_in(tmp_path)
    assert len(suspects) == 2
    assert suspects.deaths_under([Row(0, b"\x01" * 16, None)]) == 2
