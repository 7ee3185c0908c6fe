"""Ends all jobs that Slurm has of a swarm and verifies it; and the protocol of the scheduler on
which the rules of ending and recovery depend.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

from domyn_swarm.backends.slurm.queue import JOB_PREFIX, JobsById, tagged
from domyn_swarm.backends.slurm.slurm_states import Allocation, OwnEnd, SlurmJob
from domyn_swarm.errors import PlatformError
from domyn_swarm.probing import Clock, comes_true


class WouldTake(NamedTuple):
    """The result of a test submission that Slurm would accept."""

    said: str  # when and where it would run, or why it would wait
    warnings: tuple[str, ...] = ()
    away: int = 0  # nodes that are drained or down, for which it would have to wait


class Scheduler(Protocol):
    """The queue of one user. Every method raises `CommandMissing` or `PlatformUnavailable` while
    the scheduler cannot be asked.
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
        once_over: str | None = None,
    ) -> str:
        """See `Slurm.submit`."""

    def own_end(self, job: str) -> OwnEnd | None:
        """See `Slurm.own_end`."""

    def exclude(self, job: str, nodes: Sequence[str]) -> bool:
        """See `Slurm.exclude`."""

    def queue(self, at_most_s: float = math.inf) -> JobsById:
        """See `Slurm.queue`."""

    def jobs(self, ids: Sequence[str]) -> dict[str, SlurmJob]:
        """See `Slurm.jobs`."""

    def steps(self, at_most_s: float = math.inf) -> JobsById:
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


_JOB_GRACE_S = 30.0
_END_S = 90.0  # from scancel until nothing runs: KillWait (usually 30 s), slow nodes
_LOOK_S = 1.0


class Ending:
    """Ends one swarm. `known` are ids that were recorded for it, by kind, for sites that remove the
    tag from jobs.
    """

    def __init__(
        self,
        slurm: Scheduler,
        tag: str,
        known: Mapping[str, Sequence[str]],
        clock: Clock = time,
    ) -> None:
        self._slurm = slurm
        self._clock = clock
        self._tag = tag
        self._known = known

    def end(self, *kinds: str) -> None:
        """End these kinds (job, replica, endpoint), one after the other; jobs may flush first.

        Raises:
            PlatformError: something still runs.
        """
        self._slurm.expect_change()  # includes jobs that another process has just submitted
        if "job" in kinds:
            self._slurm.cancel([*self._left("job")], signal="TERM")
            self._until(lambda: not self._left("job"), _JOB_GRACE_S)
        for kind in kinds:
            if not self._until(partial(self._none_left, kind, set()), _END_S):
                still = ", ".join(self._left(kind))
                raise PlatformError(
                    f"Slurm still has jobs of the swarm: {still}.",
                    hint="Nodes may be slow to let go; see `squeue`, then run `domyn-swarm down`.",
                )

    def _none_left(self, kind: str, sent: set[str]) -> bool:
        """Whether none of a kind is left. Jobs that start meanwhile are ended too, as are those
        that were being requeued when they were signalled.
        """
        left = self._left(kind)
        chosen = [one for one, waits in left.items() if waits or one not in sent]
        if chosen:
            self._slurm.cancel(chosen)
        sent.update(chosen)
        return not left

    def _left(self, kind: str) -> dict[str, bool]:
        """The jobs of a kind that are not over, and whether each waits in the queue; the steps of
        the endpoint's allocation count as jobs.
        """
        jobs = tagged(self._slurm.queue().values(), self._tag)
        found = {one.job.id: one.job for one in jobs if one.kind == kind}
        found |= self._slurm.jobs(self._known.get(kind, ()))
        left = {one: job.waiting for one, job in found.items() if not job.over}
        if kind == "job":
            endpoints = tuple(f"{one}." for one in self._left("endpoint"))
            steps = self._slurm.steps().values()
            left |= {
                step.id: False
                for step in steps
                if step.id.startswith(endpoints) and step.comment.startswith(JOB_PREFIX)
            }
        return left

    def _until(self, condition: Callable[[], bool], within_s: float) -> bool:
        def anew() -> bool:
            self._slurm.expect_change()
            return condition()

        return comes_true(anew, within_s=within_s, every_s=_LOOK_S, clock=self._clock)
