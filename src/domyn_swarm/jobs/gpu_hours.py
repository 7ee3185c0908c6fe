"""The GPU-hours of a running job, and the budget that ends it.

The rule: a second of a job costs the GPUs of its swarm's replicas that are up in it (starting,
serving or draining; not those that wait in a queue or have ended), divided by the number of jobs of
the swarm that are running then. The sum over several jobs is the cost of the swarm while any of
them ran; the time of a swarm without jobs is charged to none. Publication counts, waiting in a
queue does not.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from domyn_swarm.errors import BudgetSpent, JobError
from domyn_swarm.jobs.worker_spec import JobSpec
from domyn_swarm.model import (
    FINAL_REPLICA_STATES,
    JobProgress,
    ReplicaState,
    TimeLeft,
    utc_now,
)
from domyn_swarm.paths import JobPaths, SwarmPaths
from domyn_swarm.probing import Clock

if TYPE_CHECKING:
    from domyn_swarm.batch.outcomes.tally import Tally

_LOOK_S = 5.0
_AT_WORK = timedelta(seconds=60)  # since a job's last report: a killed job reports none
_HOLD_NONE = FINAL_REPLICA_STATES | {ReplicaState.PENDING}


class Held(NamedTuple):
    """The resources of a swarm at one moment."""

    gpus: int  # of replicas that are up
    jobs: int  # running jobs

    def hours(self, seconds: float) -> float:
        """The GPU-hours of one of the jobs over this time."""
        return self.gpus * seconds / 3600 / max(1, self.jobs)


class GpuHours:
    """Counts a job's GPU-hours. Blocking: call it from a thread."""

    def __init__(
        self, look: Callable[[], Held | None], spent: float = 0.0, clock: Clock = time
    ) -> None:
        """`look` returns the swarm's present resources, or None if they cannot be read; `spent`:
        the cost of earlier runs of the job.
        """
        self.spent = spent
        self.held: Held | None = None
        self._look = look
        self._clock = clock
        self._counted_at: float | None = None
        self._looked_at = 0.0

    def count(self) -> None:
        """Count up to now: call it about once a second."""
        now = self._clock.monotonic()
        if self._counted_at is not None and self.held is not None:
            self.spent += self.held.hours(now - self._counted_at)
        self._counted_at = now
        if self.held is None or now - self._looked_at >= _LOOK_S:
            self._looked_at = now
            self.held = self._look() or self.held

    def left(self, left: TimeLeft | None) -> str | None:
        """The expected cost of the rest of the job, as text; None: not known."""
        if left is None or self.held is None:
            return None
        hours = [self.held.hours(one) for one in (left.expected_s, left.low_s, left.high_s)]
        return "about {:.3g} GPU-hours ({:.3g}-{:.3g})".format(*hours)


def gpu_hours_of(spec: JobSpec, paths: JobPaths) -> GpuHours | None:
    """The counter of a job that begins to run; None: its endpoint is not a swarm's."""
    if spec.endpoint_file is None:
        return None
    swarm = SwarmPaths(Path(spec.endpoint_file).parent.parent)
    tag = None if spec.serving is None else str(spec.serving["tag"])
    return GpuHours(_SwarmResources(swarm, spec.job_id, tag), _spent_before(paths))


def _spent_before(paths: JobPaths) -> float:
    """The cost of earlier runs under the same job id."""
    try:
        progress = JobProgress.model_validate_json(paths.progress.read_text("utf-8"))
    except (OSError, ValueError):  # it has not run yet
        return 0.0
    return progress.gpu_hours or 0.0


class _SwarmResources:
    """Reads a swarm's resources from its folder: its plan, its collector's last view, its jobs.
    `tag`: of the swarm; a view that another swarm of the same name left there says nothing of it.
    None: any view is believed.
    """

    def __init__(self, swarm: SwarmPaths, job_id: str, tag: str | None) -> None:
        from domyn_swarm.backends.endpoint.use_meter import JobsFolder

        self._swarm = swarm
        self._job_id = job_id
        self._tag = tag
        self._jobs = JobsFolder(swarm.jobs)

    def __call__(self) -> Held | None:
        from domyn_swarm.backends.endpoint.view import last_view

        try:
            plan = json.loads(self._swarm.plan.read_text("utf-8"))
            per_replica = int(plan["layout"]["gpus_per_replica"])
            elastic = plan.get("elastic")
            up = int(plan["layout"]["replicas"] if elastic is None else elastic["least"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        view = last_view(self._swarm)
        if view is not None and view.replicas and self._tag in (None, view.tag):
            up = sum(one.state not in _HOLD_NONE for one in view.replicas)
        now = utc_now()
        others = sum(
            one.job_id != self._job_id
            and one.progress.state in ("running", "paused")
            and now - one.progress.updated_at <= _AT_WORK
            for one in self._jobs.read(now)
        )
        return Held(up * per_replica, 1 + others)


class Budget:
    """Ends a job once it has cost its budget of GPU-hours."""

    def __init__(self, hours: float | None, counted: GpuHours | None) -> None:
        """`hours` None: no limit."""
        self._hours = hours
        self._counted = counted

    @property
    def spent(self) -> bool:
        """Whether it is used up."""
        return (
            self._hours is not None
            and self._counted is not None
            and self._counted.spent >= self._hours
        )

    @property
    def ends_in_s(self) -> float | None:
        """In how many seconds it is used up if the swarm stays as large as it is; None: never, or
        that is not known.
        """
        counted = self._counted
        if self._hours is None or counted is None or counted.held is None:
            return None
        each_s = counted.held.hours(1.0)
        return max(0.0, self._hours - counted.spent) / each_s if each_s else None

    def check_counted(self) -> None:
        """Refuse to run if the cost cannot be counted.

        Raises:
            JobError: the swarm's resources cannot be read.
        """
        if self._hours is not None and (self._counted is None or self._counted.held is None):
            raise JobError(
                "The GPUs of the job's swarm cannot be read, so that --max-gpu-hours cannot be "
                "kept.",
                hint="Is the swarm's folder on a file system that this node sees? Else take "
                "--max-gpu-hours out.",
            )

    def over(self, job_id: str, tally: Tally) -> BudgetSpent:
        """The message for a job that ended for this reason."""
        total = "?" if tally.rows_total is None else str(tally.rows_total)
        rows = total if tally.rows_total is None else str(tally.rows_total - tally.rows_done)
        more = None if self._counted is None else self._counted.left(tally.time_left())
        left = f"{rows} of {total} rows are left" + (f", {more} more at this pace" if more else "")
        return BudgetSpent(
            f"Its budget of {self._hours:.4g} GPU-hours (--max-gpu-hours) is used up; {left}.",
            hint=f"Finished rows are kept: `domyn-swarm job resume {job_id} --max-gpu-hours H`"
            " continues, for H more.",
        )
