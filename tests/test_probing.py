"""Waiting for a condition: by a clock, and in an event loop."""

from __future__ import annotations

import math

import pytest

from domyn_swarm.probing import comes_true, comes_true_async
from virtual_time import VirtualClock, in_virtual_time, now_s

CASES = [  # holds from then on, the limit: whether it came true, when that was known
    (0.0, 10.0, True, 0.0),
    (0.0, 0.0, True, 0.0),
    (0.0, -5.0, True, 0.0),  # it is asked once at least
    (3.5, 10.0, True, 4.0),
    (3.5, math.inf, True, 4.0),
    (10.0, 10.0, True, 10.0),  # and once more when the time is up
    (11.0, 10.0, False, 10.0),
    (11.0, 0.0, False, 0.0),
]


@pytest.mark.parametrize(("holds_at", "within_s", "came", "known_at"), CASES)
def test_a_condition_is_waited_for(
    holds_at: float, within_s: float, *, came: bool, known_at: float
) -> None:
    clock = VirtualClock()
    began = clock.monotonic()

    def condition() -> bool:
        return clock.monotonic() - began >= holds_at

    assert comes_true(condition, within_s=within_s, every_s=1.0, clock=clock) is came
    assert clock.monotonic() - began == known_at


@pytest.mark.parametrize(("holds_at", "within_s", "came", "known_at"), CASES)
def test_a_condition_is_waited_for_in_an_event_loop(
    holds_at: float, within_s: float, *, came: bool, known_at: float
) -> None:
    @in_virtual_time
    async def run() -> None:
        began = now_s()

        def condition() -> bool:
            return now_s() - began >= holds_at

        assert await comes_true_async(condition, within_s=within_s, every_s=1.0) is came
        assert now_s() - began == known_at

    run()
