"""Where deployments and jobs of Lepton run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from domyn_swarm.backends.lepton import specs
from domyn_swarm.backends.lepton.credentials import Place, credentials
from domyn_swarm.errors import ConfigError, MissingExtra
from domyn_swarm.model import Location, Reach


class InWorkspace:
    """See `Located`: a workspace, which can be asked by whoever has a token for it."""

    def location(self, options: Mapping[str, Any]) -> Location:
        """See `Located.location`."""
        given = credentials(specs.section(dict(options)).workspace_id)
        return Location(kind="workspace", name=given.workspace_id)

    def reach(self, location: Location | None) -> Reach:
        """See `Located.reach`."""
        if location is None:
            return Reach.HERE
        try:
            credentials(None, Place(workspace_id=location.name))
        except (ConfigError, MissingExtra):
            return Reach.ELSEWHERE
        return Reach.HERE
