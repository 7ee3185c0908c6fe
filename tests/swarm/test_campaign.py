"""Campaigns rehearsed in virtual time: the week of a thousand replicas, that every second of a GPU
has a name, and that work done in bulk goes as it does where each row is looked at.
"""

from __future__ import annotations

import heapq
import math
from typing import Any

import numpy as np
import pytest

from domyn_swarm.errors import ConfigError
from domyn_swarm.swarm.campaign import (
    Assumptions,
    Rehearsed,
    Rules,
    refuse_impossible,
    variations,
)
from domyn_swarm.swarm.campaign_simulation import rehearse
from domyn_swarm.watchdog_rules import Spec

HOUR_S = 3600.0
TOLD: dict[str, Any] = {
    "restart_policy": "on-failure",
    "max_restarts": 3,
    "restart_backoff_initial": 5.0,
    "restart_backoff_max": 60.0,
    "drain_seconds": 280.0,
}
WATCHDOG = Spec(**{**dict.fromkeys(Spec._fields), **TOLD})
RULES = Rules(WATCHDOG, drain_s=300.0)
WEEK: dict[str, Any] = {
    "row_s": 20.0,
    "row_cv": 1.3,
    "replicas": 1000,
    "limit_s": (4 * HOUR_S, 24 * HOUR_S),
    "job_limit_s": 24 * HOUR_S,
    "preempted_per_h": 0.05,
    "job_preempted_per_h": 0.05,
    "start_s": 240.0,
    "rows": round(1000 * 16 * 168 * HOUR_S / 20 * 0.97),
}
DAY: dict[str, Any] = {**WEEK, "replicas": 20, "rows": round(20 * 16 * 24 * HOUR_S / 20 * 0.9)}


def went(rules: Rules = RULES, **changes: Any) -> Rehearsed:
    return rehearse(Assumptions(**{**DAY, **changes}), rules)


@pytest.mark.parametrize("seed", range(3))
def test_a_week_of_a_thousand_replicas_needs_no_hands_and_wastes_little(seed: int) -> None:
    found = rehearse(Assumptions(**WEEK, seed=seed), RULES)
    assert (found.ended, found.by_hand) == ("settled", 0)
    assert found.rows_settled == found.rows
    assert found.efficiency >= 0.97
    assert 160 < found.duration_s / HOUR_S < 176
    assert min(found.happened["preempted"], found.happened["time limit"]) > 5000
    assert found.happened["runs of the job"] >= 7


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"failures_per_h": 0.5},
        {"preempted_per_h": 2.0, "grace_s": 0.0},
        {"limit_s": None, "job_limit_s": None, "preempted_per_h": 0.0},
        {"limit_s": (1800.0, 1800.0), "row_s": 300.0},
        {"row_cv": 0.0},
        {"replicas": 1, "rows": 3000},
        {"rows": 7},
        {"gpus_per_replica": 0},
    ],
)
def test_every_second_has_a_name(changes: dict[str, Any]) -> None:
    found = went(**changes)
    assert found.ended == "settled"
    assert found.rows_settled == found.rows
    assert found.ideal_h + sum(found.idle_h.values()) == pytest.approx(found.used_h, rel=2e-3)
    assert min(found.idle_h.values()) >= -1e-6 * found.used_h


def test_the_same_seed_gives_the_same_campaign_and_another_one_another() -> None:
    assert went(seed=4) == went(seed=4)
    assert went(seed=4) != went(seed=5)


def row_by_row(given: Assumptions, rules: Rules) -> tuple[float, float, int]:
    """The same with an event for each row, for replicas that are preempted: duration, replica
    seconds, and rows that were asked again.
    """
    draws = np.random.default_rng(given.seed)
    spread = math.log1p(given.row_cv**2)
    costs = draws.lognormal(
        math.log(given.row_s) - spread / 2, math.sqrt(spread), given.rows
    ).tolist()
    events: list[tuple[float, int, str, int, int, float]] = []
    number, used_s, again, settled, now = 0, 0.0, 0, 0, 0.0
    lives = [0] * given.replicas
    in_flight: list[dict[int, tuple[float, float]]] = [{} for _ in range(given.replicas)]
    began = [0.0] * given.replicas

    def at(when: float, kind: str, replica: int, cost: float = 0.0) -> None:
        nonlocal number
        number += 1
        heapq.heappush(events, (when, number, kind, replica, lives[replica], cost))

    def ask(replica: int) -> None:
        if costs:
            cost = costs.pop()
            at(now + cost, "row", replica, cost)
            in_flight[replica][number] = (now, cost)

    for replica in range(given.replicas):
        at(draws.exponential(given.wait_s[0]), "begins", replica)
    while settled < given.rows:
        now, token, kind, replica, life, _ = heapq.heappop(events)
        if life != lives[replica]:
            continue
        if kind == "begins":
            began[replica] = now
            at(now + given.start_s, "ready", replica)
            at(now + draws.exponential(HOUR_S / given.preempted_per_h), "preempted", replica)
        elif kind == "ready":
            for _ in range(given.in_flight):
                ask(replica)
        elif kind == "row":
            settled += 1
            del in_flight[replica][token]
            ask(replica)
        else:  # killed at once
            lives[replica] += 1
            used_s += now - began[replica]
            again += len(in_flight[replica])
            costs.extend(one for _, one in in_flight[replica].values())
            in_flight[replica].clear()
            began[replica] = math.inf
            at(now + 120.0 + draws.exponential(given.wait_s[0]), "begins", replica)
    used_s += sum(now - one for one in began if one < now)
    return now, used_s, again


