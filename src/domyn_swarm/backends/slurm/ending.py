"""Ends what Slurm has of a swarm, and makes sure of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from domyn_swarm.backends.slurm.scheduler import Scheduler
from domyn_swarm.backends.slurm.tagged import JOB_PREFIX, tagged
from domyn_swarm.errors import PlatformError
from domyn_swarm.probing import Clock

_JOB_GRACE_S = 30.0
_END_S = 90.0  # from scancel until nothing runs: KillWait (30 s as a rule), and some nodes are slow
_LOOK_S = 1.0


class Ending:
    """Of one swarm. `known` are ids that were recorded for it, by kind, should a site have taken
    the tag from its jobs.
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
        self._slurm.expect_change()  # what another process began a moment ago is to end as well
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

    def _none_left(self, kind: str, told: set[str]) -> bool:
        """Whether none of a kind is left. What begins meanwhile is ended too, and what was on its
        way back into the queue as it was told to end.
        """
        left = self._left(kind)
        chosen = [one for one, waits in left.items() if waits or one not in told]
        if chosen:
            self._slurm.cancel(chosen)
        told.update(chosen)
        return not left

    def _left(self, kind: str) -> dict[str, bool]:
        """What is not over of a kind, and whether it waits in the queue; jobs are also the steps
        in the endpoint's allocation.
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
        deadline = self._clock.monotonic() + within_s
        while not condition():
            if self._clock.monotonic() >= deadline:
                return False
            self._clock.sleep(_LOOK_S)
            self._slurm.expect_change()
        return True
