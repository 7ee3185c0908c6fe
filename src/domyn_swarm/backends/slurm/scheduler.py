"""What the rules by which things end and come back on Slurm ask of it: a queue and a few orders.

`Slurm` gives them by Slurm's commands. A rule takes one of these and a `Clock`, and nothing else
that moves: its tests let hours of a scripted queue pass in milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from domyn_swarm.backends.slurm.looking import Jobs
from domyn_swarm.backends.slurm.states import Allocation, SlurmJob


class WouldTake(NamedTuple):
    """What Slurm says of a script that it would take."""

    said: str  # when and where it would run, or why it waits
    warnings: tuple[str, ...] = ()
    away: int = 0  # nodes that are drained or down, without which it has to wait


class Scheduler(Protocol):
    """The queue of one user. Every call raises `CommandMissing` or `PlatformUnavailable` while the
    scheduler cannot be asked.
    """

    def cluster(self) -> str:
        """See `Slurm.cluster`."""

    def test(self, script: Path) -> WouldTake:
        """See `Slurm.test`."""

    def submit(
        self,
        script: Path,
        *,
        array: Sequence[int] | None = None,
        exclude: Sequence[str] = (),
        after: str | None = None,
    ) -> str:
        """See `Slurm.submit`."""

    def exclude(self, job: str, nodes: Sequence[str]) -> bool:
        """See `Slurm.exclude`."""

    def queue(self, at_most_s: float = math.inf) -> Jobs:
        """See `Slurm.queue`."""

    def jobs(self, ids: Sequence[str]) -> dict[str, SlurmJob]:
        """See `Slurm.jobs`."""

    def steps(self, at_most_s: float = math.inf) -> Jobs:
        """See `Slurm.steps`."""

    def outputs(self, ids: Sequence[str]) -> dict[str, str]:
        """See `Slurm.outputs`."""

    def expect_change(self) -> None:
        """See `Slurm.expect_change`."""

    def allocation(self, job: str) -> Allocation:
        """See `Slurm.allocation`."""

    def gives_whole_nodes(self, partitions: str) -> bool:
        """See `Slurm.gives_whole_nodes`."""

    def cancel(self, ids: Sequence[str], *, signal: str | None = None) -> None:
        """See `Slurm.cancel`."""

    def signal_steps(self, job: str, signal: str) -> None:
        """See `Slurm.signal_steps`."""

    def requeue(self, job: str) -> bool:
        """See `Slurm.requeue`."""
