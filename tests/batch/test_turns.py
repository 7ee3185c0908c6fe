"""Requests that must have nothing beside them, in a run of several workers, in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from batch.mortal_engines import POISON, Engines, Run
from domyn_swarm.batch.run.link import Alone, GoOn, Held, Hold, Order, YourTurn
from domyn_swarm.batch.run.standing import Suspects
from domyn_swarm.batch.run.traffic import Traffic, Turns
from virtual_time import in_virtual_time, now_s


@dataclass
class Office:
    """A coordinator's turns, and links to workers on which messages take their time, in order."""

    delay_s: Callable[[], float] = lambda: 0.0
    workers: list[Desk] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.turns: Turns[int] = Turns(self._say, now_s)
        self._arrives: dict[tuple[int, bool], float] = {}

    def employ(self, suspects: Suspects | None = None) -> Desk:
        desk = Desk(self, len(self.workers), suspects or Suspects())
        self.workers.append(desk)
        self.turns.join(desk.number)
        return desk

    def _say(self, worker: int, order: Order) -> None:
        self.post(worker, down=True, deliver=lambda: self.workers[worker].obey(order))

    def post(self, worker: int, *, down: bool, deliver: Callable[[], None]) -> None:
        before = self._arrives.get((worker, down), 0.0)
        at = max(now_s() + self.delay_s(), before + 1e-6)
        self._arrives[worker, down] = at
        asyncio.get_running_loop().call_at(at, deliver)


class Desk:
    """A worker's end."""

    def __init__(self, office: Office, number: int, suspects: Suspects) -> None:
        self.number = number
        self.traffic = Traffic()
        self.traffic.colleagues = self
        self.suspects = suspects
        self._office = office

    def want_turn(self, wish: int) -> None:
        self._report(Alone(wish, self.suspects.rest_s(now_s())))

    def say_held(self, number: int) -> None:
        self._report(Held(number, self.suspects.rest_s(now_s())))

    def _report(self, report: Alone | Held) -> None:
        turns = self._office.turns
        self._office.post(self.number, down=False, deliver=lambda: turns.hear(self.number, report))

    def obey(self, order: Order) -> None:
        match order:
            case Hold(number=number):
                self.traffic.hold(number)
            case YourTurn(wish=wish, rest_s=rest_s):
                self.traffic.take_turn(wish, rest_s)
            case GoOn():
                self.traffic.go_on()


@pytest.mark.parametrize("workers", [2, 4])
@pytest.mark.parametrize("engines", [1, 3])
def test_rows_that_kill_engines_in_several_workers_cost_no_other_row_anything(
    workers: int, engines: int
) -> None:
    @in_virtual_time
    async def run() -> None:
        mortal = Engines(engines, restart_s=5.0)
        office = Office(lambda: random.uniform(0.0, 0.01))
        runs = []
        for _ in range(workers):
            desk = office.employ()
            runs.append(Run(mortal, 10, suspects=desk.suspects, traffic=desk.traffic))
        rows = [
            [f"{POISON if at == 20 else 'row'} {number}.{at}" for at in range(60)]
            for number in range(workers)
        ]
        await asyncio.gather(*(one(asked) for one, asked in zip(runs, rows, strict=True)))
        for number, one in enumerate(runs):
            assert one.failed == {f"{POISON} {number}.20": "DeadlyRow"}
            assert len(one.outcomes) == 60
        assert mortal.deaths <= 3 * workers
        assert mortal.beside_poison.count(0) >= workers  # each was alone at last

    run()


@pytest.mark.parametrize("seed", range(12))
def test_who_is_alone_is_alone_among_all_and_everybody_comes_to_an_end(seed: int) -> None:
    @in_virtual_time
    async def run() -> None:
        chance = random.Random(seed)
        office = Office(lambda: chance.choice([0.0, 0.001, 0.5, 3.0]))
        at_once = 0

        async def request(desk: Desk) -> None:
            nonlocal at_once
            alone = chance.random() < 0.1
            async with desk.traffic.alone() if alone else desk.traffic.beside():
                at_once += 1
                try:
                    assert not alone or at_once == 1
                    await asyncio.sleep(chance.uniform(0.0, 2.0))
                    assert not alone or at_once == 1
                finally:
                    at_once -= 1

        async def work(desk: Desk) -> None:
            for _ in range(30):
                gives_up = chance.random() < 0.1  # maybe as it waits for its turn
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(request(desk), 1.0 if gives_up else None)

        async def employed(nth: int) -> None:
            await asyncio.sleep(chance.uniform(0.0, 20.0) if nth > 2 else 0.0)
            desk = office.employ()
            rows = asyncio.Event()  # they come behind a `Hold` that is in force
            office.post(desk.number, down=True, deliver=rows.set)
            await rows.wait()
            await asyncio.gather(work(desk), work(desk))
            if nth % 2:
                office.turns.leave(desk.number)

        await asyncio.wait_for(asyncio.gather(*map(employed, range(6))), 100_000)

    run()


@in_virtual_time
async def test_a_worker_that_dies_with_the_turn_gives_it_up() -> None:
    office = Office()
    first, second = office.employ(), office.employ()
    began = asyncio.Event()

    async def for_ever() -> None:
        async with first.traffic.alone():
            began.set()
            await asyncio.sleep(1e9)

    dying = asyncio.create_task(for_ever())
    await began.wait()
    waiting = asyncio.create_task(_once(second))
    await asyncio.sleep(5)
    assert not waiting.done()
    office.turns.leave(first.number)  # as the coordinator does when its process has ended
    await asyncio.wait_for(waiting, 1)
    dying.cancel()


@in_virtual_time
async def test_a_turn_waits_for_dead_engines_that_others_know_to_leave() -> None:
    office = Office()
    first, second = office.employ(), office.employ()
    second.suspects.died_under("http://e:1", 0.0, now_s())
    died_at = now_s()
    async with first.traffic.alone():
        assert first.traffic.turn_from - died_at == pytest.approx(3.0)


async def _once(desk: Desk) -> None:
    async with desk.traffic.beside():
        pass
