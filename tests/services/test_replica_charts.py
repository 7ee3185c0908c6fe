"""How many replicas were ready when, from the changes that the collector kept."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from domyn_swarm.backends.endpoint.view import ReplicaEvent
from domyn_swarm.services.time_series import replica_charts, replica_counts

BEGAN = datetime(2026, 11, 26, 8, 0, tzinfo=UTC)


def event(at_s: float, replica: int, state: str) -> ReplicaEvent:
    return ReplicaEvent(
        reported_at=BEGAN + timedelta(seconds=at_s), replica=replica, state=state, reason="<why>"
    )


@pytest.mark.parametrize(
    ("events", "states", "counts"),
    [
        ([], {0: "ready"}, []),
        (
            [(0, 0, "starting"), (1, 1, "starting"), (5, 0, "ready"), (6, 1, "failed")],
            {0: "ready", 1: "failed"},
            [(0, 1, 0), (0, 2, 0), (1, 1, 0), (1, 0, 1)],
        ),
        # Before the first change that is known: only a ready one becomes unhealthy, or drains
        ([(0, 3, "unhealthy"), (1, 3, "ready")], {3: "ready"}, [(0, 0, 1), (1, 0, 0)]),
        ([(0, 1, "draining"), (1, 0, "unhealthy")], {0: "unhealthy"}, [(1, 1, 0), (0, 1, 1)]),
        # Whoever has no change has always been as it is now
        ([(0, 0, "exited")], {0: "exited", 1: "ready", 2: "pending"}, [(1, 0, 0)]),
        # Changes that came in another order than they happened
        ([(2, 0, "ready"), (1, 0, "starting")], {0: "ready"}, [(0, 1, 0), (1, 0, 0)]),
    ],
)
def test_how_many_there_were_after_each_change(
    events: list[tuple[float, int, str]],
    states: dict[int, str],
    counts: list[tuple[int, int, int]],
) -> None:
    found = replica_counts([event(*one) for one in events], states)
    assert [(one.ready, one.coming, one.broken) for one in found] == counts


def test_a_long_history_has_a_plot_of_its_end_too_and_plots_stay_small() -> None:
    events = [
        event(60.0 * minute, minute % 40, "starting" if minute % 80 < 40 else "ready")
        for minute in range(2000)
    ]
    whole, last = replica_charts(events, {}, BEGAN + timedelta(minutes=2000))
    assert (whole.title, last.title) == ("Replicas over time", "Replicas in the last hour")
    assert all(len(line.path) < 40_000 for line in (*whole.lines, *last.lines))
    [only] = replica_charts(events[:60], {}, BEGAN + timedelta(minutes=60))
    assert [line.name for line in only.lines] == ["ready", "on the way", "unhealthy or failed"]
    assert replica_charts([], {0: "ready"}, BEGAN) == []
