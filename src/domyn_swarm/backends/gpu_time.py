"""What every second of a replica was used for. Pure: no clock, no file, no socket.

Times are seconds since the epoch. `classify` divides the whole time of each allocation: its spans
follow each other without gaps or overlaps. Time without data is `UNKNOWN`, never guessed.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from itertools import pairwise
from typing import NamedTuple

BEAT_S = 60.0  # longest interval between two lines of a watchdog
_HOLDS_S = 2 * BEAT_S  # how long a line is valid
LATE_BEATS = 3  # a watchdog with a more recent sign of life is assumed to live


class Use(StrEnum):
    """What a replica's time was used for. Only `QUEUED` is time without GPUs."""

    QUEUED = "queued"  # wanted, and without an allocation
    STARTING = "starting"
    WORKING = "working"  # requests are in the engine
    REPEATED = "repeated"  # repeated requests: retries, lost in flight
    # ready and empty, while a job has rows that no replica works on
    ROWS_WAIT = "idle_rows_waiting"
    NO_WORK = "idle_without_work"
    DRAINING = "draining"
    DEAD = "dead"  # its engine has ended, or does not answer
    UNKNOWN = "unknown"


HELD = tuple(use for use in Use if use is not Use.QUEUED)
"""Uses of time in which GPUs were allocated."""

# Why rows waited while a replica was idle
JOB_STARTING = "starting"
ENDPOINT_AWAY = "endpoint away"
LIMIT_TOO_LOW = "limit too low"
BACK_OFF = "back-off"
DRIVER_AWAY = "driver away"
ROWS_ALONE = "rows asked alone"  # rows whose requests may have crashed engines
NOT_SENT = "not sent yet"
# Phases of a start before the engine's own
PULL, LAUNCH = "pull", "launch"
# Reasons of UNKNOWN
SILENT, NO_GAUGES = "nobody wrote", "no gauges"


class Allocation(NamedTuple):
    """GPUs that the platform allocated to one replica, once. `end` None: still allocated."""

    begin: float
    end: float | None
    gpus: int
    name: str = ""  # the scheduler's id


class Note(NamedTuple):
    """A line of a watchdog: it is valid until the next one."""

    at: float
    state: str
    phase: str = ""  # phase of a start, from the engine's log
    busy: bool | None = None  # None: the engine does not report it
    joules: float | None = None  # energy since the watchdog's first reading of power
    joules_at: float = 0.0  # time of that reading


class Watch(NamedTuple):
    """One watchdog process of a replica."""

    incarnation: str
    began: float
    alive_until: float  # last sign of life
    notes: tuple[Note, ...]  # ordered by time
    beat_s: float = 5.0  # interval of its signs of life

    def lives(self, now: float) -> bool:
        """Whether it is assumed to be alive."""
        return not self.over and now - self.alive_until <= LATE_BEATS * self.beat_s

    @property
    def over(self) -> bool:
        """Whether its engine has ended permanently, or on request."""
        return bool(self.notes) and self.notes[-1].state in ("exited", "failed")


class Asking(NamedTuple):
    """A job between two moments."""

    begin: float
    end: float
    job: str
    in_flight: int = 0
    waits: str | None = None  # why its rows wait; None: none do
    repeated: float = 0.0  # the share of its requests that are repeated


class Demand(NamedTuple):
    """All jobs of a swarm between two moments."""

    begin: float
    end: float
    # job, its share, its share of repeated requests
    shares: tuple[tuple[str, float, float], ...] = ()
    waiting: tuple[str, str] | None = None  # a job whose rows wait, and why


class Span(NamedTuple):
    """The use of a replica's time from `begin` to `end`."""

    begin: float
    end: float
    use: Use
    cause: str = ""
    job: str | None = None
    gpus: int = 0

    @property
    def seconds(self) -> float:
        """The replica's seconds."""
        return self.end - self.begin


def gpu_seconds(allocations: Iterable[Allocation], since: float, until: float) -> float:
    """GPU-seconds that allocations hold between two moments; current ones count up to `until`."""
    return sum(
        one.gpus
        * max(0.0, min(until, math.inf if one.end is None else one.end) - max(since, one.begin))
        for one in allocations
    )


