"""What a job wanted of its swarm, and why its rows waited, by the lines that its runs left."""

from __future__ import annotations

from itertools import pairwise

import pytest

from domyn_swarm.backends.gpu_time import (
    BACK_OFF,
    DRIVER_AWAY,
    ENDPOINT_AWAY,
    JOB_STARTING,
    LIMIT_TOO_LOW,
    NOT_SENT,
    ROWS_ALONE,
)
from domyn_swarm.batch.run.gate import ALONE
from domyn_swarm.services.time_series import TraceLine, asking_of

BEGAN = 1000.0


def line(at_s: float, **fields: object) -> TraceLine:
    usual = {"rows_total": 100, "in_flight": 8, "limit": 16, "requests": int(at_s * 10)}
    return TraceLine(at_s=at_s, at=BEGAN + at_s, **{**usual, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"in_flight": 16}, LIMIT_TOO_LOW),
        ({"turned_away": 3}, BACK_OFF),
        ({"retries": 3}, BACK_OFF),
        ({}, NOT_SENT),
        ({"paused": True, "why": "the endpoint does not answer"}, ENDPOINT_AWAY),
        ({"paused": True, "why": ALONE}, ROWS_ALONE),
        ({"rows_done": 92}, None),  # the last ones are in flight
        ({"rows_total": None, "rows_done": 92}, NOT_SENT),
    ],
)
def test_why_rows_wait(fields: dict[str, object], why: str | None) -> None:
    [_, one, *_] = asking_of("j", [[line(1, **fields)]], BEGAN - 5, BEGAN + 1, BEGAN + 1)
    assert (one.begin, one.end, one.waits) == (BEGAN, BEGAN + 1, why)


def test_a_job_that_waits_for_its_driver_was_killed_and_goes_on() -> None:
    first = [line(1), line(2), line(3, in_flight=10, requests=30)]
    second = [
        TraceLine(at_s=1, at=BEGAN + 51, requests=20, in_flight=4, rows_total=100, rows_done=50),
        TraceLine(at_s=2, at=BEGAN + 52, requests=40, retries=5, rows_total=100, rows_done=100),
    ]
    found = asking_of("j", [first, second], BEGAN - 30, BEGAN + 60, BEGAN + 60)
    assert all(before.end == after.begin for before, after in pairwise(found))
    assert [(one.begin - BEGAN, one.end - BEGAN, one.waits) for one in found] == [
        (-30, 0, JOB_STARTING),
        (0, 1, NOT_SENT),
        (1, 2, NOT_SENT),
        (2, 3, NOT_SENT),
        (3, 50, DRIVER_AWAY),
        (50, 51, NOT_SENT),
        (51, 52, None),
    ]
    # Ten were in flight when the first run was killed: they are the first that the second sends
    assert [one.repeated for one in found[-2:]] == [0.5, 0.25]


def test_a_driver_that_falls_silent_is_away_from_when_it_would_have_written() -> None:
    run = [line(1), line(100, requests=1000)]
    found = asking_of("j", [run], BEGAN, None, BEGAN + 130)
    told = [(one.begin - BEGAN, one.end - BEGAN, one.waits) for one in found]
    assert told == [
        (0, 1, NOT_SENT),
        (1, 92, DRIVER_AWAY),
        (92, 100, NOT_SENT),
        (100, 108, NOT_SENT),
        (108, 130, DRIVER_AWAY),
    ]
    assert asking_of("j", [], BEGAN, None, BEGAN + 9)[0].waits == JOB_STARTING
