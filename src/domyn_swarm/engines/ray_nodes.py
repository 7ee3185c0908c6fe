"""Ray, where it holds the nodes of a replica together: what runs on the first, what on the others.

`{head}`, `{port}` and `{rank}` are filled in on the node (see `ServingSpec`).
"""

from __future__ import annotations

from domyn_swarm.planning.plan import DeploymentPlan

_START = ("ray", "start", "--block", "--disable-usage-stats")


def by_ray(plan: DeploymentPlan) -> bool:
    """Whether the plan wants it."""
    return plan.layout.nodes_per_replica > 1 and bool(plan.backend_options.get("requires_ray"))


def ray_nodes(plan: DeploymentPlan) -> dict[str, tuple[str, ...]]:
    """The fields of a `ServingSpec` that start it."""
    gpus = f"--num-gpus={plan.layout.tensor_parallel}"
    dashboard = f"--dashboard-port={plan.backend_options['ray_dashboard_port']}"
    first = ("--head", "--node-ip-address={head}", "--port={port}", dashboard)
    return {
        "companion_argv": (*_START, gpus, *first),
        "follower_argv": (*_START, gpus, "--address={head}:{port}"),
    }
