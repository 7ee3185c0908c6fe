"""The state of an elastic swarm that survives its endpoint program."""

from __future__ import annotations

from typing import Literal

from domyn_swarm.model import Record
from domyn_swarm.paths import SwarmPaths
from domyn_swarm.record import field

_STARTS_KEPT = 9


class ElasticState(Record):
    """The last decision about the size and what it was based on: `serving/elastic.json`. It is
    written before the platform is asked, so that a program that is started again continues there.
    """

    schema_version: Literal[1] = 1
    tag: str  # of the swarm
    wanted: tuple[int, ...]  # places
    asked_at: dict[int, float] = field(default_factory=dict)  # places not ready yet; epoch, s
    starts_s: tuple[float, ...] = ()  # durations of the last starts, time in the queue included
    failed_until: dict[int, float] = field(default_factory=dict)  # failed places; epoch, s
    reason: str = ""  # of the last change
    trouble: str = ""  # why wanted places cannot be started now

    @property
    def start_s(self) -> float | None:
        """The median duration of the last starts; None: there was none yet."""
        ordered = sorted(self.starts_s)
        return ordered[len(ordered) // 2] if ordered else None

    def with_start(self, seconds: float) -> ElasticState:
        """A copy with one more duration of a start."""
        starts = (*self.starts_s, seconds)[-_STARTS_KEPT:]
        return self.model_copy(update={"starts_s": starts})


def read_state(paths: SwarmPaths, tag: str) -> ElasticState | None:
    """The state that the endpoint program of this tag wrote last, if any."""
    try:
        state = ElasticState.model_validate_json(paths.elastic.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return state if state.tag == tag else None
