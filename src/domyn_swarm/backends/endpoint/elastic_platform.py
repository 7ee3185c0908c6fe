"""The interface through which an elastic swarm starts and ends replicas on its platform."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import NamedTuple, Protocol


class Placed(NamedTuple):
    """The state of one place on the platform."""

    runs: bool  # False: it waits in the queue
    ends_in_s: float = math.inf  # seconds to its time limit


class ElasticPlatform(Protocol):
    """Starts, lists and ends places. Called from threads."""

    @property
    def per_place(self) -> int:
        """The number of replicas that the platform starts and ends together."""

    def places(self) -> Mapping[int, Placed]:
        """The swarm's places that run or wait in the queue, by number.

        Raises:
            PlatformError: the platform cannot be asked.
        """

    def start(self, places: Collection[int]) -> None:
        """Start each of these places that neither runs nor waits in the queue. Idempotent.

        Raises:
            PlatformError: a place could not be started.
        """

    def release(self, places: Collection[int]) -> None:
        """End these places: a waiting one at once, a running one after it has drained. Idempotent.

        Raises:
            PlatformError: the platform cannot be asked.
        """