def test_work_in_bulk_goes_as_row_by_row() -> None:
    ratios = []
    for seed in range(6):
        given = Assumptions(
            rows=40_000,
            row_s=30.0,
            row_cv=1.0,
            in_flight=4,
            replicas=10,
            preempted_per_h=1.0,
            grace_s=0.0,
            seed=seed,
        )
        rules = RULES._replace(watchdog=WATCHDOG._replace(drain_seconds=0.0))
        bulk, single = rehearse(given, rules), row_by_row(given, rules)
        ratios.append(
            (
                bulk.duration_s / single[0],
                bulk.used_h * HOUR_S / single[1],
                bulk.rows_asked_again / single[2],
            )
        )
    duration, used, again = np.mean(np.array(ratios), axis=0)
    assert duration == pytest.approx(1.0, abs=0.03)
    assert used == pytest.approx(1.0, abs=0.03)
    assert again == pytest.approx(1.0, abs=0.15)


def test_a_longer_grace_and_longer_limits_lose_less() -> None:
    hard = went(preempted_per_h=1.0, grace_s=0.0)
    soft = went(preempted_per_h=1.0, grace_s=120.0)
    assert soft.rows_asked_again < hard.rows_asked_again / 3
    assert went(limit_s=(1200.0, 1200.0)).efficiency < went(limit_s=(9000.0, 9000.0)).efficiency


def test_a_budget_and_a_time_end_it_with_what_is_done_kept() -> None:
    budget = went(max_gpu_hours=100.0)
    assert (budget.ended, budget.by_hand) == ("budget", 1)
    assert 100.0 <= budget.used_h < 105.0
    assert 0 < budget.rows_settled < budget.rows
    stopped = went(stop_after_s=6 * HOUR_S)
    assert stopped.ended == "stop_after"
    assert 6 * HOUR_S <= stopped.duration_s < 8 * HOUR_S


def test_replicas_that_do_not_come_back_leave_a_campaign_without_any() -> None:
    lonely = went(RULES._replace(supervised=False))
    assert (lonely.ended, lonely.by_hand) == ("no_replica", 21)
    broken = went(
        failures_per_h=0.2, rules=RULES._replace(watchdog=WATCHDOG._replace(max_restarts=0))
    )
    assert broken.happened["replicas given up"] > 0


def test_a_job_that_never_comes_to_a_row_is_not_kept_in_the_queue_for_ever() -> None:
    found = went(job_limit_s=60.0, start_s=3000.0, limit_s=None, preempted_per_h=0.0, wait_s=(0.0,))
    assert found.ended == "fruitless"
    assert found.happened["runs of the job"] == 3


def test_what_the_job_says_half_way_is_near_the_truth() -> None:
    near = 0
    for seed in range(10):
        said = went(seed=seed).forecast
        assert said is not None
        near += said.low_s * 0.9 <= said.truth_s <= said.high_s * 1.1
    assert near >= 7


def test_waits_of_the_past_are_drawn_from() -> None:
    short, long = went(wait_s=(1.0, 2.0)), went(wait_s=(7200.0, 7300.0))
    assert long.duration_s > short.duration_s + 1800


def test_each_variation_changes_one_setting() -> None:
    given = Assumptions(**DAY)
    tried = variations(given, RULES)
    assert [words.split()[0] for words, _, _ in tried] == ["replicas"] * 2 + ["time"] * 2 + [
        "twice"
    ]
    for _, assumed, ruled in tried:
        changed = [
            name for name, value in assumed.model_dump().items() if value != getattr(given, name)
        ]
        assert len(changed) + (ruled != RULES) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"failures_per_h": 1000.0},  # engines die before a row could be answered
        {"failures_per_h": 60.0},
        {"preempted_per_h": 30.0, "grace_s": 0.0},
        {"job_preempted_per_h": 20.0, "grace_s": 0.0},
    ],
)
def test_no_more_is_lost_than_was_done(changes: dict[str, Any]) -> None:
    found = went(**{"limit_s": None, "rows": 20_000, **changes})
    assert 0 <= found.ideal_h <= found.used_h
    assert found.rows_settled >= 0


@pytest.mark.parametrize("per_h", [3600.0, 1e6])
def test_a_campaign_that_comes_no_nearer_to_its_end_is_given_up(per_h: float) -> None:
    found = went(preempted_per_h=per_h, job_preempted_per_h=0.0, job_limit_s=None)
    assert (found.ended, found.rows_settled, found.by_hand) == ("never", 0, 1)
    assert went(replicas=1, rows=10**12, limit_s=None, job_limit_s=None).ended == "never"


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"limit_s": (500.0, 9000.0)}, "never serves"),
        ({"max_gpu_hours": 1.0, "gpus_per_replica": 0}, "have no GPUs"),
        ({"in_flight": 10**9}, "more than can be rehearsed"),
    ],
)
def test_what_no_campaign_can_be_is_refused(changes: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        refuse_impossible(Assumptions(**{**DAY, **changes}), RULES)
    refuse_impossible(Assumptions(**DAY), RULES)
