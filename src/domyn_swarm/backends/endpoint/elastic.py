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
- A place that waits in the queue is given up once the others will be done before it could be ready.
- The tail: once nothing is left to be sent, every idle place ends at once. The last one stays for
  `keep_s`, as do places that a client's requests woke. The default of `keep_s` is the time of a
  start: keeping an idle machine for as long as starting it costs at most twice the optimum of
  someone who knows the future (the rent-or-buy rule; Karlin et al. 1988).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Literal, NamedTuple, Protocol

from domyn_swarm.model import Record
from domyn_swarm.paths import SwarmPaths
from domyn_swarm.record import field

PRESUMED_START_S = 120.0  # until a start was measured
_WORTH = 0.5  # of a start's time: a new place must have work for that long
_TOO_LATE = 0.8  # of a start's time: work that the others finish within it needs no further place
_SETTLED_S = 1.0  # a place that is idle for less may just be between two requests
_UNUSED_S = 5.0  # a place that is idle for so long while work waits is not what limits the work
_KEEP_AT_LEAST_S = 30.0
_STARTS_KEPT = 9


class PlaceState(StrEnum):
    """How far a place is."""

    WAITING = "waiting"  # requested, and not started by the platform
    STARTING = "starting"  # running, not serving yet
    READY = "ready"
    FAILED = "failed"  # it will not serve, and has not been removed yet


class Place(NamedTuple):
    """A place that is wanted, or exists."""

    number: int
    state: PlaceState
    asked_s: float = 0.0  # seconds since it was requested
    idle_s: float = 0.0  # since its last request, if ready; 0: it has some, or may have
    ends_in_s: float = math.inf  # seconds to its time limit


class Work(NamedTuple):
    """The work that there is."""

    rows_left: int = 0  # rows of running jobs that are not settled
    rows_unsent: int = 0  # of these: not in flight
    requests: float = 0.0  # requests of other clients: in flight, or held until a replica serves
    asked_for: bool = False  # a job asks for replicas, and its number of rows is not known yet
    quiet_s: float = math.inf  # seconds since there was any work
    clients_quiet_s: float = math.inf  # seconds since another client's request

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
    """Measurements of this swarm; None: nothing was measured yet."""

    rows_per_place_s: float | None = None  # rows per second that one ready place settles
    start_s: float | None = None  # from its request until it serves: the median
    full_at: int = 64  # requests in flight that one place takes

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
    warm: Collection[int] = (),
) -> Decision:
    """Decide which places should run.

    Args:
        work: the demand now.
        places: those that are wanted.
        bounds: of the configuration.
        measured: of this swarm.
        taken: numbers that no new place gets: places that have not ended yet, or failed recently.
        warm: places that are not wanted but still serve; they are kept before any is started.
    """
    released, why = _released(work, places, bounds, measured)
    kept = [one for one in places if one.number not in released]
    wanted = frozenset(one.number for one in kept)
    if released:
        return Decision(wanted, why)
    more, why = _missing(work, kept, bounds, measured)
    not_free = wanted | set(taken)
    free = [number for number in range(bounds.most) if number not in not_free]
    free.sort(key=lambda number: number not in warm)
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
    nothing_to_send = not (work.rows_unsent or work.asked_for) and (
        work.requests <= measured.full_at * len(ready) if ready else not work.any
    )
    ends: list[tuple[Place, str]] = []
    for one in sorted(usable, key=_last_first):
        if one.state is PlaceState.READY:
            why = _idle_in_vain(work, one, keep_s, nothing_to_send=nothing_to_send)
        else:
            why = _starts_in_vain(work, one, ready, measured, keep_s, nothing=nothing_to_send)
        if why is not None:
            ends.append((one, why))
    going = ends[: max(0, len(usable) - floor)]
    if not work.any and work.quiet_s < keep_s and len(going) == len(usable):
        going = going[:-1]  # the last place stays: the next client need not wait for a start
    return {one.number for one, _ in going}, going[0][1] if going else ""


def _last_first(one: Place) -> tuple[int, float, int]:
    """The order in which places are given up: not started, then longest idle, then highest
    number.
    """
    order = (PlaceState.WAITING, PlaceState.STARTING, PlaceState.READY, PlaceState.FAILED)
    return order.index(one.state), -one.idle_s, -one.number


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
    speed = measured.rows_per_place_s
    if one.state is not PlaceState.WAITING or not ready or not speed or work.requests:
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
    if len(usable) < len(kept):  # what failed there may fail everywhere
        return 0, ""
    if len(usable) < bounds.least:
        return bounds.least - len(usable), f"{bounds.least} are wanted always"
    if not work.any:
        return 0, ""
    if not usable:
        first = max(1, _filled(work, measured))
        return first, "there is work, and none to do it"
    if any(one.idle_s >= _SETTLED_S for one in usable if one.state is PlaceState.READY):
        return 0, ""
    by_requests = math.ceil(work.requests / measured.full_at) - len(usable)
    speed = measured.rows_per_place_s
    if speed is None or speed <= 0:
        by_rows, why = _filled(work, measured) - len(usable), "rows wait"
    else:
        by_rows, why = _worth_starting(work, usable, speed, measured), "rows are left for it"
    return max(by_rows, by_requests), why if by_rows >= by_requests else "requests wait"


