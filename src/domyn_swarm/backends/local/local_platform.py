"""The local machine as the `Platform` of a swarm's endpoint program."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from typing_extensions import override

from domyn_swarm.backends.endpoint.platform_protocol import Placed, Platform
from domyn_swarm.backends.job_end import read_exit
from domyn_swarm.backends.local.local_compute import LocalCompute
from domyn_swarm.backends.local.local_serving import end_jobs_and_replicas
from domyn_swarm.backends.local.watchdogs import (
    KilledWatchdogs,
    end_watchdogs,
    running,
    start_missing,
)
from domyn_swarm.model import JobHandle, Reach
from domyn_swarm.paths import SwarmPaths


class LocalPlatform(Platform):
    """Processes of this machine, for the endpoint program."""

    def __init__(self, paths: SwarmPaths, tag: str) -> None:
        self._paths = paths
        self._tag = tag
        self._compute = LocalCompute()
        self._killed = KilledWatchdogs(paths, tag)

    @override
    def replace_lost(self, replicas: Collection[int]) -> Sequence[int]:
        """A watchdog that was killed several times within an hour is
        not started again, until `scale` does so.
        """
        self._killed.start_again(replicas)
        return ()

    @property
    @override
    def per_place(self) -> int:
        return 1

    @override
    def places(self) -> Mapping[int, Placed]:
        return {index: Placed(runs=True) for index in running(self._tag)}

    @override
    def start(self, places: Collection[int]) -> None:
        start_missing(self._paths, self._tag, places)

    @override
    def release(self, places: Collection[int]) -> None:
        end_watchdogs(self._tag, places)

    @override
    def job_over(self, handle: JobHandle) -> bool:
        if read_exit(Path(handle.exit_path)) is not None:
            return True
        location = handle.location
        if location is not None and self._compute.reach(location) is Reach.ELSEWHERE:
            return False  # only the exit record can show its end
        return self._compute.probe(handle).final

    @override
    def end_rest(self) -> None:
        end_jobs_and_replicas(self._tag, self._paths)
