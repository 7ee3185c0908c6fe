"""What an elastic swarm asks of its platform."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import NamedTuple, Protocol


class Placed(NamedTuple):
    """What a platform has in one place."""

    runs: bool  # else it waits in the queue
    ends_in_s: float = math.inf


class ElasticPlatform(Protocol):
    """What is asked of the platform. Called from threads."""

    @property
    def per_place(self) -> int:
        """How many replicas it starts and ends together."""

    def places(self) -> Mapping[int, Placed]:
        """What runs or waits of the swarm's replicas.

        Raises:
            PlatformError: the platform cannot be asked.
        """

    def start(self, places: Collection[int]) -> None:
        """See that each of these runs or waits. Idempotent.

        Raises:
            PlatformError: some could not be started.
        """

    def release(self, places: Collection[int]) -> None:
        """Have these end: what waits at once, what runs once it has drained. Idempotent.

        Raises:
            PlatformError: the platform cannot be asked.
        """
