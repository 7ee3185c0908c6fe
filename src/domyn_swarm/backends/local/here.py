"""Where processes of this machine run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from domyn_swarm.identity import host_reach, this_host
from domyn_swarm.model import Location, Reach


class OnThisHost:
    """See `Located`: this host, in its present boot, and the PID namespace of this process."""

    def location(self, options: Mapping[str, Any]) -> Location:  # noqa: ARG002 - of the protocol
        """See `Located.location`."""
        return this_host()

    def reach(self, location: Location | None) -> Reach:
        """See `Located.reach`."""
        return Reach.HERE if location is None else host_reach(location)