def demand(asking: Iterable[Asking]) -> list[Demand]:
    """The demand of all jobs together over time, ordered by time; empty if no job runs. If rows of
    several jobs wait, the first job by name gives the cause.
    """
    known = sorted(
        (one for one in asking if one.end > one.begin),
        key=lambda one: (one.begin, one.end, one.job),
    )
    cuts = sorted({moment for one in known for moment in (one.begin, one.end)})
    found: list[Demand] = []
    active: list[Asking] = []
    coming = iter(known)
    following = next(coming, None)
    for begin, end in pairwise(cuts):
        active = [one for one in active if one.end > begin]
        while following is not None and following.begin <= begin:
            active.append(following)
            following = next(coming, None)
        if active:
            found.append(_together(begin, end, active))
    return found


def _together(begin: float, end: float, active: Sequence[Asking]) -> Demand:
    whole = sum(one.in_flight for one in active)
    shares = tuple(
        (one.job, one.in_flight / whole, min(1.0, max(0.0, one.repeated)))
        for one in active
        if one.in_flight
    )
    waiting = min(((one.job, one.waits) for one in active if one.waits is not None), default=None)
    return Demand(begin, end, shares, waiting)


def classify(
    allocations: Sequence[Allocation],
    watches: Sequence[Watch],
    wanted: Sequence[Demand],
    now: float,
) -> list[Span]:
    """The use of each moment of one replica's allocations.

    Args:
        allocations: ordered by time, without overlaps.
        watches: of its watchdogs, ordered by time.
        wanted: the demand of the swarm's jobs over time; see `demand`.
        now: where current allocations end.
    """
    found: list[Span] = []
    starts = [one.begin for one in wanted]
    for one in allocations:
        end = now if one.end is None else one.end
        for begin, until, note in _joined(_states(one.begin, end, one.end is None, watches)):
            at = max(0, bisect_right(starts, begin) - 1)
            found.extend(
                span._replace(gpus=one.gpus) for span in _spans(begin, until, note, wanted, at)
            )
    return merged(found)


def queued(
    wanted: Sequence[tuple[float, float]], allocations: Sequence[Allocation], *, failed: bool
) -> list[Span]:
    """The time in which a replica was wanted and had no allocation.

    Args:
        wanted: when it was wanted: pairs of begin and end.
        allocations: ordered by time.
        failed: it ended permanently, so no time after the last allocation counts.
    """
    found = []
    last = max((math.inf if one.end is None else one.end for one in allocations), default=-math.inf)
    for begin, end in wanted:
        cursor = begin
        for one in allocations:
            if one.begin > cursor:
                found.append(Span(cursor, min(end, one.begin), Use.QUEUED))
            cursor = max(cursor, math.inf if one.end is None else one.end)
        if cursor < end and not (failed and cursor >= last):
            found.append(Span(cursor, end, Use.QUEUED))
    return [one for one in found if one.end > one.begin]


_Part = tuple[float, float, Note | None]
_STARTS = Note(0.0, "starting", PULL)
_GONE = Note(0.0, "gone")


def _states(begin: float, end: float, live: bool, watches: Sequence[Watch]) -> Iterator[_Part]:
    """The states of a replica from `begin` to `end`, in sequence; None: not known."""
    cursor, before = begin, None
    for watch in watches:
        if watch.began >= end or max(watch.alive_until, watch.began) < begin:
            continue
        if watch.began > cursor:
            yield cursor, watch.began, _between(before, followed=True)
            cursor = watch.began
        for part in _of_watch(watch, max(cursor, watch.began), end):
            yield part
            cursor = part[1]
        before = watch
    if cursor >= end:
        return
    last = before.notes[-1] if before is not None and before.notes else None
    if live and before is not None and before.lives(end):
        yield cursor, end, last
    else:
        yield cursor, end, _between(before, followed=False)


def _joined(parts: Iterable[_Part]) -> Iterator[_Part]:
    """The same with adjacent equal states merged: most lines only repeat the one before."""
    last: _Part | None = None
    for part in parts:
        if last is None:
            last = part
        elif _kind(last[2]) == _kind(part[2]):
            last = (last[0], part[1], last[2])
        else:
            yield last
            last = part
    if last is not None:
        yield last


def _kind(note: Note | None) -> tuple[str, str, bool | None] | None:
    return None if note is None else (note.state, note.phase, note.busy)


