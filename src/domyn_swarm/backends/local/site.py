"""What must be true of this machine for a swarm to run on it."""

from __future__ import annotations

from collections.abc import Iterator

from domyn_swarm.backends.checks import Check, check_engine, check_folder, check_model, failed, ok
from domyn_swarm.backends.endpoint.ports import is_free
from domyn_swarm.backends.gpus import gpus_here
from domyn_swarm.backends.local.serving import HOST
from domyn_swarm.planning.plan import DeploymentPlan

_PORTS = 200


def site_checks(plan: DeploymentPlan) -> Iterator[Check]:
    """Every check of one swarm."""
    yield from check_model(plan)
    yield from check_engine(plan, None)
    yield check_folder("home_directory", plan.home_directory)
    yield _gpus(plan)
    free = next(
        (one for one in range(plan.port_from, plan.port_from + _PORTS) if is_free(HOST, one)), None
    )
    if free is None:
        where = f"{plan.port_from}-{plan.port_from + _PORTS - 1}"
        yield failed("ports", f"none of {where} is free", "Set port to where some are free.")
    else:
        yield ok("ports", f"{free} is free")


def _gpus(plan: DeploymentPlan) -> Check:
    wanted = plan.layout.replicas * plan.layout.gpus_per_replica
    if not wanted:
        return ok("GPUs", "none are asked for")
    there = gpus_here() or 0
    if there < wanted and plan.elastic is not None:
        return failed(
            "GPUs",
            f"up to {wanted} are asked for, this machine has {there}",
            "Lower replicas.max or gpus_per_replica.",
        )
    if there < wanted:
        return failed(
            "GPUs",
            f"{wanted} are asked for, this machine has {there}",
            "Lower replicas or gpus_per_replica.",
        )
    return ok("GPUs", f"{there} are here, {wanted} are asked for")
