"""Where jobs of Slurm run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from domyn_swarm.backends.slurm.scheduler import Scheduler
from domyn_swarm.errors import CommandMissing
from domyn_swarm.model import Location, Reach


class OnCluster:
    """See `Located`: the cluster that Slurm's commands ask from here. Job numbers are a cluster's
    own: another one knows nothing of them, or knows other jobs by them.
    """

    _slurm: Scheduler

    def location(self, options: Mapping[str, Any]) -> Location:  # noqa: ARG002 - of the protocol
        """See `Located.location`."""
        return Location(kind="cluster", name=self._slurm.cluster())

    def reach(self, location: Location | None) -> Reach:
        """See `Located.reach`."""
        if location is None:
            return Reach.HERE
        try:
            here = self._slurm.cluster()
        except CommandMissing:
            return Reach.ELSEWHERE
        same = (location.kind, location.name) == ("cluster", here)
        return Reach.HERE if same else Reach.ELSEWHERE
