"""When a job asks what became of its swarm, and what it makes of the answer: in virtual time."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from domyn_swarm.backends.endpoint.view import Ended
from domyn_swarm.backends.protocols import ServingHandle
from domyn_swarm.errors import PlatformUnavailable
from domyn_swarm.jobs.worker_program import SwarmFate
from domyn_swarm.model import utc_now
from domyn_swarm.paths import SwarmPaths, write_private
from virtual_time import VirtualClock, in_virtual_time

DAY_S = 86_400.0


class Platform:
    """Says what a test tells it to; when it was asked."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.answer: str | Exception | None = None
        self.asked: list[float] = []

    def lost(self, _handle: ServingHandle) -> str | None:
        self.asked.append(self.clock.monotonic())
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Bench:
    def __init__(self, folder: Path) -> None:
        self.clock = VirtualClock()
        self.platform = Platform(self.clock)
        self.paths = SwarmPaths(folder)
        self.handle = ServingHandle(platform="slurm", tag="demo.1", swarm_dir=str(folder))
        self.fate = SwarmFate(self.handle.model_dump(mode="json"), self.clock, self.platform.lost)

    async def called(self, for_s: float, every_s: float = 5.0) -> str | None:
        """As by a gate that knocks in vain; the first answer."""
        until = self.clock.monotonic() + for_s
        while self.clock.monotonic() < until:
            why = await self.fate()
            if why is not None:
                return why
            self.clock.sleep(every_s)
        return None


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@in_virtual_time
async def test_the_platform_is_not_asked_for_an_endpoint_that_moves(bench: Bench) -> None:
    bench.platform.answer = "the endpoint's job was cancelled"
    assert await bench.called(14.0) is None
    assert bench.platform.asked == []
    why = await bench.called(10.0)
    assert why == "The swarm has failed: the endpoint's job was cancelled"


@in_virtual_time
async def test_an_endpoint_that_waits_for_a_day_is_asked_for_every_five_minutes_or_less(
    bench: Bench,
) -> None:
    assert await bench.called(DAY_S) is None
    pauses_s = [later - earlier for earlier, later in pairwise(bench.platform.asked)]
    assert pauses_s[0] < 60.0
    assert all(300.0 <= pause_s <= 460.0 for pause_s in pauses_s[6:])


@in_virtual_time
async def test_what_answered_meanwhile_and_is_away_again_is_asked_for_anew(bench: Bench) -> None:
    await bench.called(DAY_S)
    bench.clock.sleep(600.0)
    bench.platform.asked.clear()
    began = bench.clock.monotonic()
    await bench.called(60.0)
    assert 15.0 <= bench.platform.asked[0] - began <= 20.0


@pytest.mark.parametrize("silence", [PlatformUnavailable("away"), OSError("stale")])
def test_a_platform_that_does_not_answer_is_asked_again(bench: Bench, silence: Exception) -> None:
    @in_virtual_time
    async def run() -> None:
        bench.platform.answer = silence
        assert await bench.called(3600.0) is None
        bench.platform.answer = "it was cancelled"
        assert await bench.called(600.0) == "The swarm has failed: it was cancelled"

    run()


@pytest.mark.parametrize(("tag", "ends"), [("demo.1", True), ("demo.0", False)])
def test_a_swarm_that_was_stopped_says_so_in_its_folder(
    bench: Bench, tag: str, *, ends: bool
) -> None:
    @in_virtual_time
    async def run() -> None:
        ended = Ended(tag=tag, by="down", reason="somebody stopped it", at=utc_now())
        write_private(bench.paths.ended, ended.model_dump_json())
        why = await bench.called(60.0)
        assert why == ("The swarm has ended: somebody stopped it" if ends else None)

    run()
