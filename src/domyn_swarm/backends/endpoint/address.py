"""How other nodes reach this one."""

from __future__ import annotations

import os
import socket

ADDRESS_VARIABLE = "DOMYN_SWARM_NODE_ADDRESS"  # where others reach this node, if not by its name


def own_address() -> str:
    """What the backend says, else this node's name."""
    return os.environ.get(ADDRESS_VARIABLE) or socket.gethostname()
