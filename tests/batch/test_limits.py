"""`--max-concurrency auto` against the best fixed number, over engines that behave like vLLM, in
virtual time: the real runner, dispatch, limits and model of an engine.
"""

from __future__ import annotations

import dataclasses
import statistics

import pytest

from batch.modelled_swarm import CASES, Engines, Job, lengths, rates
from domyn_swarm.batch.run.dispatch import AtReplica
from domyn_swarm.batch.run.limiter import FIRST_LIMIT
from domyn_swarm.batch.run.request_limits import Limits, Loads, ReplicaLoad, Sight
from domyn_swarm.engine_load import EngineLoad, together
from domyn_swarm.engines.sim_pace import ByModel
from virtual_time import in_virtual_time


@pytest.mark.parametrize("name", CASES)
def test_auto_is_as_fast_as_the_best_fixed_number(name: str) -> None:
    case = CASES[name]
    best = max(sum(rates(case, one)) for one in case.fixed)
    found = rates(case, None)
    assert sum(found) >= case.worth * best
    assert min(found) >= 0.7 * max(found)  # jobs are fair to each other


@in_virtual_time
async def test_replicas_of_unequal_memory_get_unequal_shares() -> None:
    """One holds a third of what the other does; the same number for both is slow."""
    options = CASES["KV cliff"].options
    engines = Engines(options, 256, 2)
    narrow, wide = engines.models
    larger = dataclasses.replace(options, kv_tokens=3 * options.kv_tokens)
    engines.models[wide] = ByModel(larger, 256, 0)
    job = Job(engines, lengths(12_000, 16, 240))
    await job.run()
    late = [each for _, _, each in job.trace[len(job.trace) // 2 :]]
    typical = {url: statistics.median(each[url] for each in late) for url in engines.models}
    assert 36 <= typical[narrow] <= 58
    assert typical[wide] >= 2 * typical[narrow]
    most = max(job.at_once[narrow][len(job.at_once[narrow]) // 2 :])
    assert most <= 1.25 * max(each[narrow] for each in late) + 2


A, B = "http://a", "http://b"
LOAD = EngineLoad(30, 0)


def sight(
    at_s: float,
    calls: float,
    replicas: dict[str, AtReplica],
    settled: int = 0,
    turned_away: int = 0,
) -> Sight:
    return Sight(at_s, calls, settled, turned_away, replicas)


def gauges(look: int, **each: EngineLoad) -> Loads:
    loads = {f"http://{name}": ReplicaLoad(look, load) for name, load in each.items()}
    return Loads(together(list(each.values()), len(each)), loads)


def used(limits: Limits, answered: int = 0) -> dict[str, AtReplica]:
    return {url: AtReplica(int(one.limit), answered, 0) for url, one in limits.capacities.items()}


def begun(*urls: str) -> Limits:
    limits = Limits()
    limits.skip(sight(0.0, 0, {}))
    assert limits.observe(sight(1.0, 0, {url: AtReplica(0, 0, 0) for url in urls}), None)
    return limits


def test_replicas_begin_with_what_the_run_has_and_race_apart() -> None:
    limits = begun(A, B)
    assert {one.limit for one in limits.capacities.values()} == {FIRST_LIMIT // 2}
    for look in range(1, 9):
        loads = gauges(
            look,
            a=EngineLoad(limits.capacities[A].limit, 0, 10.0 * limits.capacities[A].limit),
            b=EngineLoad(20, max(0, limits.capacities[B].limit - 20), 100.0),
        )
        limits.observe(sight(1.0 + look, limits.total, used(limits)), loads)
    assert limits.capacities[A].limit >= 200
    assert 20 <= limits.capacities[B].limit <= 32
    assert limits.total == sum(one.limit for one in limits.capacities.values())


def test_what_was_judged_is_not_judged_again() -> None:
    limits = begun(A)
    loads = gauges(7, a=EngineLoad(64, 0))
    assert limits.observe(sight(2.0, limits.total, used(limits)), loads)
    before = limits.total
    for second in range(3, 30):
        assert not limits.observe(sight(second, before, used(limits)), loads)
    assert limits.total == before


def test_a_replica_that_joins_begins_as_the_others_are_and_one_that_comes_back_as_it_was() -> None:
    limits = begun(A)
    for look in range(1, 4):
        loads = gauges(look, a=EngineLoad(limits.total, 0))
        limits.observe(sight(1.0 + look, limits.total, used(limits)), loads)
    found = limits.total
    assert found >= 4 * FIRST_LIMIT
    both = {**used(limits), B: AtReplica(0, 0, 0)}
    assert limits.observe(sight(6.0, found, both), None)
    assert limits.capacities[B].limit == found
    assert limits.total == 2 * found
    assert limits.observe(sight(7.0, found, {B: AtReplica(0, 0, 0)}), None)
    assert limits.observe(sight(8.0, found, both), None)
    assert limits.total == 2 * found


def test_without_replicas_there_is_one_limit_which_goes_on_from_all_of_theirs() -> None:
    limits = begun(A, B)
    before = limits.total
    assert limits.observe(sight(3.0, before, {}), None)
    assert (limits.total, limits.capacities) == (before, {})
    assert limits.observe(sight(4.0, before, {}, settled=50, turned_away=3), gauges(1, a=LOAD))
    assert limits.total == round(0.7 * before)


def test_429_of_one_replica_lowers_its_limit_alone() -> None:
    limits = begun(A, B)
    at = {A: AtReplica(32, 50, 4), B: AtReplica(32, 50, 0)}
    limits.observe(sight(2.0, 64, at, 100, 4), gauges(1, a=LOAD, b=EngineLoad(20, 12)))
    assert limits.capacities[A].limit == round(0.7 * 32)
    assert limits.capacities[B].limit >= 28


def test_calls_that_are_not_at_a_replica_count_where_their_requests_are() -> None:
    """A job's own code takes half of each call: its limit is used up though half is in flight."""
    limits = begun(A)
    for look in range(1, 4):
        at = {A: AtReplica(limits.total // 2, 0, 0)}
        loads = gauges(look, a=EngineLoad(limits.total / 2, 0))
        limits.observe(sight(1.0 + look, limits.total, at), loads)
    assert limits.total >= 4 * FIRST_LIMIT


def test_a_pause_leaves_the_limits_as_they_are() -> None:
    limits = begun(A, B)
    before = limits.capacities
    for second in range(2, 300):
        limits.skip(sight(second, 64, {A: AtReplica(32, 0, 0), B: AtReplica(32, 0, 0)}))
    assert limits.capacities == before
    assert not limits.observe(sight(300.1, 64, used(limits, answered=3)), None)
