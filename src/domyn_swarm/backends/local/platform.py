"""The local machine, as the endpoint program of a swarm asks it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from domyn_swarm.backends.base import read_exit
from domyn_swarm.backends.endpoint.elastic import Placed
from domyn_swarm.backends.local.compute import LocalCompute
from domyn_swarm.backends.local.serving import end_jobs_and_replicas
from domyn_swarm.backends.local.watchdogs import (
    KilledWatchdogs,
    end_watchdogs,
    running,
    start_missing,
)
from domyn_swarm.model import JobHandle, Reach
from domyn_swarm.paths import SwarmPaths


class LocalPlatform:
    """See `Platform`."""

    def __init__(self, paths: SwarmPaths, tag: str) -> None:
        self._paths = paths
        self._tag = tag
        self._compute = LocalCompute()
        self._killed = KilledWatchdogs(paths, tag)

    def replace_lost(self, replicas: Collection[int]) -> Sequence[int]:
        """See `Platform.replace_lost`. A watchdog that died a few times within an hour stays away,
        until `scale` starts it.
        """
        self._killed.start_again(replicas)
        return ()

    @property
    def per_place(self) -> int:
        """See `ElasticPlatform.per_place`."""
        return 1

    def places(self) -> Mapping[int, Placed]:
        """See `ElasticPlatform.places`."""
        return {index: Placed(runs=True) for index in running(self._tag)}

    def start(self, places: Collection[int]) -> None:
        """See `ElasticPlatform.start`."""
        start_missing(self._paths, self._tag, places)

    def release(self, places: Collection[int]) -> None:
        """See `ElasticPlatform.release`."""
        end_watchdogs(self._tag, places)

    def job_over(self, handle: JobHandle) -> bool:
        """See `Platform.job_over`."""
        if read_exit(Path(handle.exit_path)) is not None:
            return True
        there = handle.location
        if there is not None and self._compute.reach(there) is Reach.ELSEWHERE:
            return False  # only its own record tells
        return self._compute.probe(handle).final

    def end_rest(self) -> None:
        """See `Platform.end_rest`."""
        end_jobs_and_replicas(self._tag, self._paths)
