"""Time series of a job's runs, from their traces, and of the states of replicas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from domyn_swarm.backends.endpoint.view import ReplicaEvent
from domyn_swarm.backends.gpu_time import (
    BACK_OFF,
    DRIVER_AWAY,
    ENDPOINT_AWAY,
    JOB_STARTING,
    LIMIT_TOO_LOW,
    NOT_SENT,
    ROWS_ALONE,
    Asking,
)
from domyn_swarm.paths import JobPaths
from domyn_swarm.services.charts import Chart, Moment, Series, over_time

if TYPE_CHECKING:
    from domyn_swarm.batch.checkpoint.accounting import RunAccount

_POINTS = 400  # on one plot, over all runs
_TOO_SHORT_S = 0.5
_SAME_RUN_S = 5.0  # tolerance between the start times of a run in two files


class TraceLine(msgspec.Struct):
    """One line of `trace.jsonl`."""

    at_s: float
    at: float = 0.0
    settled: int = 0
    in_flight: int = 0
    limit: int | None = None
    running: float | None = None
    waiting: float | None = None
    completion_tokens: int = 0
    requests: int = 0
    retries: int = 0
    turned_away: int = 0
    rows_done: int = 0
    rows_total: int | None = None  # None: unknown, or written by an earlier version
    paused: bool = False
    why: str | None = None  # the cause of a pause


@dataclass(frozen=True)
class Stretch:
    """An interval of one run. Times are seconds of work since the start of the first run."""

    from_s: float
    to_s: float
    rows_per_s: float
    tokens_per_s: float
    in_flight: int
    limit: int | None
    running: float | None
    waiting: float | None


@dataclass(frozen=True)
class JobTimeSeries:
    """All runs one after the other, without the time between them."""

    stretches: tuple[tuple[Stretch, ...], ...]  # of each run
    begins_s: tuple[float, ...]  # of each run
    whole_s: float
    runs: tuple[RunAccount, ...]

    def place_of(self, moment: datetime) -> float | None:
        """The position of a moment on the time axis; None: no run was active."""
        for begin_s, run in zip(self.begins_s, self.runs, strict=True):
            if run.began_at is not None:
                since = moment - run.began_at
                if timedelta() <= since <= timedelta(seconds=run.wall_s):
                    return begin_s + since.total_seconds()
        return None


def read_trace(job_dir: Path) -> list[list[TraceLine]]:
    """The trace lines in a job's folder, a list for each run."""
    runs: list[list[TraceLine]] = []
    decoder = msgspec.json.Decoder(TraceLine)
    try:
        with JobPaths(job_dir).trace.open("rb") as file:
            for text in file:
                try:
                    line = decoder.decode(text)
                except ValueError:  # the worker was killed while it wrote
                    continue
                if not runs or line.at_s < runs[-1][-1].at_s:
                    runs.append([])
                runs[-1].append(line)
    except OSError:
        return []
    return runs


def time_series_of(
    runs: Sequence[RunAccount], traces: Sequence[Sequence[TraceLine]]
) -> JobTimeSeries:
    """The time series of runs, each with the trace that began at the same time."""
    begins, stretches, so_far = [], [], 0.0
    whole_s = sum(run.wall_s for run in runs)
    for run in runs:
        begins.append(so_far)
        most = max(2, round(_POINTS * run.wall_s / whole_s)) if whole_s else 2
        stretches.append(tuple(_stretches(run, _trace_of(run, traces), so_far, most)))
        so_far += run.wall_s
    return JobTimeSeries(tuple(stretches), tuple(begins), whole_s, tuple(runs))


def _trace_of(run: RunAccount, traces: Sequence[Sequence[TraceLine]]) -> Sequence[TraceLine]:
    if run.began_at is None:
        return ()
    began = run.began_at.timestamp()
    near = [(abs(lines[0].at - lines[0].at_s - began), lines) for lines in traces if lines]
    apart_s, lines = min(near, key=lambda candidate: candidate[0], default=(_SAME_RUN_S, ()))
    return lines if apart_s < _SAME_RUN_S else ()


def _stretches(
    run: RunAccount, lines: Sequence[TraceLine], begin_s: float, most: int
) -> list[Stretch]:
    if not lines:
        return []
    counted = run.counters
    last = TraceLine(
        at_s=run.wall_s,
        settled=counted.rows_answered + counted.rows_failed,
        completion_tokens=counted.completion_tokens,
    )
    step = max(run.wall_s / most, _TOO_SHORT_S)
    stretches: list[Stretch] = []
    before = TraceLine(at_s=0.0)
    for line in [*lines, last]:
        passed_s = line.at_s - before.at_s
        if passed_s < step and line is not last:
            continue
        if passed_s <= 0 or (stretches and passed_s < _TOO_SHORT_S):
            break  # the rest is too short to compute a rate
        busy = line if line is not last else lines[-1]
        stretches.append(
            Stretch(
                from_s=begin_s + before.at_s,
                to_s=begin_s + line.at_s,
                rows_per_s=max(0, line.settled - before.settled) / passed_s,
                tokens_per_s=max(0, line.completion_tokens - before.completion_tokens) / passed_s,
                in_flight=busy.in_flight,
                limit=busy.limit,
                running=busy.running,
                waiting=busy.waiting,
            )
        )
        before = line
    return stretches


