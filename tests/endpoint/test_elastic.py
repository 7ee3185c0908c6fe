"""How many replicas an elastic swarm runs: the rules by themselves, and over simulated campaigns in
which every second is asked what shall run.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domyn_swarm.backends.endpoint.demand import RowSpeed
from domyn_swarm.backends.endpoint.elastic import (
    Bounds,
    Decision,
    EndingRows,
    Measured,
    Place,
    PlaceState,
    Work,
    decide,
)
from domyn_swarm.backends.endpoint.elastic_state import ElasticState

WAITING, STARTING, READY, FAILED = PlaceState


def ready(number: int, idle_s: float = 0.0, ends_in_s: float = math.inf) -> Place:
    return Place(number, READY, 1000.0, idle_s, ends_in_s)


def holds(number: int, requests: float) -> Place:
    return Place(number, READY, 1000.0, requests=requests)


ROWS = Work(rows_left=1000, rows_unsent=900, quiet_s=0.0)
TAIL = Work(rows_left=5, rows_unsent=0, quiet_s=0.0)
DONE = Work(quiet_s=1.0)
KNOWN = Measured(rows_per_place_s=1.0, start_s=100.0, full_at=8)
NEW = Measured(full_at=8)
CASES: dict[str, tuple[Work, Sequence[Place], Bounds, Measured, set[int]]] = {
    "without work nothing runs": (Work(), [], Bounds(0, 8), NEW, set()),
    "the least runs without work": (Work(), [], Bounds(2, 8), NEW, {0, 1}),
    "one request wakes one": (Work(requests=1, quiet_s=0), [], Bounds(0, 8), NEW, {0}),
    "a job of unknown size wakes one": (
        Work(asked_for=True, quiet_s=0),
        [],
        Bounds(0, 8),
        NEW,
        {0},
    ),
    "a job wakes as many as it fills": (
        Work(rows_left=20, rows_unsent=20, quiet_s=0),
        [],
        Bounds(0, 8),
        NEW,
        {0, 1, 2},
    ),
    "never more than the most": (ROWS, [], Bounds(0, 3), NEW, {0, 1, 2}),
    "more where their start pays": (
        # In 100 s one place settles 100 of 900 rows; 800 are work for 50 s of 16 places.
        ROWS,
        [ready(0)],
        Bounds(0, 6),
        KNOWN,
        {0, 1, 2, 3, 4, 5},
    ),
    "none that would find too little": (
        Work(rows_left=140, rows_unsent=130, quiet_s=0),
        [ready(0)],
        Bounds(0, 8),
        KNOWN,
        {0},
    ),
    "what comes already is counted": (
        Work(rows_left=180, rows_unsent=170, quiet_s=0),
        [ready(0), Place(1, STARTING, 90.0)],
        Bounds(0, 8),
        KNOWN,
        {0, 1},
    ),
    "a limit that is near is counted": (
        # The first ends after 10 s: 160 of 170 rows are left for those that start now.
        Work(rows_left=180, rows_unsent=170, quiet_s=0),
        [ready(0, ends_in_s=10.0)],
        Bounds(0, 8),
        KNOWN,
        {0, 1, 2, 3},
    ),
    "none while one is idle": (ROWS, [ready(0), ready(1, 3.0)], Bounds(0, 8), KNOWN, {0, 1}),
    "requests of others count": (
        Work(requests=20, quiet_s=0, clients_quiet_s=0),
        [ready(0)],
        Bounds(0, 8),
        KNOWN,
        {0, 1, 2},
    ),
    "a queue that comes too late is left": (
        Work(rows_left=70, rows_unsent=60, quiet_s=0),
        [ready(0), Place(1, WAITING, 5.0)],
        Bounds(0, 8),
        KNOWN,
        {0},
    ),
    "a queue that may come in time is kept": (
        Work(rows_left=140, rows_unsent=130, quiet_s=0),
        [ready(0), Place(1, WAITING, 5.0)],
        Bounds(0, 8),
        KNOWN,
        {0, 1},
    ),
    "in the tail the idle go, and what starts": (
        TAIL,
        [ready(0), ready(1, 2.0), ready(2, 9.0), Place(3, STARTING)],
        Bounds(0, 8),
        KNOWN,
        {0},
    ),
    "not the moment between two requests, where that is not known": (
        TAIL,
        [ready(0), ready(1, 0.5)],
        Bounds(0, 8),
        KNOWN,
        {0, 1},
    ),
    "in the tail as many stay as what is in flight fills": (
        Work(rows_left=10, rows_unsent=0, quiet_s=0),
        [holds(0, 4), holds(1, 5), holds(2, 1), holds(3, 0)],
        Bounds(0, 8),
        KNOWN,
        {0, 1},
    ),
    "what may have any number of requests stays in the tail": (
        TAIL,
        [ready(0), ready(1), holds(2, 2)],
        Bounds(0, 8),
        KNOWN,
        {0, 1},
    ),
    "while clients come there is no tail": (
        Work(rows_left=5, rows_unsent=0, quiet_s=0, clients_quiet_s=5),
        [holds(0, 4), holds(1, 1)],
        Bounds(0, 8),
        KNOWN,
        {0, 1},
    ),
    "none for jobs that end before it pays": (
        # Ready after 100 s, and then 49 s to go.
        Work(rows_left=1000, rows_unsent=900, quiet_s=0, ending=(EndingRows(149.0, 900),)),
        [ready(0)],
        Bounds(0, 8),
        KNOWN,
        {0},
    ),
    "some for jobs that end later": (
        Work(rows_left=1000, rows_unsent=900, quiet_s=0, ending=(EndingRows(151.0, 900),)),
        [ready(0)],
        Bounds(0, 3),
        KNOWN,
        {0, 1, 2},
    ),
    "of several jobs those count that go on": (
        Work(rows_left=1200, rows_unsent=1100, quiet_s=0, ending=(EndingRows(20.0, 900),)),
        # 100 rows are left for others when it would be ready: work for 50 s of two.
        [ready(0)],
        Bounds(0, 8),
        KNOWN,
        {0, 1},
    ),
    "the first is tried all the same": (
        Work(rows_left=900, rows_unsent=900, quiet_s=0, ending=(EndingRows(20.0, 900),)),
        [],
        Bounds(0, 8),
        KNOWN,
        {0},
    ),
    "while no start was measured a job's end is no reason": (
        Work(rows_left=20, rows_unsent=20, quiet_s=0, ending=(EndingRows(20.0, 20),)),
        [],
        Bounds(0, 8),
        NEW,
        {0, 1, 2},
    ),
    "what cannot be ready in time is given up": (
        Work(rows_left=900, rows_unsent=800, quiet_s=0, ending=(EndingRows(20.0, 800),)),
        [ready(0), Place(1, STARTING, 75.0), Place(2, WAITING, 85.0), Place(3, STARTING, 300.0)],
        Bounds(0, 8),
        KNOWN,
        {0, 2, 3},
    ),
    "in the tail the least stays": (
        TAIL,
        [ready(0, 5.0), ready(1, 5.0), ready(2)],
        Bounds(2, 8),
        KNOWN,
        {0, 2},
    ),
    "one stays as long as rows are left": (TAIL, [ready(0, 60.0)], Bounds(0, 8), KNOWN, {0}),
    "the last one stays for a while": (
        DONE,
        [ready(0, 5.0), ready(1, 5.0)],
        Bounds(0, 8),
        KNOWN,
        {0},
    ),
    "and no longer": (Work(quiet_s=100.0), [ready(0, 100.0)], Bounds(0, 8), KNOWN, set()),
    "or as long as is said": (
        Work(quiet_s=7.0),
        [ready(0, 7.0)],
        Bounds(0, 8, keep_s=6.0),
        KNOWN,
        set(),
    ),
    "clients may come again": (
        Work(quiet_s=9.0, clients_quiet_s=9.0),
        [ready(0, 9.0), ready(1, 9.0)],
        Bounds(0, 8),
        KNOWN,
        {0, 1},
    ),
    "what a client woke starts though it has gone": (
        Work(quiet_s=9.0, clients_quiet_s=9.0),
        [Place(0, STARTING, 50.0)],
        Bounds(0, 8),
        KNOWN,
        {0},
    ),
    "what a job does not use goes": (
        ROWS,
        [ready(0), ready(1, 101.0)],
        Bounds(0, 8),
        KNOWN,
        {0},
    ),
    "what failed is wrong everywhere": (ROWS, [Place(0, FAILED)], Bounds(0, 8), KNOWN, {0}),
}


@pytest.mark.parametrize("case", CASES)
def test_which_replicas_run(case: str) -> None:
    work, places, bounds, measured, wanted = CASES[case]
    found = decide(work, places, bounds, measured)
    assert found.wanted == wanted
    changed = found.wanted != {one.number for one in places}
    assert bool(found.reason) == changed


def test_a_new_place_gets_no_number_that_is_taken() -> None:
    found = decide(Work(requests=1, quiet_s=0), [], Bounds(0, 4), NEW, taken=[0, 1])
    assert found.wanted == {2}


def test_where_those_that_stay_are_idle_the_one_with_the_last_rows_stays_instead() -> None:
    warm = [holds(1, 1), holds(2, 3)]
    found = decide(TAIL, [holds(0, 0)], Bounds(0, 4), KNOWN, warm=warm)
    assert found == Decision(frozenset({2}), "the last rows are there")
    assert decide(TAIL, [holds(0, 1)], Bounds(0, 4), KNOWN, warm=warm).wanted == {0}
    assert decide(TAIL, [ready(0)], Bounds(0, 4), KNOWN, warm=warm).wanted == {0}  # not known
    assert decide(TAIL, [holds(0, 0)], Bounds(0, 4), KNOWN, warm=[holds(1, 0)]).wanted == {0}


def test_speed_is_that_of_the_places_that_were_ready() -> None:
    speed = RowSpeed(window_s=60.0)
    rows = 0.0
    for second in range(200):
        speed.add(second, rows, ready=2 if second < 100 else 4)
        rows += 6.0 if second < 100 else 12.0
    assert speed.rows_per_place_s == pytest.approx(3.0, rel=0.05)
    speed.add(201, 0.0, ready=4)  # another job
    assert speed.rows_per_place_s is None


def test_what_was_measured_is_remembered_as_the_median() -> None:
    state = ElasticState(tag="t", wanted=())
    assert state.start_s is None
    for seconds in (100.0, 900.0, 110.0):  # one of them waited in the queue
        state = state.with_start(seconds)
    assert ElasticState.model_validate_json(state.model_dump_json()).start_s == 110.0


# -- campaigns -------------------------------------------------------------------------------------


@dataclass
class Simulated:
    """A place that was asked for."""

    asked_at: float
    ready_at: float
    idle_since: float
    busy: list[float] = field(default_factory=list)  # when its requests end
    answered: int = 0
    left_at: float = math.inf  # it is not wanted any more, and gets no further request
    told_at: float = math.inf  # to end


LEFT_S = 1.5  # until nobody sends to a place that is not wanted any more
ENDS_S = 1.0  # from being told to until its GPUs are free


@dataclass
class Campaign:
    """Jobs whose rows take a while, one place after the other as `decide` says. What jobs have
    written down is a second old; a place that goes is looked at in every step.
    """

    bounds: Bounds
    jobs: dict[int, int]  # rows, by the second in which they come
    start_s: float
    row_s: float
    slots: int
    sigma: float = 0.0
    releases: bool = True
    seed: int = 1
    step_s: float = 1.0
    now: float = 0.0
    unsent: int = 0
    settled: int = 0
    places: dict[int, Simulated] = field(default_factory=dict)
    leaving: dict[int, Simulated] = field(default_factory=dict)
    gone: list[Simulated] = field(default_factory=list)
    written: tuple[int, int] = (0, 0)  # rows left, and those not in flight
    idle_in_tail_s: float = 0.0
    tails: int = 0
    starts: list[float] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    work_at: float = 0.0

    def run(self, most_s: int = 20_000) -> Campaign:
        chance, speed, measured = random.Random(self.seed), RowSpeed(), None
        due, last = deque(sorted(self.jobs.items())), 0.0
        while self.now < most_s:
            while due and due[0][0] <= self.now:
                self.unsent += due.popleft()[1]
                speed.forget()
            self._answer(chance)
            if self.now == int(self.now):
                at_work = [one for one in self.places.values() if one.ready_at <= self.now]
                speed.add(self.now, self.settled, len(at_work))
                self._decide(speed, measured)
                self.written = self._left(), self.unsent
                fresh = [one for one in at_work if one.ready_at > last]
                if fresh:
                    measured = self.start_s
                last = self.now
            self._end()
            self.now += self.step_s
            small = not self.leaving and len(self.places) <= self.bounds.least
            if not due and not self._left() and self.written[0] == 0 and small:
                break
        return self

    @property
    def held(self) -> list[Simulated]:
        return [*self.places.values(), *self.leaving.values()]

    def _left(self) -> int:
        return self.unsent + sum(len(one.busy) for one in self.held)

    def _end(self) -> None:
        for number, one in list(self.leaving.items()):
            if one.told_at == math.inf and not one.busy and self.now - one.left_at >= LEFT_S:
                one.told_at = self.now
            elif self.now - one.told_at >= ENDS_S:
                self.gone.append(self.leaving.pop(number))

    def _answer(self, chance: random.Random) -> None:
        for one in self.held:
            ended = [at for at in one.busy if at <= self.now]
            one.busy = [at for at in one.busy if at > self.now]
            one.answered += len(ended)
            self.settled += len(ended)
        able = [one for one in self.places.values() if one.ready_at <= self.now]
        for one in able:
            while self.unsent and len(one.busy) < self.slots:
                one.busy.append(self.now + self.row_s * chance.lognormvariate(0, self.sigma))
                self.unsent -= 1
            one.idle_since = self.now if one.busy else one.idle_since
        if not self.unsent and self._left():
            idle = sum(not one.busy for one in self.held if one.ready_at <= self.now)
            self.idle_in_tail_s += idle * self.step_s

    def _decide(self, speed: RowSpeed, measured: float | None) -> None:
        left, unsent = self.written
        self.work_at = self.now if left else self.work_at
        work = Work(rows_left=left, rows_unsent=unsent, quiet_s=self.now - self.work_at)
        warm = {
            number
            for number, one in self.leaving.items()
            if one.told_at == math.inf and one.ready_at <= self.now
        }
        found = decide(
            work,
            [self._place(number, one) for number, one in self.places.items()],
            self.bounds,
            Measured(speed.rows_per_place_s, measured, self.slots),
            self.leaving.keys() - warm,
            warm=[self._place(number, self.leaving[number]) for number in warm],
        )
        self._follow(found)

    def _place(self, number: int, one: Simulated) -> Place:
        asked_s = self.now - one.asked_at
        if one.ready_at > self.now:
            return Place(number, STARTING, asked_s)
        idle_s = 0.0 if one.busy else self.now - one.idle_since
        return Place(number, READY, asked_s, idle_s, requests=len(one.busy))

    def _follow(self, found: Decision) -> None:
        for number in self.places.keys() - found.wanted:
            if self.releases:
                one = self.leaving[number] = self.places.pop(number)
                one.left_at = self.now
                if one.ready_at > self.now:
                    one.told_at = self.now  # nobody has sent anything there
        for number in found.wanted & self.leaving.keys():
            self.places[number] = self.leaving.pop(number)
            self.places[number].left_at = math.inf
        for number in found.wanted - self.places.keys():
            ready_at = self.now + self.start_s
            self.places[number] = Simulated(self.now, ready_at, ready_at)
            self.starts.append(self.now)
        self.sizes.append(len(self.places))

    @property
    def all_places(self) -> list[Simulated]:
        return [*self.gone, *self.held]


CAMPAIGNS = st.builds(
    Campaign,
    bounds=st.builds(
        lambda least, more: Bounds(least, least + more), st.integers(0, 3), st.integers(1, 12)
    ),
    jobs=st.dictionaries(st.integers(0, 2000), st.integers(1, 2000), min_size=1, max_size=4),
    start_s=st.floats(1.0, 400.0),
    row_s=st.floats(0.5, 30.0),
    slots=st.integers(4, 32),
    sigma=st.floats(0.0, 1.0),
)


@settings(max_examples=30, deadline=None)
@given(CAMPAIGNS)
def test_whatever_comes(campaign: Campaign) -> None:
    """Bounds hold, no request is lost, every row is answered, it ends as small as it may be, and
    nothing is started again and again.
    """
    found, bounds, jobs = campaign.run(10**6), campaign.bounds, campaign.jobs
    least = bounds.least
    assert all(least <= size <= bounds.most for size in found.sizes)
    assert not any(one.busy for one in found.gone)
    assert found.settled == sum(jobs.values())
    assert len(found.places) == least
    assert len(found.starts) <= least + 2 * bounds.most * len(jobs)


@settings(max_examples=30, deadline=None)
@given(
    most=st.integers(2, 16),
    rows=st.integers(1, 3000),
    start_s=st.floats(1.0, 400.0),
    row_s=st.floats(0.5, 30.0),
    slots=st.integers(4, 32),
)
def test_what_starts_finds_work_and_is_not_started_twice(
    most: int, rows: int, start_s: float, row_s: float, slots: int
) -> None:
    """Of a job whose rows take equally long: what is started once its speed is known answers some;
    what was not is at most what its rows fill.
    """
    found = Campaign(Bounds(0, most), {0: rows}, start_s, row_s, slots).run()
    first = [one for one in found.all_places if one.asked_at == found.starts[0]]
    assert len(first) <= math.ceil(rows / slots)
    assert all(one.answered for one in found.all_places)
    assert len(found.all_places) <= most  # none twice


@pytest.mark.parametrize("row_s", [1.0, 3.0, 30.0])
@pytest.mark.parametrize("seed", range(3))
def test_the_tail_costs_a_fifth_at_most(seed: int, row_s: float) -> None:
    """Rows of a lognormal length, 16 places: seconds of places without work once nothing is left
    to send, against those where all of them stay to the end. What a place costs then is bounded by
    what its end takes, whatever the rows are.
    """

    def tail_s(*, releases: bool) -> float:
        campaign = Campaign(
            *(Bounds(0, 16), {0: 4000}, 60.0, row_s, 16),
            sigma=1.0,
            releases=releases,
            seed=seed,
            step_s=0.25,
        )
        return campaign.run(2500).idle_in_tail_s

    released_s = tail_s(releases=True)
    assert 0 < released_s <= 0.2 * tail_s(releases=False)
    assert released_s <= 16 * (LEFT_S + ENDS_S)
