"""What whoever decides about an elastic swarm's size remembers."""

from __future__ import annotations

from typing import Literal

from domyn_swarm.model import Record
from domyn_swarm.paths import SwarmPaths
from domyn_swarm.record import field

_STARTS_KEPT = 9


class ElasticState(Record):
    """What whoever decides remembers, so that one that was killed goes on where it was:
    `serving/elastic.json`. Written before what it says is done.
    """

    schema_version: Literal[1] = 1
    tag: str  # of the swarm
    wanted: tuple[int, ...]  # places
    asked_at: dict[int, float] = field(default_factory=dict)  # of those not ready yet; epoch's s
    starts_s: tuple[float, ...] = ()  # how long the last starts took, queue and all
    failed_until: dict[int, float] = field(default_factory=dict)  # places that rest; epoch's s
    reason: str = ""  # of the last change
    trouble: str = ""  # why what is wanted cannot be started now

    @property
    def start_s(self) -> float | None:
        """How long a start takes here: the median of the last ones."""
        ordered = sorted(self.starts_s)
        return ordered[len(ordered) // 2] if ordered else None

    def with_start(self, seconds: float) -> ElasticState:
        """The same once another start has been measured."""
        starts = (*self.starts_s, seconds)[-_STARTS_KEPT:]
        return self.model_copy(update={"starts_s": starts})


def read_state(paths: SwarmPaths, tag: str) -> ElasticState | None:
    """What the endpoint program of a swarm wrote down last; None: nothing, or of another swarm."""
    try:
        state = ElasticState.model_validate_json(paths.elastic.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return state if state.tag == tag else None
