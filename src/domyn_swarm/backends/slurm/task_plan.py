"""The parts of the plan that our programs inside a Slurm job need.

`up` has validated the plan and written all of it: here its values are taken from the JSON as they
are. Validating models would cost ten times the rest of a task's start-up, on every node.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from domyn_swarm.errors import StateError
from domyn_swarm.paths import SwarmPaths


@dataclass(frozen=True)
class TaskPlan:
    """See `DeploymentPlan` and `SlurmConfig` for fields of the same names."""

    model: str
    image: str | None
    replicas: int
    gpus_per_replica: int
    nodes_per_replica: int
    container: str
    container_args: Sequence[str]
    mounts: Mapping[str, str]
    requeue: bool
    requires_ray: bool
    ray_port: int
    exclude_nodes: str | None = None


def read_task_plan(paths: SwarmPaths) -> TaskPlan:
    """Read the `plan.json` of a swarm on Slurm.

    Raises:
        OSError: it does not exist.
        StateError: it lacks what a task needs.
    """
    try:
        plan = json.loads(paths.plan.read_text("utf-8"))
        layout, backend = plan["layout"], plan["backend_options"]
        return TaskPlan(
            model=plan["model"],
            image=plan["image"],
            replicas=layout["replicas"],
            gpus_per_replica=layout["gpus_per_replica"],
            nodes_per_replica=layout["nodes_per_replica"],
            container=backend["container"],
            container_args=backend["container_args"],
            mounts=backend["mounts"],
            requeue=backend["requeue"],
            requires_ray=backend["requires_ray"],
            ray_port=backend["ray_port"],
            exclude_nodes=backend["exclude_nodes"],
        )
    except (ValueError, LookupError, TypeError) as error:
        raise StateError(
            f"Cannot use {paths.plan}: {error!r}",
            hint="It is written by `domyn-swarm up`; bring the swarm down and up again.",
        ) from error
