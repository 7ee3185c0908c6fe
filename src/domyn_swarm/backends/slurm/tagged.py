"""What Slurm has of one swarm, by the comment that each of its jobs carries. Pure.

`domyn-swarm/<tag>/endpoint`, `domyn-swarm/<tag>/replica/<replicas per task>` and
`domyn-swarm/<tag>/job/<id>`. A task of the array is `<array>_<n>`: its replicas are those from
n times the replicas per task on.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from domyn_swarm.backends.slurm.states import SlurmJob

TAG_PREFIX = "domyn-swarm"
JOB_PREFIX = "job-"


class TaggedJob(NamedTuple):
    """A job of the swarm. `group` is the task's number; its replicas follow from it."""

    kind: Literal["endpoint", "replica", "job"]
    job: SlurmJob
    group: int = 0
    per_task: int = 1

    @property
    def replicas(self) -> range:
        """The replicas that the task runs, as far as the swarm has so many."""
        if self.kind != "replica":
            return range(0)
        return range(self.group * self.per_task, (self.group + 1) * self.per_task)


def comment_of(tag: str, what: str) -> str:
    """What a job carries to be found by its swarm's tag."""
    return f"{TAG_PREFIX}/{tag}/{what}"


def job_name(job_id: str) -> str:
    """What Slurm calls a job, and the comment of its step."""
    return f"{JOB_PREFIX}{job_id}"


def tagged(jobs: Iterable[SlurmJob], tag: str) -> list[TaggedJob]:
    """Those jobs that belong to the swarm, older ones first."""
    prefix = comment_of(tag, "")
    found = []
    for job in jobs:
        kind, _, rest = job.comment.removeprefix(prefix).partition("/")
        if not job.comment.startswith(prefix):
            continue
        if kind == "endpoint":
            found.append(TaggedJob("endpoint", job))
        elif kind == "job":
            found.append(TaggedJob("job", job))
        elif kind == "replica":
            group = job.id.partition("_")[2]
            found.append(
                TaggedJob(
                    "replica",
                    job,
                    int(group) if group.isdecimal() else 0,
                    int(rest) if rest.isdecimal() else 1,
                )
            )
    return sorted(found, key=lambda one: int(one.job.id.partition("_")[0]))
