"""How many replicas of a swarm were ready over time, from the changes that its collector kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from domyn_swarm.backends.endpoint.view import ReplicaEvent
from domyn_swarm.services.charts import Chart, Moment, Series, over_time

_POINTS = 400  # on one plot
_LAST = timedelta(hours=1)  # a longer history has a plot of its end, too
_MARKS = 30
_READY, _COMING, _BROKEN = range(3)
_GROUPS = {
    "ready": _READY,
    **dict.fromkeys(("starting", "restarting", "draining"), _COMING),
    **dict.fromkeys(("unhealthy", "failed"), _BROKEN),
}  # those that are pending or have exited are not there
_WAS_READY = frozenset({"unhealthy", "draining"})  # nothing else becomes so


@dataclass(frozen=True)
class Count:
    """How many replicas there were from a moment on."""

    at: datetime
    ready: int
    coming: int  # starting, restarting, or draining
    broken: int  # unhealthy, or failed


def replica_counts(events: Sequence[ReplicaEvent], states: Mapping[int, str]) -> list[Count]:
    """After each change, the oldest first. What a replica was before its first change is read from
    that change; one without a change has always been what it is now, by `states`.
    """
    now = dict(states)
    ordered = sorted(events, key=lambda one: one.reported_at)
    for event in reversed(ordered):  # the first change of each is the last to be written here
        now[event.replica] = "ready" if event.state in _WAS_READY else ""
    counted = [0, 0, 0]
    for state in now.values():
        _add(counted, state, 1)
    found = []
    for event in ordered:
        _add(counted, now[event.replica], -1)
        now[event.replica] = event.state
        _add(counted, event.state, 1)
        found.append(Count(event.reported_at, *counted))
    return found


def _add(counted: list[int], state: str, change: int) -> None:
    group = _GROUPS.get(state)
    if group is not None:
        counted[group] += change


def replica_charts(
    events: Sequence[ReplicaEvent], states: Mapping[int, str], now: datetime
) -> list[Chart]:
    """Ready replicas and others from the first change until now, and in the last hour.

    Args:
        events: the changes that are known.
        states: what each replica is now, by its index.
        now: where the plots end.
    """
    counts = replica_counts(events, states)
    if not counts:
        return []
    began = counts[0].at
    found = [_chart("Replicas over time", counts, events, began, now)]
    if now - began > 2 * _LAST:
        found.append(_chart("Replicas in the last hour", counts, events, now - _LAST, now))
    return [chart for chart in found if chart is not None]


def _chart(
    title: str,
    counts: Sequence[Count],
    events: Sequence[ReplicaEvent],
    began: datetime,
    now: datetime,
) -> Chart | None:
    whole_s = max(1.0, (now - began).total_seconds())
    spans = _spans(counts, began, whole_s)
    series = [
        Series("ready", "a", [(begin, end, one.ready) for begin, end, one in spans]),
        Series("on the way", "c", [(begin, end, one.coming) for begin, end, one in spans]),
        Series(
            "unhealthy or failed", "bad", [(begin, end, one.broken) for begin, end, one in spans]
        ),
    ]
    unit = f"replicas, since {began:%Y-%m-%d %H:%M} UTC"
    moments = [
        Moment(
            (event.reported_at - began).total_seconds(),
            f"replica {event.replica} {event.state}",
            f"replica {event.replica} {event.state}: {event.reason or ''}",
            "bad",
        )
        for event in events
        if _GROUPS.get(event.state) == _BROKEN and event.reported_at >= began
    ]
    return over_time(title, unit, whole_s, series, moments[-_MARKS:], whole=True)


def _spans(
    counts: Sequence[Count], began: datetime, whole_s: float
) -> list[tuple[float, float, Count]]:
    """From, to (seconds since `began`) and what held then; what held too briefly to be drawn is
    left out.
    """
    found: list[tuple[float, float, Count]] = []
    ends = [*((one.at - began).total_seconds() for one in counts[1:]), whole_s]
    begin_s = max(0.0, (counts[0].at - began).total_seconds())
    for one, end_s in zip(counts, ends, strict=True):
        if end_s - begin_s >= whole_s / _POINTS or end_s >= whole_s:
            found.append((begin_s, max(begin_s, end_s), one))
            begin_s = max(begin_s, end_s)
    return found
