"""The address at which other nodes reach this one, and the ports of the endpoint's own servers."""

from __future__ import annotations

import os
import socket

from domyn_swarm.errors import PlatformError

# set by the backend: this node's address, where its name does not resolve to it
ADDRESS_VARIABLE = "DOMYN_SWARM_NODE_ADDRESS"


def own_address() -> str:
    """The address that the backend set in the environment, else this node's name."""
    return os.environ.get(ADDRESS_VARIABLE) or socket.gethostname()


def is_free(host: str, port: int) -> bool:
    """Whether a server could bind `port` now. An empty host stands for every interface."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def free_port(host: str) -> int:
    """A port that is free now, chosen by the operating system."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def router_port(host: str, configured: int | None) -> int:
    """The configured port, or a free one if none is configured.

    Raises:
        PlatformError: the configured port is taken.
    """
    if configured is None:
        return free_port(host)
    if not is_free(host, configured):
        raise PlatformError(
            f"Port {configured} for the endpoint is taken on {socket.gethostname()}.",
            hint="Stop what listens there (`ss -ltnp`), or set another endpoint port.",
        )
    return configured
