"""A Slurm that only remembers, and moves with a virtual clock.

`ScriptedCluster` is what happens: tests lose nodes, fail jobs, stop the controller. `ScriptedSlurm`
is what one process sees of it and orders, the `Scheduler` that the rules take. What both do as the
real ones is in `test_scheduler.py`, which a real cluster runs as well.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from domyn_swarm.backends.slurm.ending import WouldTake
from domyn_swarm.backends.slurm.queue import LONGEST_S, JobsById, QueueSnapshot
from domyn_swarm.backends.slurm.slurm_states import Allocation, OwnEnd, SlurmJob
from domyn_swarm.errors import PlatformUnavailable, SubmitRejected
from virtual_time import FilingClock

NODES = ("n1", "n2", "n3", "n4")


@dataclass
class Job:
    """One job or task. `coming` is what becomes of it, and when."""

    id: str
    comment: str
    name: str
    requeues: bool  # whether it may go back into the queue
    held: bool = False
    after: str | None = None  # a job that must have started first
    once_over: str | None = None  # one that must have ended first
    preempted: bool = False
    restarts: int = 0
    state: str = "PENDING"
    reason: str = "Resources"
    since: float = 0.0  # it is in this state
    steps: dict[str, str] = field(default_factory=dict)  # their names
    coming: list[tuple[float, str]] = field(default_factory=list)
    exclude: tuple[str, ...] = ()  # nodes
    output: str = ""

    @property
    def seen(self) -> SlurmJob:
        waits = self.state == "PENDING"
        there = next(node for node in NODES if node not in self.exclude)
        reason, node = (self.reason, "") if waits else ("", there)
        return SlurmJob(self.id, self.state, reason, node, "N/A", self.comment, self.name)


class ScriptedCluster:
    """All jobs of one user. What it takes for a job to start, to end, to be forgotten are
    attributes.
    """

    def __init__(self, clock: FilingClock) -> None:
        self.clock = clock
        self.room = True  # for what waits in the queue
        self.starts_s = 1.0
        self.ends_s = 1.0
        self.kill_wait_s = 30.0
        self.back_in_queue_s = 120.0
        self.min_job_age_s = 300.0
        self.name = "test"
        self.whole_nodes: set[str] = set()  # partitions
        self.stubborn: set[str] = set()  # jobs that end by SIGKILL only
        self.allocation = Allocation(cpus=2, memory_mb=1000, ends_at=None)
        self.looks: list[float] = []  # when the queue was asked for
        self.signals: list[tuple[str, str]] = []
        self.on_signal: Callable[[str, str], object] = lambda _job, _signal: None
        self._away_until = -math.inf
        self._jobs: dict[str, Job] = {}
        self._next = 1

    # -- what happens --------------------------------------------------------------------------

    def process(self, longest_s: float = LONGEST_S) -> ScriptedSlurm:
        """Slurm, as one more process sees it."""
        return ScriptedSlurm(self, longest_s)

    def away(self, seconds: float) -> None:
        """The controller does not answer for so long; what runs goes on."""
        self._away_until = self.clock.monotonic() + seconds

    def end(self, job: str, state: str) -> None:
        """It ends by itself, or is ended by others, in this state."""
        self._become(self.jobs[job], state)

    def lose(self, job: str) -> None:
        """Its node is gone: it starts elsewhere where it may, else that is its end."""
        lost = self.jobs[job]
        if lost.requeues:
            self._back(lost, 0.0)
        else:
            self._become(lost, "NODE_FAIL")

    def preempt(self, job: str) -> None:
        """It is ended for another one: it goes back into the queue where it may, else that is its
        end (`PreemptMode=CANCEL`).
        """
        told = self.jobs[job]
        if told.requeues:
            self._back(told, self.ends_s)
            return
        self._become(told, "COMPLETING")
        told.preempted = True
        told.coming = [(self.clock.monotonic() + self.ends_s, "PREEMPTED")]

    def start_step(self, job: str, name: str) -> str:
        """A step begins in a job's allocation; its id."""
        within = self.jobs[job]
        step = f"{job}.{len(within.steps)}"
        within.steps[step] = name
        return step

    def end_step(self, step: str) -> None:
        """A step ends. Its number is not given again."""
        self.jobs[step.partition(".")[0]].steps[step] = ""

    # -- what is ordered -------------------------------------------------------------------------

    @property
    def jobs(self) -> dict[str, Job]:
        """All that the controller has not forgotten, as they are now."""
        now = self.clock.monotonic()
        for job in self._jobs.values():
            while job.coming and job.coming[0][0] <= now and self._may_start(job):
                at, state = job.coming.pop(0)
                job.state, job.since = state, max(at, job.since)
        for job in list(self._jobs.values()):
            if job.seen.over and now - job.since >= self.min_job_age_s:
                del self._jobs[job.id]
        return self._jobs

    def live(self) -> dict[str, str]:
        """The states of those that are not over."""
        return {job.id: job.state for job in self.jobs.values() if not job.seen.over}

    def submit(
        self,
        script: str,
        array: Sequence[int] | None,
        exclude: Sequence[str] = (),
        after: str | None = None,
        once_over: str | None = None,
    ) -> str:
        if exclude and set(exclude) >= set(NODES):
            raise SubmitRejected("Requested node configuration is not available", hint="")
        options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", script, re.MULTILINE))
        if array is None and "array" in options:
            first, _, last = options["array"].partition("-")
            array = range(int(first), int(last or first) + 1)
        number, self._next = self._next, self._next + 1
        now = self.clock.monotonic()
        for task in [""] if array is None else [f"_{index}" for index in array]:
            job = Job(
                f"{number}{task}",
                options.get("comment", ""),
                options.get("job-name", ""),
                "no-requeue" not in options,
            )
            job.exclude = tuple(exclude)
            job.output = options.get("output", "")
            job.held, job.since = "begin" in options, now
            job.after, job.once_over = after, once_over
            job.reason = "Dependency" if after or once_over else "Resources"
            job.coming = [(now + self.starts_s, "RUNNING")]
            self._jobs[job.id] = job
        return str(number)

    def cancel(self, job: str) -> None:
        told = self.jobs.get(job)
        if told is None or told.seen.over:
            return
        if told.seen.waiting:
            self._become(told, "CANCELLED")
        elif told.state == "COMPLETING":  # perhaps on its way back into the queue
            told.coming = [(told.coming[0][0], "CANCELLED")]
        else:
            takes_s = self.kill_wait_s if job in self.stubborn else self.ends_s
            self._become(told, "COMPLETING")
            told.coming = [(self.clock.monotonic() + takes_s, "CANCELLED")]

    def signal(self, job: str, signal: str) -> None:
        self.signals.append((job, signal))
        self.on_signal(job, signal)

    def requeue(self, job: str) -> bool:
        told = self.jobs.get(job)
        if told is None or not told.requeues or told.seen.waiting:
            return False
        self._back(told, 0.0 if told.seen.over else self.ends_s)
        return True

    def refuse_while_away(self) -> None:
        if self.clock.monotonic() < self._away_until:
            raise PlatformUnavailable("Unable to contact slurm controller", hint="")

    def _may_start(self, job: Job) -> bool:
        if job.coming[0][1] != "RUNNING":
            return True
        first = self._jobs.get(job.after or "")
        begun = first is None or not first.seen.waiting
        last = self._jobs.get(job.once_over or "")
        return self.room and not job.held and begun and (last is None or last.seen.over)

    def _become(self, job: Job, state: str) -> None:
        job.state, job.since, job.coming, job.steps = state, self.clock.monotonic(), [], {}

    def _back(self, job: Job, ends_s: float) -> None:
        self._become(job, "COMPLETING")
        there = self.clock.monotonic() + ends_s
        job.coming = [(there, "PENDING"), (there + self.back_in_queue_s, "RUNNING")]
        job.reason = "BeginTime"
        job.restarts += 1


