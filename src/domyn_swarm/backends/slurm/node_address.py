"""The address at which other nodes reach this one."""

from __future__ import annotations

import contextlib
import os
import socket
from ipaddress import ip_address

from domyn_swarm.backends.slurm.commands import Slurm
from domyn_swarm.errors import PlatformError
from domyn_swarm.logs import get_logger

_log = get_logger(__name__)

_ANY_PORT = 9
_NEIGHBOURS = 5  # other nodes, at least one of which has a name that resolves
_OUTSIDE = "192.0.2.1"  # an address of no host: its route is the default route


def node_address() -> str:
    """The address at which other nodes reach this one: the one that the scheduler uses, else its
    name.

    Servers bind to it on this node. If this node resolves the name to its loopback, as a line
    `127.0.1.1 NAME` in `/etc/hosts` does, the address of the network interface is used.
    """
    name, slurm = os.environ.get("SLURMD_NODENAME") or socket.gethostname(), Slurm()
    try:
        address = slurm.node_address(name) or name
    except PlatformError as error:  # a controller that restarts must not prevent serving
        _log.warning("this node's address is not known: %s", error.message)
        address = name
    if not _resolved(address):
        address = socket.gethostname()
    return _beyond_loopback(address, slurm) if _only_here(address) else address


def _beyond_loopback(name: str, slurm: Slurm) -> str:
    for place in (*_neighbours(name, slurm), _OUTSIDE):
        with contextlib.suppress(OSError), socket.socket(type=socket.SOCK_DGRAM) as probe:
            probe.connect((place, _ANY_PORT))  # nothing is sent
            own = str(probe.getsockname()[0])
            if not ip_address(own).is_loopback:
                _log.warning(
                    "%s is %s here, see /etc/hosts: %s is used", name, _resolved(name), own
                )
                return own
    _log.error(
        "%s is %s here, see /etc/hosts: no other node reaches what listens there",
        *(name, _resolved(name)),
    )
    return name


def _neighbours(name: str, slurm: Slurm) -> list[str]:
    try:
        return sorted(slurm.names("node") - {name})[:_NEIGHBOURS]
    except PlatformError:
        return []


def _only_here(address: str) -> bool:
    """Whether this name resolves to this node's loopback only. An address is never such a name."""
    resolved = _resolved(address)
    return bool(resolved) and resolved != address and ip_address(resolved).is_loopback


def _resolved(name: str) -> str:
    """The address at which a server that binds to the name listens; empty: none."""
    try:
        return str(socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError:
        return ""