def asking_of(
    job_id: str,
    runs: Sequence[Sequence[TraceLine]],
    submitted: float,
    ended: float | None,
    now: float,
) -> list[Asking]:
    """The demand of a job on its swarm from `submitted` to `ended` (None: it has not ended).

    Derived from the traces of its runs: the requests in flight, the repeated share of them, and
    the cause why further rows waited. Times are seconds since the epoch.
    """
    end = now if ended is None else ended
    demand: list[Asking] = []
    cursor, lost, last = submitted, 0, None
    for run in runs:
        began = max(cursor, run[0].at - run[0].at_s)
        away = JOB_STARTING if last is None else DRIVER_AWAY
        demand.append(Asking(cursor, began, job_id, waits=away))
        cursor, before = began, TraceLine(at_s=0.0)
        for line in run:
            heard = max(cursor, line.at - _spacing_s(line))
            demand.append(Asking(cursor, heard, job_id, waits=DRIVER_AWAY))
            demand.append(_asking(job_id, heard, line, before, lost))
            cursor, before = max(cursor, line.at), line
        last = run[-1]
        lost = last.in_flight
    if last is not None and _rows_left(last):
        silent = min(end, cursor + (_spacing_s(last) if ended is None else 0.0))
        demand.append(_asking(job_id, cursor, last, last, 0)._replace(end=silent))
        demand.append(Asking(silent, end, job_id, waits=DRIVER_AWAY))
    elif last is None:
        demand.append(Asking(cursor, end, job_id, waits=JOB_STARTING))
    return [interval for interval in demand if interval.end > interval.begin]


def _spacing_s(line: TraceLine) -> float:
    """The longest interval between two lines of a worker that runs and is not overloaded."""
    return 5.0 + 3 * max(1.0, line.at_s / 1000)


def _rows_left(line: TraceLine) -> bool:
    """Whether some rows were neither settled nor in flight."""
    return line.rows_total is None or line.rows_done + line.in_flight < line.rows_total


def _asking(job_id: str, begin: float, line: TraceLine, before: TraceLine, lost: int) -> Asking:
    requests = max(0, line.requests - before.requests)
    repeats = line.retries - before.retries
    repeats += min(lost, line.requests) - min(lost, before.requests)
    again = min(1.0, max(0, repeats) / requests) if requests else 0.0
    return Asking(begin, line.at, job_id, line.in_flight, _why_rows_wait(line, before), again)


def _why_rows_wait(line: TraceLine, before: TraceLine) -> str | None:
    if line.paused:
        from domyn_swarm.batch.run.gate import ALONE  # here, because it imports the HTTP client

        return ROWS_ALONE if (line.why or "").startswith(ALONE) else ENDPOINT_AWAY
    if not _rows_left(line):
        return None
    if line.limit is not None and line.in_flight >= line.limit:
        return LIMIT_TOO_LOW
    refused = (line.turned_away, line.retries) != (before.turned_away, before.retries)
    return BACK_OFF if refused else NOT_SENT


_LAST = timedelta(hours=1)  # the last hour of a longer history has a second plot
_MARKS = 30
_READY, _COMING, _BROKEN = range(3)
_GROUPS = {
    "ready": _READY,
    **dict.fromkeys(("starting", "restarting", "draining"), _COMING),
    **dict.fromkeys(("unhealthy", "failed"), _BROKEN),
}  # pending and exited replicas are not counted
_WAS_READY = frozenset({"unhealthy", "draining"})  # states that only a ready replica enters


@dataclass(frozen=True)
class Count:
    """The number of replicas in each group of states from a moment on."""

    at: datetime
    ready: int
    coming: int  # starting, restarting, or draining
    broken: int  # unhealthy, or failed


def replica_counts(events: Sequence[ReplicaEvent], states: Mapping[int, str]) -> list[Count]:
    """The counts after each change, oldest first.

    The state of a replica before its first change is derived from that change. A replica without a
    change has always had its present state, `states`.
    """
    now = dict(states)
    ordered = sorted(events, key=lambda event: event.reported_at)
    for event in reversed(ordered):  # so that the first change of each replica is applied last
        now[event.replica] = "ready" if event.state in _WAS_READY else ""
    counted = [0, 0, 0]
    for state in now.values():
        _add(counted, state, 1)
    counts = []
    for event in ordered:
        _add(counted, now[event.replica], -1)
        now[event.replica] = event.state
        _add(counted, event.state, 1)
        counts.append(Count(event.reported_at, *counted))
    return counts


def _add(counted: list[int], state: str, change: int) -> None:
    group = _GROUPS.get(state)
    if group is not None:
        counted[group] += change


def replica_charts(
    events: Sequence[ReplicaEvent], states: Mapping[int, str], now: datetime
) -> list[Chart]:
    """Plots of the replicas by state, since the first change and for the last hour.

    Args:
        events: the recorded changes.
        states: the present state of each replica, by its index.
        now: the end of the plots.
    """
    counts = replica_counts(events, states)
    if not counts:
        return []
    began = counts[0].at
    charts = [_chart("Replicas over time", counts, events, began, now)]
    if now - began > 2 * _LAST:
        charts.append(_chart("Replicas in the last hour", counts, events, now - _LAST, now))
    return [chart for chart in charts if chart is not None]


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
        Series("ready", "a", [(begin, end, count.ready) for begin, end, count in spans]),
        Series("on the way", "c", [(begin, end, count.coming) for begin, end, count in spans]),
        Series(
            "unhealthy or failed",
            "bad",
            [(begin, end, count.broken) for begin, end, count in spans],
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
    """Start and end (seconds since `began`) of each count, without those too short to be drawn."""
    spans: list[tuple[float, float, Count]] = []
    ends = [*((count.at - began).total_seconds() for count in counts[1:]), whole_s]
    begin_s = max(0.0, (counts[0].at - began).total_seconds())
    for count, end_s in zip(counts, ends, strict=True):
        if end_s - begin_s >= whole_s / _POINTS or end_s >= whole_s:
            spans.append((begin_s, max(begin_s, end_s), count))
            begin_s = max(begin_s, end_s)
    return spans
