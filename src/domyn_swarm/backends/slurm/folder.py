"""What the nodes are told: files in the swarm's folder, written before anything is submitted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from domyn_swarm.backends.endpoint.spec import build_endpoint_spec
from domyn_swarm.backends.slurm.layout import endpoint_script, replica_script, slurm_config
from domyn_swarm.backends.watchdog_spec import build_watchdog_spec, watchdog_source
from domyn_swarm.paths import SwarmPaths, private_dir, write_private
from domyn_swarm.planning.context import DeploymentContext
from domyn_swarm.planning.plan import DeploymentPlan


def write_swarm(
    plan: DeploymentPlan, ctx: DeploymentContext, paths: SwarmPaths, per_task: int
) -> None:
    """Everything: programs, what they are told, the two scripts."""
    config = slurm_config(plan)
    for folder in (paths.scripts, paths.slurm_logs, paths.endpoint_log.parent):
        private_dir(folder)
    shutil.copyfile(watchdog_source(), paths.watchdog_program)
    write_endpoint_spec(plan, ctx, paths)
    write_watchdog_specs(plan, ctx, paths, range(plan.layout.replicas))
    site = None if config.template_path is None else Path(config.template_path)
    endpoint = endpoint_script(plan, ctx, paths).render("batch.sh.j2", site)
    replicas = replica_script(plan, ctx, paths, per_task).render("batch.sh.j2", site)
    write_private(paths.endpoint_script, endpoint)
    write_private(paths.replica_script, replicas)


def write_endpoint_spec(plan: DeploymentPlan, ctx: DeploymentContext, paths: SwarmPaths) -> None:
    """What the endpoint program is told; it reads the number of replicas again and again."""
    spec = build_endpoint_spec(plan, ctx, paths, host="")
    write_private(paths.endpoint_spec, spec.model_dump_json(indent=2))


def write_watchdog_specs(
    plan: DeploymentPlan, ctx: DeploymentContext, paths: SwarmPaths, replicas: Iterable[int]
) -> None:
    """What the watchdogs of these replicas are told."""
    grace_s = plan.watchdog.kill_grace_seconds
    for index in replicas:
        private_dir(paths.replica_logs(index))
        told = build_watchdog_spec(plan, ctx, paths, index, host="")
        told["drain_seconds"] = max(grace_s, slurm_config(plan).drain_before_end_s - 2 * grace_s)
        write_private(paths.watchdog_spec(index), json.dumps(told, indent=2))
