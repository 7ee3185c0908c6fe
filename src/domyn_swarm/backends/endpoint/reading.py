"""What our own endpoint program tells of a swarm, for the platforms that run it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from domyn_swarm.backends.base import ServingHandle
from domyn_swarm.backends.endpoint.view import (
    CollectorView,
    EndpointAddress,
    read_address,
    read_view,
)
from domyn_swarm.paths import SwarmPaths


class OwnEndpoint:
    """The part of `ServingBackend` that is the same wherever router and collector are ours, and
    watchdogs write the engines' logs into the swarm's folder.
    """

    supervised = True

    def address(self, handle: ServingHandle) -> EndpointAddress | None:
        """See `ServingBackend.address`."""
        return read_address(SwarmPaths(Path(handle.swarm_dir)))

    def view(self, handle: ServingHandle) -> CollectorView | None:
        """See `ServingBackend.view`."""
        return read_view(SwarmPaths(Path(handle.swarm_dir)))

    def fetch_logs(
        self, handle: ServingHandle, replicas: Sequence[int], *, follow: bool = False
    ) -> None:
        """See `ServingBackend.fetch_logs`: they are there."""