class ScriptedSlurm:
    """The `Scheduler` of one process: it looks at the queue as rarely as `Slurm` does."""

    def __init__(self, cluster: ScriptedCluster, longest_s: float = LONGEST_S) -> None:
        self._cluster = cluster
        self._queue = QueueSnapshot(self._squeue, longest_s, cluster.clock)
        self._steps = QueueSnapshot(self._squeue_steps, clock=cluster.clock)

    def cluster(self) -> str:
        self._cluster.refuse_while_away()
        return self._cluster.name

    def test(self, script: Path) -> WouldTake:
        self._cluster.refuse_while_away()
        return WouldTake(f"{script.name} can start now")

    def submit(
        self,
        script: Path,
        *,
        array: Sequence[int] | None = None,
        exclude: Sequence[str] = (),
        after: str | None = None,
        once_over: str | None = None,
    ) -> str:
        self._cluster.refuse_while_away()
        self._queue.expect_change()
        return self._cluster.submit(script.read_text(), array, exclude, after, once_over)

    def own_end(self, job: str) -> OwnEnd | None:
        self._cluster.refuse_while_away()
        told = self._cluster.jobs.get(job)
        return None if told is None else OwnEnd(told.state, told.preempted, told.restarts)

    def exclude(self, job: str, nodes: Sequence[str]) -> bool:
        self._cluster.refuse_while_away()
        waits = self._cluster.jobs[job].seen.waiting
        if waits:
            self._cluster.jobs[job].exclude = tuple(nodes)
        return waits

    def queue(self, at_most_s: float = math.inf) -> JobsById:
        return self._queue.now(at_most_s)

    def jobs(self, ids: Sequence[str]) -> dict[str, SlurmJob]:
        known = self.queue()
        if not known.keys() >= {one for one in ids if "." not in one}:
            known = self.queue(5.0)
        known = {**known, **(self.steps() if any("." in one for one in ids) else {})}
        return {one: known[one] for one in ids if one in known}

    def steps(self, at_most_s: float = math.inf) -> JobsById:
        return self._steps.now(at_most_s)

    def expect_change(self) -> None:
        self._queue.expect_change()
        self._steps.expect_change()

    def outputs(self, ids: Sequence[str]) -> dict[str, str]:
        self._cluster.refuse_while_away()
        jobs = self._cluster.jobs
        return {one: jobs[one].output for one in ids if one in jobs}

    def allocation(self, job: str) -> Allocation:
        self._cluster.refuse_while_away()
        assert job in self._cluster.jobs
        return self._cluster.allocation

    def gives_whole_nodes(self, partitions: str) -> bool:
        return partitions in self._cluster.whole_nodes

    def cancel(self, ids: Sequence[str], *, signal: str | None = None) -> None:
        self._cluster.refuse_while_away()
        for one in ids:
            job = self._cluster.jobs.get(one)
            if "." in one and signal is None:
                self._cluster.end_step(one)
            elif signal is None or (job is not None and job.seen.waiting):
                self._cluster.cancel(one)
            else:
                self._cluster.signal(one, signal)
        self.expect_change()

    def signal_steps(self, job: str, signal: str) -> None:
        self._cluster.refuse_while_away()
        for step, name in self._cluster.jobs[job].steps.items():
            if name:
                self._cluster.signal(step, signal)

    def requeue(self, job: str) -> bool:
        self._cluster.refuse_while_away()
        return self._cluster.requeue(job)

    def _squeue(self) -> JobsById:
        self._cluster.looks.append(self._cluster.clock.monotonic())
        self._cluster.refuse_while_away()
        return {job.id: job.seen for job in self._cluster.jobs.values()}

    def _squeue_steps(self) -> JobsById:
        self._cluster.refuse_while_away()
        return {
            step: SlurmJob(step, "RUNNING", "", "n1", "N/A", name)
            for job in self._cluster.jobs.values()
            for step, name in job.steps.items()
            if name
        }
