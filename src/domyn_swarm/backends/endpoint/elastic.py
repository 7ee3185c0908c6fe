"""How many replicas an elastic swarm should run, and which: `replicas: {min, max}`. `decide` is
pure: no clock, no file, no platform. `elasticity` calls it every second and carries out the
decision.

A *place* is what a platform starts and ends as a unit: a replica, or all replicas of one node's
task. The rules, each of which `decide` returns as its reason:

- As long as there is work, at least one place runs or is being started.
- While the rows' speed is not known, there are as many places as the waiting rows and requests
  fill. Once it is known, a place is started only if the running places leave it, at the time it
  will be ready, work for at least half of its start time (`_WORTH`); otherwise it would be ready
  when little or nothing is left.
- No place is started while a ready one is idle: then replicas are not what limits the work.
- A place that waits in the queue is given up if the others will be done before it could be ready.
- No place is started for a job that ends, done or not, before the place would have served for that
  long. The first place is an exception: measured starts may no longer hold.
- The tail: once no row is left to send, the swarm keeps as many places as the rows in flight would
  fill if all of them had to be sent again. The other places, those with the fewest requests, get no
  new request and end when their requests have ended. If every kept place is idle and a leaving one
  is not, the leaving one is kept instead.
- The last place stays for `keep_s`, as do places that a client's requests woke. By default that is
  the time that a start takes: an idle machine that is kept for as long as a start takes costs at
  most twice the optimum in hindsight (the rent-or-buy rule; Karlin et al. 1988).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from enum import StrEnum
from typing import NamedTuple

PRESUMED_START_S = 120.0  # until a start was measured
_WORTH = 0.5  # of a start's time: a new place must have work for that long
_TOO_LATE = 0.8  # of a start's time: work that the others finish within it needs no further place
_SETTLED_S = 1.0  # a place that is idle for less may just be between two requests
_UNUSED_S = 5.0  # a place that is idle for so long while work waits is not what limits the work
_KEEP_AT_LEAST_S = 30.0


class PlaceState(StrEnum):
    """How far a place is."""

    WAITING = "waiting"  # requested, not yet started by the platform
    STARTING = "starting"  # running, not serving yet
    READY = "ready"
    FAILED = "failed"  # it will not serve, and has not been removed yet


class Place(NamedTuple):
    """A place that is wanted or exists."""

    number: int
    state: PlaceState
    asked_s: float = 0.0  # seconds since it was requested
    idle_s: float = 0.0  # since its last request, if ready; 0: it has or may have requests
    ends_in_s: float = math.inf  # seconds to its time limit
    requests: float | None = None  # in its engines; None: not known


class EndingRows(NamedTuple):
    """Unsent rows of a job that ends in `in_s` seconds, whether they are settled or not."""

    in_s: float
    unsent: int


class Work(NamedTuple):
    """The demand: rows of jobs, and requests of other clients."""

    rows_left: int = 0  # unsettled rows of running jobs
    rows_unsent: int = 0  # of these, the rows that are not in flight
    requests: float = 0.0  # of other clients: in flight, or held until a replica serves
    asked_for: bool = False  # a job requests replicas and has not reported how many rows it has
    quiet_s: float = math.inf  # since there was any demand
    clients_quiet_s: float = math.inf  # since another client had a request
    ending: tuple[EndingRows, ...] = ()  # unsent rows of jobs that end at a known time

    def unsent_after(self, seconds: float) -> int:
        """The unsent rows, without those of jobs that will have ended by then."""
        return self.rows_unsent - sum(one.unsent for one in self.ending if one.in_s < seconds)

    @property
    def any(self) -> bool:
        """Whether there is any work."""
        return bool(self.rows_left or self.requests or self.asked_for)


class Bounds(NamedTuple):
    """The limits of the configuration, in places."""

    least: int
    most: int
    keep_s: float | None = None  # None: as long as a start takes


class Measured(NamedTuple):
    """Measurements of this swarm; None: not measured yet."""

    rows_per_place_s: float | None = None  # rows per second that one ready place settles
    start_s: float | None = None  # median time from a place's request until it serves
    full_at: int = 64  # requests in flight that fill one place

    @property
    def expected_start_s(self) -> float:
        """Seconds that the next start is expected to take."""
        return PRESUMED_START_S if self.start_s is None else self.start_s


class Decision(NamedTuple):
    """The places that should run from now on."""

    wanted: frozenset[int]
    reason: str  # of the change; empty: no change


def decide(
    work: Work,
    places: Sequence[Place],
    bounds: Bounds,
    measured: Measured,
    taken: Iterable[int] = (),
    *,
    warm: Collection[Place] = (),
) -> Decision:
    """Decide which places should run.

    Args:
        work: the demand now.
        places: the wanted places.
        bounds: of the configuration.
        measured: of this swarm.
        taken: numbers that no new place gets: places that have not ended yet or failed recently.
        warm: unwanted places that still serve; they are kept before a new one is started.
    """
    released, why = _released(work, places, bounds, measured)
    kept = [one for one in places if one.number not in released]
    wanted = frozenset(one.number for one in kept)
    if released:
        return Decision(wanted, why)
    if (turn := _turn(places, warm)) is not None and _in_tail(work, places, bounds, measured):
        idle, busy = turn
        return Decision(wanted - {idle} | {busy}, "the last rows are there")
    more, why = _missing(work, kept, bounds, measured)
    not_free = wanted | set(taken)
    free = [number for number in range(bounds.most) if number not in not_free]
    still = {one.number for one in warm}
    free.sort(key=lambda number: number not in still)
    added = free[: max(0, min(more, bounds.most - len(kept)))]
    return Decision(wanted | set(added), why if added else "")


# -- what goes ----------------------------------------------------------------------------------


def _released(
    work: Work, places: Sequence[Place], bounds: Bounds, measured: Measured
) -> tuple[set[int], str]:
    floor = max(bounds.least, 1 if work.any else 0)
    keep_s = _keep_s(bounds, measured)
    usable = [one for one in places if one.state is not PlaceState.FAILED]
    ready = [one for one in usable if one.state is PlaceState.READY]
    nothing_to_send = _nothing_to_send(work, ready, measured)
    ends: list[tuple[Place, str]] = []
    for one in sorted(usable, key=_last_first):
        if one.state is PlaceState.READY:
            why = _idle_in_vain(work, one, keep_s, nothing_to_send=nothing_to_send)
        else:
            why = _starts_in_vain(work, one, ready, measured, keep_s, nothing=nothing_to_send)
        if why is not None:
            ends.append((one, why))
    if _in_tail(work, places, bounds, measured):
        stay = max(floor, _filled(work, measured))
        chosen = {one.number for one, _ in ends}
        spare = [one for one in sorted(ready, key=_last_first) if one.number not in chosen]
        more = spare[: max(0, len(usable) - len(ends) - stay)]
        ends += [(one, "what is in flight needs fewer") for one in more if one.requests is not None]
    going = ends[: max(0, len(usable) - floor)]
    if not work.any and work.quiet_s < keep_s and len(going) == len(usable):
        going = going[:-1]  # the last place stays: the next client need not wait for a start
    return {one.number for one, _ in going}, going[0][1] if going else ""


def _nothing_to_send(work: Work, ready: Sequence[Place], measured: Measured) -> bool:
    return not (work.rows_unsent or work.asked_for) and (
        work.requests <= measured.full_at * len(ready) if ready else not work.any
    )


def _in_tail(work: Work, places: Sequence[Place], bounds: Bounds, measured: Measured) -> bool:
    """Whether all remaining rows of jobs are in flight and no other client sends requests."""
    ready = [one for one in places if one.state is PlaceState.READY]
    quiet = not work.requests and work.clients_quiet_s >= _keep_s(bounds, measured)
    return bool(work.rows_left) and quiet and _nothing_to_send(work, ready, measured)


def _turn(places: Sequence[Place], warm: Collection[Place]) -> tuple[int, int] | None:
    """If all kept places are idle: one of them, and the leaving place with the most requests, which
    takes its turn. None: a kept place has requests, or no leaving place has any.
    """
    if not places or any(one.state is PlaceState.READY and one.requests != 0 for one in places):
        return None
    idle = [one for one in places if one.state is PlaceState.READY]
    busy = [one for one in warm if one.requests]
    if not idle or not busy:
        return None
    return min(idle, key=_last_first).number, max(busy, key=lambda one: one.requests or 0).number


def _last_first(one: Place) -> tuple[int, float, float, int]:
    """The order in which places are given up: not started, longest idle, fewest requests, highest
    number.
    """
    order = (PlaceState.WAITING, PlaceState.STARTING, PlaceState.READY, PlaceState.FAILED)
    requests = math.inf if one.requests is None else one.requests
    return order.index(one.state), -one.idle_s, requests, -one.number


def _idle_in_vain(work: Work, one: Place, keep_s: float, *, nothing_to_send: bool) -> str | None:
    if one.idle_s < _SETTLED_S:
        return None
    if nothing_to_send and (work.clients_quiet_s >= keep_s or one.idle_s >= keep_s):
        return "nothing is left that could be sent there"
    if one.idle_s >= max(keep_s, _UNUSED_S):
        return f"nothing was sent there for {one.idle_s:.0f} s"
    return None


def _starts_in_vain(
    work: Work,
    one: Place,
    ready: Sequence[Place],
    measured: Measured,
    keep_s: float,
    *,
    nothing: bool,
) -> str | None:
    if nothing and work.clients_quiet_s >= keep_s:
        return "nothing would be left for it"
    if work.requests:
        return None
    if measured.start_s is not None and work.rows_unsent:
        begins_s = max(0.0, measured.start_s - one.asked_s)
        if not work.asked_for and not work.unsent_after(begins_s):
            return "its jobs end before it could be ready"
    speed = measured.rows_per_place_s
    if one.state is not PlaceState.WAITING or not ready or not speed:
        return None
    if work.rows_unsent < _TOO_LATE * measured.expected_start_s * speed * len(ready):
        return "the others will be done before it could be ready"
    return None


def _keep_s(bounds: Bounds, measured: Measured) -> float:
    if bounds.keep_s is not None:
        return bounds.keep_s
    return max(_KEEP_AT_LEAST_S, measured.expected_start_s)


# -- what is missing ----------------------------------------------------------------------------


def _missing(
    work: Work, kept: Sequence[Place], bounds: Bounds, measured: Measured
) -> tuple[int, str]:
    usable = [one for one in kept if one.state is not PlaceState.FAILED]
    if len(usable) < len(kept):  # the cause of a place's failure may affect every place
        return 0, ""
    if len(usable) < bounds.least:
        return bounds.least - len(usable), f"{bounds.least} are wanted always"
    if not work.any:
        return 0, ""
    if not usable:
        first = max(1, _filled_in_time(work, measured))
        return first, "there is work, and none to do it"
    if any(one.idle_s >= _SETTLED_S for one in usable if one.state is PlaceState.READY):
        return 0, ""
    by_requests = math.ceil(work.requests / measured.full_at) - len(usable)
    speed = measured.rows_per_place_s
    if speed is None or speed <= 0:
        by_rows, why = _filled_in_time(work, measured) - len(usable), "rows wait"
    else:
        by_rows, why = _worth_starting(work, usable, speed, measured), "rows are left for it"
    return max(by_rows, by_requests), why if by_rows >= by_requests else "requests wait"


def _filled(work: Work, measured: Measured) -> int:
    """How many places the demand fills while its speed is not known."""
    return math.ceil(max(work.rows_left, work.requests) / measured.full_at)


def _filled_in_time(work: Work, measured: Measured) -> int:
    """As `_filled`, without the rows of jobs that will have ended before a start pays."""
    too_late = work.rows_unsent - work.unsent_after(_pays_after_s(measured))
    return _filled(work._replace(rows_left=work.rows_left - too_late), measured)


def _pays_after_s(measured: Measured) -> float:
    """For how long a job must still run for a start to pay; 0 while no start was measured."""
    return 0.0 if measured.start_s is None else (1 + _WORTH) * measured.start_s


def _worth_starting(work: Work, usable: Sequence[Place], speed: float, measured: Measured) -> int:
    """How many more places would have work for at least `_WORTH` of their start time."""
    start_s = measured.expected_start_s
    done = sum(speed * _serves_s(one, start_s) for one in usable)
    left = work.unsent_after(_pays_after_s(measured)) - done
    if left <= 0:
        return 0
    still = sum(one.ends_in_s > start_s for one in usable)
    shared = math.floor(left / max(1.0, speed * _WORTH * start_s))
    return min(shared, work.rows_unsent) - still


def _serves_s(one: Place, within_s: float) -> float:
    """The longest time for which a place can serve within the next `within_s` seconds."""
    begins_s = 0.0 if one.state is PlaceState.READY else max(0.0, within_s - one.asked_s)
    return max(0.0, min(within_s, one.ends_in_s) - begins_s)
