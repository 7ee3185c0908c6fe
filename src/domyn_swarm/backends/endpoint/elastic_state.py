"""The persistent state of an elastic swarm: wanted places, measured starts, failed places."""

from __future__ import annotations

from typing import Literal

from domyn_swarm.model import Record
from domyn_swarm.paths import SwarmPaths
from domyn_swarm.record import field

_STARTS_KEPT = 9


class ElasticState(Record):
    """The contents of `serving/elastic.json`, with which an endpoint program that is started again
    continues. Written before the platform is asked to carry it out.
    """

    schema_version: Literal[1] = 1
    tag: str  # of the swarm
    wanted: tuple[int, ...]  # places
    # when places that are not ready yet were requested, in seconds since the epoch
    asked_at: dict[int, float] = field(default_factory=dict)
    starts_s: tuple[float, ...] = ()  # durations of the last starts, with their time in the queue
    # when failed places may be wanted again, in seconds since the epoch
    failed_until: dict[int, float] = field(default_factory=dict)
    reason: str = ""  # of the last change
    trouble: str = ""  # why wanted places cannot be started now

    @property
    def start_s(self) -> float | None:
        """The median of the last starts; None: no start was measured."""
        ordered = sorted(self.starts_s)
        return ordered[len(ordered) // 2] if ordered else None

    def with_start(self, seconds: float) -> ElasticState:
        """The state after another measured start."""
        starts = (*self.starts_s, seconds)[-_STARTS_KEPT:]
        return self.model_copy(update={"starts_s": starts})


def read_state(paths: SwarmPaths, tag: str) -> ElasticState | None:
    """The state that the swarm's endpoint program wrote last. None: there is none, it cannot be
    read, or it is another swarm's.
    """
    try:
        state = ElasticState.model_validate_json(paths.elastic.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return state if state.tag == tag else None
