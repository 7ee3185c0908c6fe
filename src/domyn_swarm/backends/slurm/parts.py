"""The parts of a swarm as Slurm's jobs: the ids of replicas in the tasks of job arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from domyn_swarm.backends.protocols import PlatformPart
from domyn_swarm.backends.slurm.queue import TaggedJob
from domyn_swarm.backends.slurm.slurm_states import SlurmJob

JobsOfParts = Mapping[PlatformPart, SlurmJob | None]
"""The job in each part's place; None: there is none."""


def replica_parts(array: str, replicas: Iterable[int], per_task: int) -> list[PlatformPart]:
    """The parts of replicas that the tasks of a submitted array hold."""
    return [
        PlatformPart(kind="replica", index=index, platform_id=f"{array}_{index // per_task}")
        for index in replicas
    ]


def parts_of(tagged: TaggedJob) -> list[PlatformPart]:
    """The endpoint, or the replicas of a task."""
    if tagged.kind == "endpoint":
        return [PlatformPart(kind="endpoint", platform_id=tagged.job.id)]
    return [
        PlatformPart(kind="replica", index=index, platform_id=tagged.job.id)
        for index in tagged.replicas
    ]


def task_of(part: PlatformPart) -> int:
    """The number of a replica's task in its array."""
    return int(part.platform_id.rpartition("_")[2])
