"""Nodes on which replicas of a swarm ended repeatedly while they started: no replica is started
there for an hour. The endpoint program keeps them in a file; `status` shows them.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

from domyn_swarm.model import Record
from domyn_swarm.paths import SwarmPaths, write_private
from domyn_swarm.probing import Clock

LEFT_OUT_S = 3600.0


class LeftOut(Record):
    """A node, the replica that left it, and why."""

    node: str
    replica: int
    job: str  # the platform's job that ended there
    reason: str
    until: datetime


class _File(Record):
    schema_version: Literal[1] = 1
    nodes: tuple[LeftOut, ...] = ()


def left_out(paths: SwarmPaths) -> tuple[LeftOut, ...]:
    """The list as last written, including expired nodes."""
    try:
        return _File.model_validate_json(paths.left_out.read_text("utf-8")).nodes
    except (OSError, ValueError):
        return ()


class LeftOutNodes:
    """The nodes of one swarm, for the program that writes the file."""

    def __init__(self, paths: SwarmPaths, clock: Clock) -> None:
        self._paths = paths
        self._clock = clock

    def now(self) -> tuple[LeftOut, ...]:
        """The nodes that have not expired."""
        return tuple(one for one in left_out(self._paths) if one.until > self._moment(0.0))

    def any_over(self) -> bool:
        """Whether a node has expired that was not let in again."""
        return len(self.now()) < len(left_out(self._paths))

    def leave_out(self, node: str, replica: int, job: str, reason: str) -> None:
        """Leave a node out for an hour from now; once for each job."""
        known = left_out(self._paths)
        if all(one.job != job for one in known):
            until = self._moment(LEFT_OUT_S)
            added = LeftOut(node=node, replica=replica, job=job, reason=reason, until=until)
            self._write((*known, added))

    def let_in(self) -> None:
        """Remove the expired nodes."""
        self._write(self.now())

    def _write(self, nodes: tuple[LeftOut, ...]) -> None:
        write_private(self._paths.left_out, _File(nodes=nodes).model_dump_json(indent=2))

    def _moment(self, later_s: float) -> datetime:
        return datetime.fromtimestamp(self._clock.time() + later_s, UTC)
