"""What is said of the rest of a job: whether four intervals of five hold the truth, over simulated
jobs in virtual time; and that the rows that a forecast rests on stand for all of them.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from domyn_swarm.batch.input.dataset import TableDataset
from domyn_swarm.batch.input.row_keys import RowKeys
from domyn_swarm.batch.outcomes.forecast import Pace, time_left, tokens_left
from domyn_swarm.batch.outcomes.forecaster import Forecaster
from domyn_swarm.batch.outcomes.strata import Census, Strata, StratumSums, characters_of, stratum_of
from domyn_swarm.batch.outcomes.tally import Counters, Tally
from domyn_swarm.batch.run.sampling import stretches, take_sample
from domyn_swarm.model import TimeLeft

KINDS = ("lognormal", "bimodal", "constant", "sorted", "heavy tail", "few rows")
SEEDS = range(30)
LONGEST = 20_000
KEYS = RowKeys(("prompt",), None)
Speed = Callable[[float], float]


class Job(NamedTuple):
    """Rows in their order: how long their prompts are, and what they cost in seconds."""

    lengths: list[int]
    costs: list[float]
    slots: int


class Course(NamedTuple):
    """When each row was begun and finished."""

    begun: NDArray[np.float64]
    ended: NDArray[np.float64]


def lengths_of(kind: str, draws: np.random.Generator) -> NDArray[np.int64]:
    rows = int(draws.integers(24, 90) if kind == "few rows" else draws.integers(600, 3000))
    found = draws.lognormal(4, 1, rows)
    if kind == "bimodal":
        short, long = draws.normal(40, 6, rows), draws.normal(1600, 160, rows)
        found = np.where(draws.random(rows) < 0.8, short, long)
    elif kind == "constant":
        found = np.full(rows, 200.0)
    elif kind == "sorted":
        found = np.sort(found)
    elif kind == "heavy tail":
        found = 40 * (1 + draws.pareto(1.5, rows))
    return found.clip(1, LONGEST).astype(np.int64)


def job_of(kind: str, seed: int) -> Job:
    draws = np.random.default_rng(seed)
    lengths = lengths_of(kind, draws)
    noise = draws.choice([0.3, 0.6, 0.9])
    expected = draws.uniform(0.2, 3) + draws.uniform(0.001, 0.02) * lengths
    costs = expected * draws.lognormal(-(noise**2) / 2, noise, len(lengths))
    slots = 4 if kind == "few rows" else int(draws.choice([4, 16, 32]))
    return Job(lengths.tolist(), costs.tolist(), slots)


def waves(seed: int) -> Speed:
    """A server that is up to a quarter faster and slower by turns."""
    draws = np.random.default_rng(seed)
    phase, period_s = draws.random() * 6, draws.uniform(100, 1000)
    height = draws.uniform(0, 0.25)
    return lambda at_s: 1 + height * math.sin(phase + 2 * math.pi * at_s / period_s)


def course_of(costs: Sequence[float], slots: int, speed: Speed = lambda _: 1.0) -> Course:
    """A free slot takes the next row."""
    free = [0.0] * slots
    begun, ended = [], []
    for cost in costs:
        at = heapq.heappop(free)
        heapq.heappush(free, at + cost / speed(at))
        begun.append(at)
        ended.append(at + cost / speed(at))
    return Course(np.array(begun), np.array(ended))


def sampled(kind: str, seed: int) -> tuple[TimeLeft | None, float]:
    """What is said after a sample, and the truth of the rows that are left."""
    job = job_of(kind, seed)
    rows = len(job.lengths)
    dataset = TableDataset(pa.table({"prompt": ["x" * one for one in job.lengths]}))
    size = rows // 2 if kind == "few rows" else max(96, 4 * job.slots)
    sample = take_sample(dataset, KEYS, None, None, size, seed=seed)
    chosen = [int(one.ordinals[0]) for one in sample.rows]
    done = Strata()
    for at in chosen:
        done[stratum_of(job.lengths[at])].finish(job.costs[at])
    left = [one for at, one in enumerate(job.costs) if at not in set(chosen)]
    said = time_left(done, sample.rest(done), Pace(job.slots), begun=False)
    return said, float(course_of(left, job.slots).ended.max())


def half_way(kind: str, seed: int, share: float) -> tuple[TimeLeft | None, float]:
    """What a run says of itself when a share of its time is over, and the truth."""
    job = job_of(kind, seed)
    begun, ended = course_of(job.costs, job.slots, waves(seed))
    now_s = float(ended.max()) * share
    forecaster, strata = Forecaster(), Strata()
    size = -(-len(job.lengths) // 64)
    for start in range(0, len(job.lengths), size):
        forecaster.census.add(
            start, len(job.lengths[start : start + size]), job.lengths[start:][:size]
        )
    order = iter([*np.argsort(ended).tolist(), -1])
    following, reached, at_s = next(order), 0, 0.0
    while True:
        while reached < len(job.lengths) and begun[reached] <= at_s:
            strata.begin(job.lengths[reached])
            reached += 1
        while following >= 0 and ended[following] <= at_s:
            strata[stratum_of(job.lengths[following])].finish(ended[following] - begun[following])
            following = next(order)
        forecaster.look(at_s, reached - strata.rows, strata)
        if at_s >= now_s:
            break
        at_s = min(now_s, at_s + now_s / 120)
    left = len(job.lengths) - strata.rows
    return forecaster.time_left(left, reached - 1), float(ended.max()) - now_s


def holds(said: TimeLeft | None, truth_s: float) -> bool:
    return said is not None and said.low_s <= truth_s <= said.high_s


def test_four_intervals_of_five_hold_the_truth_after_a_sample() -> None:
    found = [holds(*sampled(kind, seed)) for kind in KINDS for seed in SEEDS]
    assert len(found) >= 40
    assert 0.7 <= sum(found) / len(found) <= 0.9


@pytest.mark.parametrize("share", [0.1, 0.3, 0.7])
def test_four_intervals_of_five_hold_the_truth_while_a_job_runs(share: float) -> None:
    said = [half_way(kind, seed, share) for kind in KINDS for seed in SEEDS]
    known = [one for one in said if one[0] is not None]
    assert len(known) >= 0.9 * len(said)
    assert 0.7 <= sum(holds(*one) for one in known) / len(known) <= 0.9


def test_an_input_that_is_sorted_by_length_is_not_taken_for_one_of_short_prompts() -> None:
    ratios = []
    for seed in SEEDS:
        job = job_of("sorted", seed)
        said, truth_s = half_way("sorted", seed, 0.3)
        done = int(
            (course_of(job.costs, job.slots, waves(seed)).ended <= truth_s * 0.3 / 0.7).sum()
        )
        plain_s = (len(job.costs) - done) / done * truth_s * 0.3 / 0.7
        assert said is not None
        ratios.append((said.expected_s / truth_s, plain_s / truth_s))
    lengthwise, plain = np.median(np.array(ratios), axis=0)
    assert plain < 0.6  # what rows per second alone would say
    assert 0.65 < lengthwise < 1.4


def test_the_same_rows_say_the_same() -> None:
    assert sampled("lognormal", 3) == sampled("lognormal", 3)
    assert half_way("bimodal", 3, 0.3) == half_way("bimodal", 3, 0.3)


def test_nothing_is_said_of_a_run_of_which_nothing_is_known() -> None:
    forecaster, strata = Forecaster(), Strata()
    assert forecaster.time_left(10, 0) is None
    strata.begin(10)
    forecaster.look(0.0, 1, strata)
    forecaster.look(1.0, 1, strata)
    assert forecaster.time_left(10, 0) is None
    strata[stratum_of(10)].finish(1.0)
    forecaster.look(2.0, 0, strata)
    assert forecaster.time_left(10, 0) is None  # of one row
    assert forecaster.time_left(0, 9) == TimeLeft(0.0, 0.0, 0.0)


def test_a_run_whose_speed_changed_is_judged_by_its_last_half() -> None:
    forecaster, strata = Forecaster(), Strata()
    for at_s in range(200):
        for _ in range(1 if at_s < 100 else 8):  # seven replicas more
            strata.begin(100)
            strata[stratum_of(100)].finish(4.0)
        forecaster.look(float(at_s), 4 if at_s < 100 else 32, strata)
    said = forecaster.time_left(800, 900)
    assert said is not None
    assert 85 < said.expected_s < 125


def test_more_slots_take_less_time_and_the_longest_row_bounds_it() -> None:
    done = Strata()
    for seconds in (1.0, 2.0, 3.0, 4.0):
        done[stratum_of(100)].finish(seconds)
    rest = {stratum_of(100): 64.0}
    said = [time_left(done, rest, Pace(slots), begun=False) for slots in (1, 2, 4, 64, 640)]
    expected = [one.expected_s for one in said if one is not None]
    assert len(expected) == 5
    assert all(more > less for more, less in pairwise(expected[:4]))
    assert expected[4] > 2.5  # as long as a row takes
    assert time_left(done, rest, Pace(0.0), begun=False) is None


def test_tokens_of_the_rest_follow_the_lengths_of_its_prompts() -> None:
    done = Strata()
    for length in (100, 100, 400, 400):
        done[stratum_of(length)].finish(1.0, prompt_tokens=length // 4, completion_tokens=50)
    prompts, completions = tokens_left(done, {stratum_of(1600): 10.0}) or (0, 0)
    assert 2500 < prompts < 6000  # none so long was asked: ten of 400
    assert 450 < completions < 700
    silent = Strata()
    silent[stratum_of(100)].finish(1.0)
    assert tokens_left(silent, {stratum_of(100): 10.0}) is None


# -- which rows stand for all ----------------------------------------------------------------------


def test_a_sample_has_rows_of_every_length_and_the_most_where_most_of_the_work_is() -> None:
    lengths = [50] * 900 + [5000] * 95 + [19_000] * 5
    dataset = TableDataset(pa.table({"prompt": ["x" * one for one in lengths]}))
    sample = take_sample(dataset, KEYS, None, None, 100)
    chosen = [lengths[int(one.ordinals[0])] for one in sample.rows]
    assert len({int(one.ordinals[0]) for one in sample.rows}) == 100
    counted = Counter(chosen)
    assert counted[19_000] >= 2
    assert counted[5000] > 95 * 100 / 1000  # more than its share of the rows
    assert counted[50] > counted[5000] / 3
    assert sample.left == {
        stratum_of(50): 900.0,
        stratum_of(5000): 95.0,
        stratum_of(19_000): 5.0,
    }
    again = take_sample(dataset, KEYS, None, None, 100)
    assert [int(one.ordinals[0]) for one in again.rows] == [
        int(one.ordinals[0]) for one in sample.rows
    ]
    assert chosen != sorted(chosen)


def test_a_sample_is_no_larger_than_what_is_left() -> None:
    dataset = TableDataset(pa.table({"prompt": ["x" * one for one in range(1, 6)]}))
    assert len(take_sample(dataset, KEYS, None, None, 100).rows) == 5
    assert len(take_sample(dataset, KEYS, 3, None, 100).rows) == 3
    empty = TableDataset(pa.table({"prompt": pa.array([], pa.string())}))
    assert take_sample(empty, KEYS, None, None, 100).rows == []


def test_rows_of_one_value_are_asked_once_where_they_share_an_answer() -> None:
    dataset = TableDataset(pa.table({"prompt": ["same"] * 50 + ["another"]}))
    assert len(take_sample(dataset, KEYS, None, None, 20, alike_once=True).rows) == 2


def test_a_census_says_how_long_the_prompts_from_a_position_on_are() -> None:
    dataset = TableDataset(pa.table({"prompt": ["x"] * 5000 + ["x" * 4000] * 5000}))
    census = Census()
    for one in stretches(dataset, KEYS, None):
        census.add(one.start, one.rows, one.characters)
    short, long = stratum_of(1), stratum_of(4000)
    whole = census.beyond(0, 10_000)
    assert whole[short] == pytest.approx(5000, rel=0.01)
    ahead = census.beyond(7500, 2500)
    assert ahead == {long: pytest.approx(2500)}
    assert sum(census.beyond(10_000, 100).values()) == pytest.approx(100)
    assert Census().beyond(0, 10) == {}


@pytest.mark.parametrize(
    ("value", "characters"),
    [("abc", 3), ("", 0), (None, 0), (7, 0), ({"a": "xy", "b": ["z", {"c": "12"}]}, 5)],
)
def test_a_row_is_as_long_as_the_texts_in_it(value: object, characters: int) -> None:
    assert characters_of(value) == characters


def test_a_worker_that_is_gone_has_nothing_in_flight() -> None:
    tally = Tally()
    tally.strata.begin(10)
    tally.strata.begin(10)
    tally.strata[stratum_of(10)].finish(2.0, 3, 4)
    told = tally.counters()
    whole = Tally()
    whole.add(told, Counters())
    assert whole.strata.in_flight == {stratum_of(10): 1}
    whole.add(told.ended(), told)
    assert whole.strata.in_flight == {}
    assert whole.strata[stratum_of(10)] == StratumSums(1, 1, 2.0, 4.0, 3, 4)
