"""The platform's operations for the endpoint program of a swarm, fixed or elastic."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

from domyn_swarm.model import JobHandle


class Placed(NamedTuple):
    """The state of one place, as the platform shows it."""

    runs: bool  # False: it waits in the queue
    ends_in_s: float = math.inf


class ElasticPlatform(Protocol):
    """The operations that a changing number of replicas needs. Called from threads."""

    @property
    def per_place(self) -> int:
        """How many replicas it starts and ends together."""

    def places(self) -> Mapping[int, Placed]:
        """The places of the swarm's replicas that run or wait in the queue.

        Raises:
            PlatformError: the platform cannot be asked.
        """

    def start(self, places: Collection[int]) -> None:
        """Start those of these places that neither run nor wait. Idempotent.

        Raises:
            PlatformError: some could not be started.
        """

    def release(self, places: Collection[int]) -> None:
        """End these places: one that waits at once, one that runs once it has drained. Idempotent.

        Raises:
            PlatformError: the platform cannot be asked.
        """


class Platform(ElasticPlatform, Protocol):
    """The platform's operations for the endpoint program. Called from threads."""

    def replace_lost(self, replicas: Collection[int]) -> Sequence[int]:
        """Resubmit every replica that has neither a running nor a pending job, unless it failed
        permanently. Return the replicas that are given up from now on, whatever they reported last.

        Raises:
            PlatformError: the platform cannot be asked.
        """

    def job_over(self, handle: JobHandle) -> bool:
        """Whether a job has ended.

        Raises:
            PlatformError: the platform cannot be asked.
        """

    def end_rest(self) -> None:
        """End all jobs and replicas of the swarm; verify. Idempotent.

        Raises:
            PlatformError: something still runs.
        """
