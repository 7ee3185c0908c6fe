"""Slurm's queue as one snapshot shared by all callers, and a swarm's jobs in it, by their
comments.
"""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

from domyn_swarm.backends.slurm.slurm_states import SlurmJob
from domyn_swarm.errors import PlatformError
from domyn_swarm.probing import Clock

_FIRST_S = 1.0
LONGEST_S = 15.0
_GROWS = 1.5

JobsById = dict[str, SlurmJob]


class QueueSnapshot:
    """A cached result of squeue, refreshed once it is too old.

    While nothing changes it may grow older, from 1 s to `longest_s`: a process that waits asks a
    scheduler that thousands share 4 times a minute. An error is cached in the same way.
    """

    def __init__(
        self, ask: Callable[[], JobsById], longest_s: float = LONGEST_S, clock: Clock = time
    ) -> None:
        self._ask = ask
        self._longest_s = longest_s
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: JobsById | PlatformError = {}
        self._asked_at = -math.inf
        self._good_for_s = _FIRST_S

    def now(self, at_most_s: float = math.inf) -> JobsById:
        """The cached snapshot, refreshed if it is older than `at_most_s`.

        Raises:
            PlatformError: the scheduler cannot be asked.
        """
        with self._lock:
            age_s = self._clock.monotonic() - self._asked_at
            if age_s >= min(self._good_for_s, at_most_s):
                self._look()
            if isinstance(self._seen, PlatformError):
                raise self._seen
            return self._seen

    def _look(self) -> None:
        before = self._seen
        try:
            self._seen = self._ask()
        except PlatformError as error:
            self._seen = error
        same = isinstance(before, PlatformError) == isinstance(self._seen, PlatformError) and (
            isinstance(before, PlatformError) or before == self._seen
        )
        self._good_for_s = min(self._longest_s, self._good_for_s * _GROWS) if same else _FIRST_S
        self._asked_at = self._clock.monotonic()

    def expect_change(self) -> None:
        """Mark the snapshot as outdated and refresh it often: something was submitted or ended."""
        with self._lock:
            self._asked_at = -math.inf
            self._good_for_s = _FIRST_S


TAG_PREFIX = "domyn-swarm"
JOB_PREFIX = "job-"

_Kind = Literal["endpoint", "replica", "job"]


def replicas_of(task: int, per_task: int) -> range:
    """The replicas of a task that holds `per_task` of them. The last task may hold fewer."""
    return range(task * per_task, (task + 1) * per_task)


class TaggedJob(NamedTuple):
    """A job of the swarm. `group` is the number of its task, from which its replicas follow."""

    kind: _Kind
    job: SlurmJob
    group: int = 0
    per_task: int = 1

    @property
    def replicas(self) -> range:
        """The replicas of the task, of which the last task may hold fewer."""
        if self.kind != "replica":
            return range(0)
        return replicas_of(self.group, self.per_task)


def comment_of(tag: str, what: str) -> str:
    """The comment by which a job is recognized as part of the swarm of a tag."""
    return f"{TAG_PREFIX}/{tag}/{what}"


def endpoint_name(tag: str) -> str:
    """Slurm's name of a swarm's endpoint job."""
    swarm, _, rest = tag.rpartition(".")
    return f"{swarm}-endpoint.{rest}"


def replicas_name(tag: str, per_task: int) -> str:
    """Slurm's name of a swarm's array of replicas."""
    swarm, _, rest = tag.rpartition(".")
    return f"{swarm}-replicas-{per_task}.{rest}"


def any_replicas_name(tag: str) -> str:
    """An expression that matches the names of all arrays of a swarm."""
    swarm, _, rest = tag.rpartition(".")
    return rf"{re.escape(swarm)}-replicas-\d+\.{re.escape(rest)}"


def job_name(job_id: str) -> str:
    """Slurm's name of a job's step."""
    return f"{JOB_PREFIX}{job_id}"


def own_job_name(job_id: str, tag: str | None) -> str:
    """Slurm's name of a job with its own allocation."""
    return f"{job_name(job_id)}.{(tag or '-').rpartition('.')[2]}"


def is_job(job: SlurmJob, job_id: str) -> bool:
    """Whether this is the job with that id, in its own allocation."""
    commented = re.search(rf"{TAG_PREFIX}/\S+/job/{re.escape(job_id)}(?!\S)", job.comment)
    return commented is not None or job.name.startswith(f"{job_name(job_id)}.")


def shows_comment(job: SlurmJob, tag: str) -> bool:
    """Whether Slurm shows the job's comment as it was submitted."""
    return comment_of(tag, "") in job.comment


def tagged(jobs: Iterable[SlurmJob], tag: str) -> list[TaggedJob]:
    """The jobs of the queue that belong to the swarm, older ones first."""
    swarm, _, rest = (re.escape(part) for part in tag.rpartition("."))
    commented = re.compile(
        rf"{re.escape(comment_of(tag, ''))}(?P<kind>endpoint|replica|job)(?:/(?P<more>\S*))?(?!\S)"
    )
    named = re.compile(
        rf"(?:{swarm}-(?P<kind>endpoint|replicas)(?:-(?P<more>\d+))?|job-\S+)\.{rest}"
    )
    found = []
    for job in jobs:
        said = commented.search(job.comment) or named.fullmatch(job.name)
        if said is not None:
            found.append(_tagged(job, said["kind"] or "job", said["more"] or ""))
    return sorted(found, key=lambda one: int(one.job.id.partition("_")[0]))


def _tagged(job: SlurmJob, kind: str, more: str) -> TaggedJob:
    if kind == "endpoint":
        return TaggedJob("endpoint", job)
    if kind == "job":
        return TaggedJob("job", job)
    group = job.id.partition("_")[2]
    return TaggedJob(
        "replica",
        job,
        int(group) if group.isdecimal() else 0,
        int(more) if more.isdecimal() else 1,
    )
