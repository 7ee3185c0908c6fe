"""How the nodes of a cluster reach each other: what a cluster asks, and the simple answer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"  # with the tools of administrators


class Network(Protocol):
    """What a cluster asks of its network."""

    @property
    def controller(self) -> str:
        """The address of this machine, where slurmctld listens."""

    def places(self, port: int) -> str:
        """Addresses and ports of all nodes, as a `NodeName` line has them."""

    def open(self) -> None:
        """Make what has to be there before any node."""

    def close(self) -> None:
        """Leave nothing of what `open` and `add` made, and no process on any node."""

    def add(self, node: str) -> None:
        """Make the node unless it is there."""

    def lose(self, node: str) -> None:
        """Take the node off the network, and end what runs on it where that can be told."""

    def inside(self, node: str, cwd: Path) -> list[str]:
        """The words before a command that is to run on the node, in a folder."""

    def cut(self, node: str) -> None:
        """Take the node's link down: nobody is told, what is sent is lost."""

    def mend(self, node: str) -> None:
        """Take the node's link up again."""


class Loopback:
    """All nodes are 127.0.0.1, told apart by their ports; there is nothing to make or to cut."""

    controller = "127.0.0.1"

    def __init__(self, nodes: Sequence[str]) -> None:
        self._nodes = nodes

    def places(self, port: int) -> str:
        """See `Network`."""
        return f"NodeAddr=127.0.0.1 Port=[{port}-{port + len(self._nodes) - 1}]"

    def open(self) -> None:
        """See `Network`."""

    def close(self) -> None:
        """See `Network`."""

    def add(self, node: str) -> None:
        """See `Network`."""

    def lose(self, node: str) -> None:
        """See `Network`."""

    def inside(self, node: str, cwd: Path) -> list[str]:  # noqa: ARG002 - one place for all
        """See `Network`."""
        return []

    def cut(self, node: str) -> None:
        """Raises RuntimeError: there is no link."""
        raise _no_link(node)

    def mend(self, node: str) -> None:
        """Raises RuntimeError: there is no link."""
        raise _no_link(node)


def _no_link(node: str) -> RuntimeError:
    return RuntimeError(f"{node} has no link of its own: that takes SlurmCluster(..., net=True)")