def _filled(work: Work, measured: Measured) -> int:
    """How many places the demand fills while its speed is not known."""
    return math.ceil(max(work.rows_left, work.requests) / measured.full_at)


def _worth_starting(work: Work, usable: Sequence[Place], speed: float, measured: Measured) -> int:
    """How many more places would have work for `_WORTH` of the time that their start takes."""
    start_s = measured.expected_start_s
    done = sum(speed * _serves_s(one, start_s) for one in usable)
    left = work.rows_unsent - done
    if left <= 0:
        return 0
    still = sum(one.ends_in_s > start_s for one in usable)
    shared = math.floor(left / max(1.0, speed * _WORTH * start_s))
    return min(shared, work.rows_unsent) - still


def _serves_s(one: Place, within_s: float) -> float:
    """For how many of the next seconds a place serves at most."""
    begins_s = 0.0 if one.state is PlaceState.READY else max(0.0, within_s - one.asked_s)
    return max(0.0, min(within_s, one.ends_in_s) - begins_s)


# -- what is measured ---------------------------------------------------------------------------


class _Sample(NamedTuple):
    at: float
    rows: float  # rows settled since the beginning
    place_s: float  # seconds of ready places since the beginning


class Speed:
    """Measures the rows that one place settles per second, over the last `window_s`."""

    def __init__(self, window_s: float = 60.0, least_s: float = 5.0) -> None:
        self._window_s = window_s
        self._least_s = least_s
        self._samples: deque[_Sample] = deque()

    def saw(self, now: float, rows: float, ready: int) -> None:
        """Add a measurement: rows settled and places ready at `now` (seconds)."""
        last = self._samples[-1] if self._samples else None
        if last is not None and rows < last.rows:  # other jobs: earlier samples do not apply
            self._samples.clear()
            last = None
        place_s = 0.0 if last is None else last.place_s + (now - last.at) * ready
        self._samples.append(_Sample(now, rows, place_s))
        while len(self._samples) > 2 and now - self._samples[1].at >= self._window_s:
            self._samples.popleft()

    def forget(self) -> None:
        """Forget the measurements, because other jobs run from now on."""
        self._samples.clear()

    @property
    def rows_per_place_s(self) -> float | None:
        """Rows per second of one place; None: too few measurements, or nothing was settled."""
        if not self._samples:
            return None
        first, last = self._samples[0], self._samples[-1]
        place_s, rows = last.place_s - first.place_s, last.rows - first.rows
        return rows / place_s if place_s >= self._least_s and rows > 0 else None


def read_state(paths: SwarmPaths, tag: str) -> ElasticState | None:
    """The state that the endpoint program wrote last; None: no state, or one of another swarm."""
    try:
        state = ElasticState.model_validate_json(paths.elastic.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return state if state.tag == tag else None


class Placed(NamedTuple):
    """What the platform runs in one place."""

    runs: bool  # whether it runs; else it waits in the queue
    ends_in_s: float = math.inf


class ElasticPlatform(Protocol):
    """The platform's operations for elastic swarms. Called from threads."""

    @property
    def per_place(self) -> int:
        """How many replicas the platform starts and ends together."""

    def places(self) -> Mapping[int, Placed]:
        """What runs or waits of the swarm's replicas.

        Raises:
            PlatformError: the platform cannot be asked.
        """

    def start(self, places: Collection[int]) -> None:
        """Make sure that each of these runs or waits. Idempotent.

        Raises:
            PlatformError: some could not be started.
        """

    def release(self, places: Collection[int]) -> None:
        """End these: what waits at once, what runs after it has drained. Idempotent.

        Raises:
            PlatformError: the platform cannot be asked.
        """


class ElasticState(Record):
    """The state of the decisions, in `serving/elastic.json`, so that a restarted program goes on
    from it. Written before the decision is carried out.
    """

    schema_version: Literal[1] = 1
    tag: str  # of the swarm
    wanted: tuple[int, ...]  # places
    asked_at: dict[int, float] = field(default_factory=dict)  # requested, not ready yet; epoch's s
    starts_s: tuple[float, ...] = ()  # how long the last starts took, queue included
    # places not used until then; epoch's s
    failed_until: dict[int, float] = field(default_factory=dict)
    reason: str = ""  # reason of the last change
    trouble: str = ""  # why wanted places cannot be started now

    @property
    def start_s(self) -> float | None:
        """Seconds that a start takes here: the median of the last ones."""
        ordered = sorted(self.starts_s)
        return ordered[len(ordered) // 2] if ordered else None

    def with_start(self, seconds: float) -> ElasticState:
        """A copy with another measured start."""
        starts = (*self.starts_s, seconds)[-_STARTS_KEPT:]
        return self.model_copy(update={"starts_s": starts})
