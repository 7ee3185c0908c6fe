"""The limiter against simulated servers, in virtual time."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import pytest

from domyn_swarm.batch.run.kv_cliff import PAUSE, PAUSE_MOST
from domyn_swarm.batch.run.limiter import Limiter, Window
from domyn_swarm.engine_load import EngineLoad


@dataclass
class Server:
    """`slots` requests at once, `service_s` each; the rest waits. Latency follows Little's law."""

    slots: int
    service_s: float = 0.5
    limiters: list[Limiter] = field(default_factory=list)

    def step(self, *, gauges: bool, seconds: float = 2.0) -> None:
        offered = sum(limiter.limit for limiter in self.limiters)
        running = min(offered, self.slots)
        rate = running / self.service_s
        for limiter in self.limiters:
            share = limiter.limit / offered
            window = Window(
                seconds,
                round(rate * share * seconds),
                0,
                limiter.limit,
                EngineLoad(running, offered - running) if gauges else None,
            )
            limiter.judge(window)


@pytest.mark.parametrize("gauges", [True, False])
@pytest.mark.parametrize("slots", [1, 4, 64, 300, 2000])
def test_it_finds_the_knee_and_stays(slots: int, gauges: bool) -> None:
    limiter = Limiter()
    server = Server(slots, limiters=[limiter])
    for _ in range(120):
        server.step(gauges=gauges)
    seen = []
    for _ in range(60):
        server.step(gauges=gauges)
        seen.append(limiter.limit)
    typical = sorted(seen)[len(seen) // 2]
    assert 0.97 * slots <= typical <= max(1.6 * slots, slots + 7)
    assert sum(min(limit, slots) for limit in seen) >= 0.97 * slots * len(seen)


@pytest.mark.parametrize("gauges", [True, False])
def test_it_climbs_quickly(gauges: bool) -> None:
    limiter = Limiter()
    server = Server(1000, limiters=[limiter])
    for _ in range(12):
        server.step(gauges=gauges)
    assert limiter.limit >= 950


@pytest.mark.parametrize("gauges", [True, False])
def test_it_follows_replicas_that_join_and_leave(gauges: bool) -> None:
    limiter = Limiter()
    server = Server(100, limiters=[limiter])
    for _ in range(60):
        server.step(gauges=gauges)
    server.slots = 400
    for _ in range(60):
        server.step(gauges=gauges)
    assert limiter.limit >= 0.95 * 400
    server.slots = 100
    for _ in range(400):
        server.step(gauges=gauges)
    assert limiter.limit <= 200


def test_two_jobs_on_one_endpoint_come_to_rest_beside_each_other() -> None:
    first, second = Limiter(), Limiter()
    server = Server(256, limiters=[first])
    for _ in range(30):
        server.step(gauges=True)
    server.limiters.append(second)
    for _ in range(200):
        server.step(gauges=True)
    total = first.limit + second.limit
    assert 256 <= total <= 1.6 * 256
    assert second.limit >= 0.1 * total
    before = (first.limit, second.limit)
    for _ in range(20):
        server.step(gauges=True)
    assert abs(first.limit - before[0]) <= 0.2 * before[0] + 2


def test_two_jobs_that_make_room_leave_the_server_busy() -> None:
    """Each gives up its share of the surplus, not all of it."""
    first, second = Limiter(first=150), Limiter(first=150)
    server = Server(128, limiters=[first, second])
    for _ in range(20):
        server.step(gauges=True)
        assert 128 <= first.limit + second.limit < 180


def test_turned_away_requests_shrink_it_at_once() -> None:
    limiter = Limiter(first=100)
    assert limiter.judge(Window(1.0, 50, 5, 100.0)) == 70


def test_an_unused_limit_is_left_alone() -> None:
    limiter = Limiter(first=100)
    assert limiter.judge(Window(1.0, 5, 0, 10.0)) == 100
    assert limiter.judge(Window(1.0, 5, 0, 10.0, EngineLoad(10.0, 0.0))) == 100


def test_the_most_is_never_exceeded() -> None:
    limiter = Limiter(most=40)
    server = Server(1000, limiters=[limiter])
    for _ in range(50):
        server.step(gauges=False)
    assert limiter.limit == 40


@dataclass
class Cliff:
    """An engine whose KV memory holds `holds` requests: with more it computes some again and again,
    and what all of them get out of it falls. What is preempted waits.
    """

    holds: int
    slots: int = 256
    tokens_s_each: float = 20.0
    counts_preemptions: bool = True
    limiters: list[Limiter] = field(default_factory=list)

    def tokens_s(self, offered: float) -> float:
        within = min(offered, self.holds)
        beyond = max(0.0, min(offered, self.slots) - self.holds)
        return self.tokens_s_each * within / (1 + 2 * beyond / self.holds)

    def step(self, seconds: float = 1.0) -> float:
        """One window; the share of the best tokens per second."""
        offered = sum(limiter.limit for limiter in self.limiters)
        beyond = max(0.0, min(offered, self.slots) - self.holds)
        tokens_s = self.tokens_s(offered)
        for limiter in self.limiters:
            window = Window(
                seconds,
                round(tokens_s * seconds / 100 * limiter.limit / offered),
                0,
                limiter.limit,
                EngineLoad(
                    min(offered, self.slots),
                    max(0.0, offered - self.slots),
                    tokens_s,
                    beyond / 2 if self.counts_preemptions else None,
                ),
            )
            limiter.judge(window)
        return tokens_s / self.tokens_s(self.holds)


@pytest.mark.parametrize("counts_preemptions", [True, False])
@pytest.mark.parametrize("holds", [6, 48, 200])
def test_it_stays_below_a_cliff(holds: int, counts_preemptions: bool) -> None:
    engine = Cliff(holds, counts_preemptions=counts_preemptions, limiters=[Limiter()])
    for _ in range(60):
        engine.step()
    shares = [engine.step() for _ in range(600)]
    worth = 0.95 if counts_preemptions else 0.88
    assert sum(shares) / len(shares) >= worth - 1 / holds


def test_a_cliff_that_comes_in_mid_run_is_stepped_back_from_and_forgotten_when_it_goes() -> None:
    engine = Cliff(200, limiters=[Limiter()])
    for _ in range(100):
        engine.step()
    engine.holds = 40  # the prompts are longer from here on
    for _ in range(30):
        engine.step()
    shares = [engine.step() for _ in range(300)]
    assert sum(shares) / len(shares) >= 0.93
    engine.holds = 200
    for _ in range(1500):
        engine.step()
    assert engine.step() >= 0.9


def test_two_jobs_stay_below_a_cliff_together() -> None:
    engine = Cliff(64, limiters=[Limiter(), Limiter()])
    for _ in range(150):
        engine.step()
    shares = [engine.step() for _ in range(600)]
    assert sum(shares) / len(shares) >= 0.9
    assert min(one.limit for one in engine.limiters) >= 6


def test_the_pause_below_a_cliff_doubles_up_to_its_most() -> None:
    """What does not pay is tried ever more rarely."""
    engine = Cliff(100, limiters=[Limiter(first=100)])
    limiter = engine.limiters[0]
    tried: list[int] = []
    for window in range(4000):
        before = limiter.limit
        engine.step()
        if limiter.limit > max(before, 100) and window > 2 * PAUSE:
            tried.append(window)
    gaps = [later - one for one, later in itertools.pairwise(tried)]
    # a look below lies between two attempts, after a pause of its own
    assert gaps[0] <= 2 * 4 * PAUSE + 10
    assert all(later >= 1.7 * one for one, later in itertools.pairwise(gaps[:4]))
    assert 2 * PAUSE_MOST <= gaps[-1] == max(gaps) <= 2 * PAUSE_MOST + 20
    lost = sum(1 - engine.step() for _ in range(1000)) / 1000
    assert lost < 0.04


def test_a_climb_that_lowers_tokens_per_second_is_taken_back_within_two_windows() -> None:
    """By an engine that counts no preemptions."""
    limiter = Limiter(first=100, racing=False)
    for _ in range(3):
        limiter.judge(Window(1.0, 100, 0, limiter.limit, EngineLoad(limiter.limit, 0.0, 2000.0)))
    high = limiter.limit
    assert high >= 120
    for _ in range(2):
        limiter.judge(Window(1.0, 50, 0, high, EngineLoad(high, 0.0, 1000.0)))
    assert limiter.limit < 1.1 * 100 + 5
    assert limiter.is_firm


def test_a_burst_of_preemptions_that_costs_little_is_forgotten_in_some_windows() -> None:
    limiter = Limiter(first=48, racing=False)
    usual = EngineLoad(48.0, 0.0, 1000.0, 0.0, 0.8)

    def judge(load: EngineLoad) -> int:
        return limiter.judge(
            Window(1.0, 50, 0, limiter.limit, load._replace(running=limiter.limit))
        )

    judge(usual._replace(preemptions_s=4.0))
    assert limiter.limit < 48  # at once
    while limiter.limit < 46:
        before = limiter.limit
        for _ in range(12):
            judge(usual._replace(tokens_s=20.0 * limiter.limit))
        assert limiter.limit > before
    high = limiter.limit
    judge(usual._replace(tokens_s=19.0 * high, preemptions_s=4.0))
    assert limiter.limit < high
    for _ in range(4):
        judge(usual._replace(tokens_s=20.0 * limiter.limit))
    assert limiter.limit == high


def test_while_more_is_in_flight_than_the_limit_allows_nothing_is_judged() -> None:
    """Answers that take long: the queue that a lower limit ends is still there."""
    limiter = Limiter(first=500, racing=False)
    queue = EngineLoad(256.0, 244.0)
    for _ in range(2):
        limiter.judge(Window(1.0, 10, 0, 500.0, queue))
    lower = limiter.limit
    assert 256 <= lower < 400
    for in_flight in range(500, lower + 50, -10):
        load = EngineLoad(256.0, in_flight - 256.0)
        assert limiter.judge(Window(1.0, 10, 0, float(in_flight), load)) == lower


def test_without_gauges_a_cliff_that_shows_late_is_gone_back_from() -> None:
    """What was fastest is remembered, though the limit was raised before it became slower."""
    limiter = Limiter(first=40, racing=False)

    def judge(tokens: int) -> int:
        return limiter.judge(Window(1.0, 50, 0, limiter.limit, tokens=tokens))

    while limiter.limit <= 40:
        judge(25 * limiter.limit)
    higher = limiter.limit
    for _ in range(2):  # that was worth it at first
        judge(25 * higher)
    for _ in range(4):
        judge(500)
    assert limiter.limit <= higher
    fast = [
        judge(min(25 * limiter.limit, 25 * 48) if limiter.limit <= 50 else 500) for _ in range(80)
    ]
    assert sum(36 <= one <= 53 for one in fast[20:]) >= 0.8 * len(fast[20:])


def test_without_gauges_few_answers_end_a_window_beyond_a_cliff() -> None:
    limiter = Limiter(first=64)
    assert not limiter.fails(60.0, 0)  # nothing is known to compare it with
    assert limiter.judge(Window(2.0, 128, 0, 64.0)) == 128
    assert not limiter.fails(1.0, 10)  # those before it are not answered yet
    assert not limiter.fails(3.0, 180)
    assert limiter.fails(3.0, 60)