def _of_watch(watch: Watch, begin: float, end: float) -> Iterator[_Part]:
    """From `begin`, or the first line, until the watchdog's last sign of life."""
    until = min(end, watch.alive_until)
    following = [*(note.at for note in watch.notes[1:]), until]
    cursor = begin
    if watch.notes and watch.notes[0].at > cursor:  # it runs, and has not written yet
        stop = min(until, watch.notes[0].at)
        if stop > cursor:
            late = stop - cursor > _HOLDS_S
            yield cursor, stop, None if late else Note(cursor, "starting", LAUNCH)
            cursor = stop
    for note, at in zip(watch.notes, following, strict=False):
        stop = min(until, at)
        believed = min(stop, note.at + _HOLDS_S)
        if believed > cursor:
            yield cursor, believed, note
            cursor = believed
        if stop > cursor:
            yield cursor, stop, None
            cursor = stop


def _between(before: Watch | None, *, followed: bool) -> Note | None:
    """The state of a replica between the end of its watchdog and the begin of the next, if any."""
    if before is None:
        return _STARTS
    last = before.notes[-1] if before.notes else None
    if last is not None and last.state in ("exited", "failed", "draining", "restarting"):
        return last
    return _GONE if followed else None  # the engine never outlives its watchdog


def _spans(
    begin: float, end: float, note: Note | None, wanted: Sequence[Demand], at: int
) -> Iterator[Span]:
    """Spans of one state of a replica, divided by the demand of the jobs, which starts at
    `wanted[at]`.
    """
    if note is None or note.state != "ready":
        busy = note is not None and note.state == "unhealthy" and note.busy
        if not busy:
            use, cause = _USES.get(note.state, _UNKNOWN) if note is not None else _UNKNOWN
            cause = (note.phase or LAUNCH) if note is not None and use is Use.STARTING else cause
            yield Span(begin, end, use, cause)
            return
    cursor = begin
    for place in range(at, len(wanted)):
        one = wanted[place]
        if one.begin >= end:
            break
        if one.end <= cursor:
            continue
        if one.begin > cursor:
            yield from _ready(cursor, one.begin, note, None)
            cursor = one.begin
        stop = min(end, one.end)
        yield from _ready(cursor, stop, note, one)
        cursor = stop
    if cursor < end:
        yield from _ready(cursor, end, note, None)


_UNKNOWN = (Use.UNKNOWN, SILENT)
_USES = {
    "starting": (Use.STARTING, ""),
    "draining": (Use.DRAINING, ""),
    "exited": (Use.DRAINING, "ended"),
    "restarting": (Use.DEAD, "restarting"),
    "unhealthy": (Use.DEAD, "unhealthy"),
    "failed": (Use.DEAD, "failed"),
    "gone": (Use.DEAD, "killed"),
}


def _ready(begin: float, end: float, note: Note | None, one: Demand | None) -> Iterator[Span]:
    if note is None or note.busy is None:
        yield Span(begin, end, Use.UNKNOWN, NO_GAUGES)
    elif not note.busy:
        if one is None or one.waiting is None:
            yield Span(begin, end, Use.NO_WORK)
        else:
            job, cause = one.waiting
            yield Span(begin, end, Use.ROWS_WAIT, cause, job)
    elif one is None or not one.shares:
        yield Span(begin, end, Use.WORKING)  # for clients other than the swarm's jobs
    else:
        yield from _shared(begin, end, one.shares)


def _shared(begin: float, end: float, shares: Sequence[tuple[str, float, float]]) -> Iterator[Span]:
    """Time at work, divided among jobs by their shares of the requests in flight."""
    parts = [
        (part, use, job)
        for job, share, repeated in shares
        for part, use in ((share * (1 - repeated), Use.WORKING), (share * repeated, Use.REPEATED))
        if part > 0
    ]
    cursor, so_far = begin, 0.0
    for at, (part, use, job) in enumerate(parts):
        so_far += part
        last = at == len(parts) - 1
        stop = end if last else min(end, max(cursor, begin + (end - begin) * so_far))
        if stop > cursor:
            yield Span(cursor, stop, use, "", job)
            cursor = stop


def merged(spans: Iterable[Span]) -> list[Span]:
    """The same with adjacent spans of one kind merged."""
    found: list[Span] = []
    for one in spans:
        if one.end <= one.begin:
            continue
        last = found[-1] if found else None
        if last is not None and last.end == one.begin and last[2:] == one[2:]:
            found[-1] = last._replace(end=one.end)
        else:
            found.append(one)
    return found
