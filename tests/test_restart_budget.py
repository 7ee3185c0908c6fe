"""How often a program is started again, and after what pause: the one rule, as tables of cases."""

from __future__ import annotations

import math

import pytest

from domyn_swarm.restart_budget import RestartBudget, RestartPolicy

HOUR_S = 3600.0


def course(policy: RestartPolicy, lives_s: list[float]) -> list[float | None]:
    """The pauses before the starts of a program that lives so long each time."""
    budget, now, pauses = RestartBudget(policy), 1_000_000.0, []
    for life_s in lives_s:
        now += life_s
        budget.ran(life_s)
        pauses.append(budget.take(now))
        now += pauses[-1] or 0.0
    return pauses


@pytest.mark.parametrize(
    ("policy", "lives_s", "pauses"),
    [
        (RestartPolicy(most=0), [1.0], [None]),
        (RestartPolicy(most=2), [1.0] * 3, [0.0, 0.0, None]),
        (RestartPolicy(most=2), [1.0, 1e6, 1.0], [0.0, 0.0, None]),  # nothing is progress
        (RestartPolicy(most=2, progress_s=60.0), [1.0, 1.0, 59.0], [0.0, 0.0, None]),
        (RestartPolicy(most=2, progress_s=60.0), [1.0, 1.0, 60.0, 1.0, 1.0], [0.0] * 4 + [None]),
        (RestartPolicy(None, math.inf, 1.0, 1.0), [1.0] * 50, [1.0] * 50),
        (
            RestartPolicy(6, math.inf, 5.0, 60.0),
            [1.0] * 7,
            [5.0, 10.0, 20.0, 40.0, 60.0, 60.0, None],
        ),
        (
            RestartPolicy(None, math.inf, 0.5, 10.0, 60.0),
            [1.0, 1.0, 60.0, 1.0],
            [0.5, 1.0, 0.5, 1.0],
        ),
        (RestartPolicy(2, HOUR_S), [1.0, 1.0, HOUR_S - 1.1], [0.0, 0.0, None]),
        (RestartPolicy(2, HOUR_S), [1.0, 1.0, HOUR_S - 1.0, 1.0], [0.0] * 4),  # one by one
        (RestartPolicy(2, HOUR_S), [1.0, 2.0, HOUR_S - 2.0, 1.0], [0.0, 0.0, 0.0, None]),
    ],
)
def test_a_program_is_started_again_as_often_as_its_policy_allows(
    policy: RestartPolicy, lives_s: list[float], pauses: list[float | None]
) -> None:
    assert course(policy, lives_s) == pauses


def test_what_is_started_again_for_ever_has_its_longest_pause_after_a_week_as_well() -> None:
    """2.0 ** 1024 is no number any more."""
    budget = RestartBudget(RestartPolicy(first_pause_s=0.5, longest_pause_s=10.0))
    assert {budget.take(nth * 10.0) for nth in range(60_480)} == {0.5, 1.0, 2.0, 4.0, 8.0, 10.0}


@pytest.mark.parametrize(
    ("restarted_at", "now", "exhausted"),
    [
        ([], 0.0, False),
        ([30.0, 10.0, 20.0], 3609.0, True),  # in any order
        ([30.0, 10.0, 20.0], 3610.0, False),
        ([50.0, 1.0, 2.0, 3.0, 40.0, 30.0], 3629.0, True),  # of many the last decide
        ([50.0, 1.0, 2.0, 3.0, 40.0, 30.0], 3630.0, False),
    ],
)
def test_what_is_known_of_earlier_restarts_counts(
    restarted_at: list[float], now: float, exhausted: bool
) -> None:
    budget = RestartBudget(RestartPolicy(3, HOUR_S), restarted_at)
    assert budget.exhausted(now) is exhausted


def test_progress_of_another_kind_clears_the_count() -> None:
    budget = RestartBudget(RestartPolicy(2, math.inf, 5.0, 60.0))
    assert [budget.take(), budget.take(), budget.take()] == [5.0, 10.0, None]
    budget.clear()
    assert [budget.take(), budget.take(), budget.take()] == [5.0, 10.0, None]
