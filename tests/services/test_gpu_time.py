"""What every second of a replica went to: the rules, on virtual times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domyn_swarm.backends.gpu_time import (
    BACK_OFF,
    HELD,
    LIMIT_TOO_LOW,
    Allocation,
    Asking,
    Demand,
    Note,
    Span,
    Use,
    Watch,
    classify,
    demand,
    gpu_seconds,
    queued,
)
from domyn_swarm.services.usage_report import Energy

GPUS = 8


def watch(began: float, alive_until: float, *notes: Note, beat_s: float = 5.0) -> Watch:
    return Watch(f"w{began}", began, alive_until, notes, beat_s)


def said(spans: Sequence[Span]) -> list[tuple[float, float, str, str]]:
    return [(one.begin, one.end, one.use.value, one.cause) for one in spans]


def test_a_whole_life_of_a_replica() -> None:
    life = watch(
        20,
        400,
        Note(20, "starting", "launch"),
        Note(30, "starting", "load"),
        Note(60, "starting", "compile"),
        Note(90, "starting", "warm-up"),
        Note(100, "ready", "", busy=False),
        Note(110, "ready", "", busy=True),
        Note(200, "ready", "", busy=False),
        Note(300, "draining", "", busy=True),
        Note(390, "exited"),
    )
    jobs = demand(
        [
            Asking(105, 205, "a", in_flight=10, repeated=0.25),
            Asking(205, 220, "a", in_flight=1, waits=LIMIT_TOO_LOW),
            Asking(220, 240, "a", in_flight=0, waits=BACK_OFF),
        ]
    )
    found = classify([Allocation(0, 410, GPUS)], [life], jobs, now=1000)
    assert said(found) == [
        (0, 20, "starting", "pull"),
        (20, 30, "starting", "launch"),
        (30, 60, "starting", "load"),
        (60, 90, "starting", "compile"),
        (90, 100, "starting", "warm-up"),
        (100, 110, "idle_without_work", ""),
        (110, 177.5, "working", ""),
        (177.5, 200, "repeated", ""),
        (200, 205, "idle_without_work", ""),
        (205, 220, "idle_rows_waiting", LIMIT_TOO_LOW),
        (220, 240, "idle_rows_waiting", BACK_OFF),
        (240, 300, "idle_without_work", ""),
        (300, 390, "draining", ""),
        (390, 410, "draining", "ended"),
    ]
    assert {one.job for one in found if one.use in (Use.WORKING, Use.REPEATED, Use.ROWS_WAIT)} == {
        "a"
    }
    assert {one.gpus for one in found} == {GPUS}


@pytest.mark.parametrize(
    ("watches", "now", "expected"),
    [
        # No watchdog has written yet: the image is pulled
        ([], 50, [(0, 50, "starting", "pull")]),
        # It is alive
        ([watch(0, 48, Note(0, "ready", busy=True))], 50, [(0, 50, "working", "")]),
        # It fell silent: what came after its last sign of life is not known
        (
            [watch(0, 20, Note(0, "ready", busy=True))],
            50,
            [(0, 20, "working", ""), (20, 50, "unknown", "nobody wrote")],
        ),
        # It was killed, and its successor began: the engine was dead
        (
            [
                watch(0, 20, Note(0, "ready", busy=True)),
                watch(30, 50, Note(30, "starting", "load")),
            ],
            50,
            [(0, 20, "working", ""), (20, 30, "dead", "killed"), (30, 50, "starting", "load")],
        ),
        # It said that it gives up
        ([watch(0, 20, Note(0, "failed"))], 50, [(0, 50, "dead", "failed")]),
        # The disk took nothing for a while: an old line is not believed for ever
        (
            [watch(0, 400, Note(0, "ready", busy=False), Note(300, "ready", busy=True))],
            400,
            [
                (0, 120, "idle_without_work", ""),
                (120, 300, "unknown", "nobody wrote"),
                (300, 400, "working", ""),
            ],
        ),
        # An engine without gauges: whether it works is not guessed
        ([watch(0, 50, Note(0, "ready"))], 50, [(0, 50, "unknown", "no gauges")]),
        # Its probe fails, and tokens come; then none do
        (
            [watch(0, 50, Note(0, "unhealthy", busy=True), Note(20, "unhealthy", busy=False))],
            50,
            [(0, 20, "working", ""), (20, 50, "dead", "unhealthy")],
        ),
        ([watch(0, 50, Note(0, "restarting"))], 50, [(0, 50, "dead", "restarting")]),
    ],
)
def test_what_is_known_of_an_allocation_that_goes_on(
    watches: list[Watch], now: float, expected: list[tuple[float, float, str, str]]
) -> None:
    assert said(classify([Allocation(0, None, 1)], watches, [], now)) == expected


def test_time_at_work_is_shared_by_what_jobs_have_in_flight() -> None:
    jobs = demand(
        [Asking(0, 100, "a", 30), Asking(0, 100, "b", 10), Asking(50, 60, "c", waits="x")]
    )
    life = watch(0, 100, Note(0, "ready", busy=True), Note(60, "ready", busy=True))
    found = classify([Allocation(0, 100, 2)], [life], jobs, 100)
    used = {job: sum(one.seconds for one in found if one.job == job) for job in ("a", "b", "c")}
    assert used == pytest.approx({"a": 75, "b": 25, "c": 0})


def test_a_replica_waits_for_its_first_and_its_next_allocation_and_not_for_one_that_failed() -> (
    None
):
    runs = [Allocation(10, 50, 1), Allocation(70, 90, 1)]
    waits = [(0, 10), (50, 70)]
    assert [one[:2] for one in queued([(0, 100)], runs, failed=True)] == waits
    assert [one[:2] for one in queued([(0, 100)], runs, failed=False)] == [*waits, (90, 100)]
    assert [one[:2] for one in queued([(0, 30)], [], failed=False)] == [(0, 30)]
    assert queued([(0, 30)], [Allocation(0, None, 1)], failed=False) == []


def test_gpu_seconds_of_a_window() -> None:
    runs = [Allocation(0, 10, 4), Allocation(20, None, 4)]
    assert gpu_seconds(runs, 0, 30) == 80
    assert gpu_seconds(runs, 5, 25) == 40
    assert gpu_seconds(runs, 12, 15) == 0


def test_energy_lies_evenly_between_two_readings() -> None:
    life = watch(
        0,
        100,
        Note(0, "ready", joules=0.0, joules_at=0),
        Note(50, "ready"),
        Note(60, "ready", joules=400.0, joules_at=40),
        Note(100, "ready", joules=1000.0, joules_at=90),
    )
    energy = Energy([life])
    assert energy.used(0, 100) == (1000, 90)
    assert energy.used(10, 20) == pytest.approx((100, 10))
    assert energy.used(30, 50) == pytest.approx((100 + 120, 20))
    assert energy.used(80, 100) == pytest.approx((120, 10))
    assert energy.used(90, 100) is None
    assert Energy([watch(0, 9, Note(0, "ready"))]).used(0, 9) is None


# -- whatever was written ----------------------------------------------------------------------

TIMES = st.integers(0, 2_000_000).map(lambda number: number / 1000)  # as they are written
STATES = st.sampled_from(
    ["starting", "ready", "unhealthy", "restarting", "draining", "exited", "failed", "of a newer"]
)


@st.composite
def watch_lists(draw: st.DrawFn) -> list[Watch]:
    found = []
    for at in range(draw(st.integers(0, 4))):
        times = sorted(draw(st.lists(TIMES, min_size=2, max_size=12)))
        notes = tuple(
            Note(one, draw(STATES), busy=draw(st.none() | st.booleans())) for one in times[1:-1]
        )
        found.append(Watch(str(at), times[0], times[-1], notes, draw(st.floats(0.1, 60))))
    return sorted(found, key=lambda one: one.began)


@st.composite
def allocation_lists(draw: st.DrawFn) -> list[Allocation]:
    times = sorted(draw(st.lists(TIMES, max_size=8, unique=True)))
    gpus = draw(st.sampled_from([0, 1, 8, 16]))
    spans = [Allocation(a, b, gpus) for a, b in zip(times[::2], times[1::2], strict=False)]
    if len(times) % 2:
        spans.append(Allocation(times[-1], None, gpus))
    return spans


@st.composite
def askings(draw: st.DrawFn) -> list[Asking]:
    return [
        Asking(
            begin,
            begin + draw(st.integers(0, 500_000)) / 1000,
            draw(st.sampled_from("abc")),
            draw(st.integers(0, 40)),
            draw(st.none() | st.sampled_from([BACK_OFF, LIMIT_TOO_LOW])),
            draw(st.floats(0, 1, allow_subnormal=False)),
        )
        for begin in draw(st.lists(TIMES, max_size=12))
    ]


@settings(max_examples=150, deadline=None)
@given(allocation_lists(), watch_lists(), askings(), st.floats(2000, 4000))
def test_the_uses_divide_the_time_of_the_allocations_without_gap_and_overlap(
    runs: list[Allocation], watches: list[Watch], asked: list[Asking], now: float
) -> None:
    found = classify(runs, watches, demand(asked), now)
    assert all(one.use in HELD and one.end > one.begin for one in found)
    assert all(before.end <= after.begin for before, after in pairwise(found))
    for run in runs:
        end = now if run.end is None else run.end
        own = [one for one in found if run.begin <= one.begin < end]
        if end > run.begin:  # it begins where it begins, ends where it ends, and has no hole
            assert own[0].begin == run.begin
            assert own[-1].end == end
            assert all(a.end == b.begin for a, b in pairwise(own))
    whole = gpu_seconds(runs, -math.inf, now)
    assert math.fsum(one.seconds * one.gpus for one in found) == pytest.approx(whole)


@settings(max_examples=80, deadline=None)
@given(askings())
def test_what_jobs_want_is_known_for_each_moment_once(asked: list[Asking]) -> None:
    found = demand(asked)
    assert all(before.end <= after.begin for before, after in pairwise(found))
    for one in found:
        shares = [share for _, share, _ in one.shares]
        assert math.fsum(shares) == pytest.approx(1) if shares else one.shares == ()
        middle = (one.begin + one.end) / 2
        active = [job for job in asked if job.begin <= middle < job.end]
        assert bool(one.shares) == any(job.in_flight for job in active)
        assert (one.waiting is not None) == any(job.waits is not None for job in active)
    assert all(isinstance(one, Demand) for one in found)
