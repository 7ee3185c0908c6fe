"""The cluster that Slurm jobs run on, and whether it can be asked from here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from domyn_swarm.backends.protocols import Located
from domyn_swarm.backends.slurm.ending import Scheduler
from domyn_swarm.errors import CommandMissing
from domyn_swarm.model import Location, Reach


class OnCluster(Located):
    """The cluster that Slurm's commands ask from here. Job ids are per cluster:
    another cluster does not know them, or has other jobs with the same ids.
    """

    _slurm: Scheduler

    @override
    def location(self, options: Mapping[str, Any]) -> Location:
        return Location(kind="cluster", name=self._slurm.cluster())

    @override
    def reach(self, location: Location | None) -> Reach:
        if location is None:
            return Reach.HERE
        try:
            here = self._slurm.cluster()
        except CommandMissing:
            return Reach.ELSEWHERE
        same = (location.kind, location.name) == ("cluster", here)
        return Reach.HERE if same else Reach.ELSEWHERE
