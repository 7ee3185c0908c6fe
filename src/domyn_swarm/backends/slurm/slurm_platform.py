"""Slurm as the platform of a swarm's endpoint program."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from typing_extensions import override

from domyn_swarm.backends.endpoint.platform_protocol import Placed, Platform
from domyn_swarm.backends.job_end import read_exit
from domyn_swarm.backends.slurm.commands import Slurm
from domyn_swarm.backends.slurm.ending import Ending, Scheduler
from domyn_swarm.backends.slurm.other_nodes import OtherNodes
from domyn_swarm.backends.slurm.queue import TaggedJob, tagged
from domyn_swarm.backends.slurm.recovery import KilledTask
from domyn_swarm.backends.slurm.slurm_compute import SlurmCompute
from domyn_swarm.backends.slurm.slurm_states import BROKEN, LOST
from domyn_swarm.backends.slurm.submissions import TAKEN_WITHIN_S, replicas_per_task
from domyn_swarm.backends.slurm.task_plan import read_task_plan
from domyn_swarm.errors import PlatformUnavailable, SubmissionUnknown, SubmitRejected
from domyn_swarm.logs import get_logger
from domyn_swarm.model import JobHandle, utc_now
from domyn_swarm.paths import SwarmPaths
from domyn_swarm.probing import Clock

_log = get_logger(__name__)

_SLURM_ACTS_S = 20.0  # leaves Slurm the time to bring back what is lost itself
_KILLED_S = 20.0  # before a killed task is replaced: a waiting `up` is informed first
_SAME_LOSS_S = 10.0  # calls within this time are about the same loss
_AGAIN_S = 60.0
_RARELY_S = 30.0  # every swarm's endpoint asks as long as replicas wait


class SlurmPlatform(Platform):
    """Tasks of Slurm, for the endpoint program."""

    def __init__(
        self,
        paths: SwarmPaths,
        tag: str,
        killed_s: float = _KILLED_S,
        *,
        slurm: Scheduler | None = None,
        clock: Clock = time,
    ) -> None:
        """`killed_s`: seconds before a task that was killed is replaced."""
        self._paths = paths
        self._killed_s = killed_s
        self._tag = tag
        self._clock = clock
        self._slurm = slurm or Slurm(_RARELY_S)
        self._compute = SlurmCompute(self._slurm, clock)
        self._lost_since: dict[str, float] = {}  # by job
        self._submitted_at: dict[int, float] = {}  # by task
        self._unanswered_until: dict[int, float] = {}  # by task: Slurm may have accepted it
        self._asked_at = -math.inf
        plan = read_task_plan(paths)
        self._slurm_acts_s = _SLURM_ACTS_S if plan.requeue else 0.0
        self._others = OtherNodes(paths, plan.exclude_nodes, clock)

    @override
    def replace_lost(self, replicas: Collection[int]) -> Sequence[int]:
        """A replica that ended at its time limit records that in a file;
        Slurm reports the ends of the others, except of those that were killed.
        """
        now = self._clock.monotonic()
        if now - self._asked_at > _SAME_LOSS_S:  # all served until now: the snapshot is too old
            self._slurm.expect_change()
        self._asked_at = now
        jobs = tagged(self._slurm.queue().values(), self._tag)
        if not any(one.kind == "endpoint" for one in jobs):  # this job is hidden, so others are
            _log.warning("Slurm shows no job by the swarm's tag: lost replicas are not replaced")
            return ()
        tasks = [one for one in jobs if one.kind == "replica"]
        per_task = next((one.per_task for one in tasks), 1)
        own: dict[int, list[TaggedJob]] = {}
        for one in tasks:
            own.setdefault(one.group, []).append(one)
        self._let_in([one.job.id for one in tasks if one.job.waiting])
        for group in sorted({one // per_task for one in replicas}):
            runs = own.get(group, [])
            if not all(one.job.over for one in runs):
                continue
            if self._wants_successor(group, runs) or self._others.wanted(group, runs):
                self._submit(group)
        return self._others.given_up()

    def _wants_successor(self, group: int, own: Sequence[TaggedJob]) -> bool:
        """Whether a task of which no job is left did not fail. One that Slurm has forgotten may
        have left a file.
        """
        marker = self._paths.expired(group)
        ended = marker.read_text("utf-8").strip() if marker.exists() else None
        if not own:
            killed = KilledTask.forgotten(self._paths, group, self._clock)
            return ended is not None or (killed is not None and killed.once_more())
        if ended == own[-1].job.id:
            return True
        last = own[-1].job
        killed = None
        if last.state in BROKEN:
            killed = KilledTask(self._paths, group, last.id, self._clock)
        if last.state not in LOST and not (killed and killed.was_killed):
            return False
        since = self._lost_since.setdefault(last.id, self._clock.monotonic())
        patience_s = self._killed_s if killed else self._slurm_acts_s
        if self._clock.monotonic() - since < patience_s:
            return False
        return killed is None or killed.once_more()

    def _let_in(self, waiting: Sequence[str]) -> None:
        """Allow waiting jobs to start again on nodes that were left out long enough."""
        if self._others.any_over():
            for job in waiting:
                self._slurm.exclude(job, self._others.excluded())
            self._others.let_in()

    # -- for elastic swarms ---------------------------------------------------------------------

    @property
    @override
    def per_place(self) -> int:
        """The replicas of a task."""
        return replicas_per_task(self._paths)

    @override
    def places(self) -> Mapping[int, Placed]:
        """The number of tasks that are not over."""
        return {
            one.group: Placed(one.job.runs_on, _left_s(one))
            for one in self._tasks()
            if not one.job.over
        }

    @override
    def start(self, places: Collection[int]) -> None:
        """Submits one array of the kept script. An array that Slurm may have
        accepted without answering is not submitted again until it would be in the queue.
        """
        self._slurm.expect_change()
        live = {one.group for one in self._tasks(at_most_s=0.0) if not one.job.over}
        now = self._clock.monotonic()
        rests = {one for one, until in self._unanswered_until.items() if until > now}
        missing = sorted(set(places) - live - rests)
        if not missing:
            return
        for group in missing:
            for word in (self._paths.expired(group), self._paths.elsewhere(group)):
                word.unlink(missing_ok=True)  # left by a run that was given back
            self._submitted_at[group] = now
        try:
            array = self._slurm.submit(
                self._paths.replica_script, array=missing, exclude=self._others.excluded()
            )
        except SubmissionUnknown:
            self._unanswered_until |= dict.fromkeys(missing, now + TAKEN_WITHIN_S)
            raise
        _log.info("tasks %s of the replicas are submitted: %s", missing, array)

    @override
    def release(self, places: Collection[int]) -> None:
        tasks = [one for one in self._tasks(at_most_s=0.0) if not one.job.over]
        self._slurm.cancel([one.job.id for one in tasks if one.group in places], signal="TERM")

    def _tasks(self, at_most_s: float = math.inf) -> list[TaggedJob]:
        """The tasks of the replicas.

        Raises:
            PlatformUnavailable: Slurm does not show which jobs are this swarm's.
        """
        jobs = tagged(self._slurm.queue(at_most_s).values(), self._tag)
        if not any(one.kind == "endpoint" for one in jobs):
            raise PlatformUnavailable(
                "Slurm shows no job by the swarm's tag: which replicas there are is not known.",
                hint="A site that changes names and comments of jobs can have no elastic swarm.",
            )
        return [one for one in jobs if one.kind == "replica"]

    # -- replacing --------------------------------------------------------------------------------

    def _submit(self, group: int) -> None:
        now = self._clock.monotonic()
        if now - self._submitted_at.get(group, -_AGAIN_S) < _AGAIN_S:
            return
        self._submitted_at[group] = now
        script, others = self._paths.replica_script, self._others
        try:
            array = self._slurm.submit(script, array=[group], exclude=others.excluded())
        except SubmitRejected as error:  # perhaps no node is left: allow all of them again
            if not others.any_left_out():
                raise
            _log.warning("task %d may start on any node: %s", group, error.message)
            array = self._slurm.submit(script, array=[group])
        for word in (self._paths.expired(group), self._paths.elsewhere(group)):
            word.unlink(missing_ok=True)  # Slurm has it
        _log.info("task %d of the replicas has a successor: %s", group, array)

    @override
    def job_over(self, handle: JobHandle) -> bool:
        ended = read_exit(Path(handle.exit_path))
        if handle.platform != "slurm":  # a process of another host: only its own exit record counts
            return ended is not None
        if ended is not None and ended.conclusive:  # else it may run again
            return True
        return self._compute.probe(handle).final

    @override
    def end_rest(self) -> None:
        Ending(self._slurm, self._tag, {}, self._clock).end("job", "replica")


def _left_s(one: TaggedJob) -> float:
    """Seconds to its time limit; infinite while it waits."""
    limit = one.job.limit
    if limit is None or not one.job.runs_on:
        return math.inf
    return max(0.0, (limit - utc_now()).total_seconds())
