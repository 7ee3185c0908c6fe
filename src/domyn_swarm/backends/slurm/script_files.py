"""The files in the swarm's folder that programs on the nodes read, written before anything is
submitted.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from domyn_swarm.backends.endpoint.own_endpoint import build_endpoint_spec
from domyn_swarm.backends.protocols import LaunchScripts
from domyn_swarm.backends.slurm.script_contents import (
    endpoint_script,
    engine_python,
    replica_script,
    slurm_config,
)
from domyn_swarm.backends.watchdog_spec import (
    build_watchdog_spec,
    copy_follower,
    copy_watchdog,
    engine_environment,
)
from domyn_swarm.paths import SwarmPaths, private_dir, write_private
from domyn_swarm.planning.plan import DeploymentContext, DeploymentPlan

_EARLY_DEATHS = 2


def write_swarm(
    plan: DeploymentPlan, ctx: DeploymentContext, paths: SwarmPaths, scripts: LaunchScripts
) -> None:
    """Write everything: programs, their specs, the two batch scripts."""
    on_nodes = _for_engines(plan, ctx)
    for folder in (paths.scripts, paths.slurm_logs, paths.endpoint_log.parent):
        private_dir(folder)
    copy_watchdog(paths.watchdog_program)
    if plan.watchdog.ray is not None:
        write_private(paths.ray_token, secrets.token_hex(32))
    copy_follower(paths.follower_program)
    for path, argv in (
        (paths.follower_spec, ctx.serving_spec.follower_argv),
        (paths.companion_spec, ctx.serving_spec.companion_argv),
    ):
        if argv:
            write_private(path, json.dumps(_kept_running(plan, on_nodes, paths, argv), indent=2))
    write_endpoint_spec(plan, ctx, paths)
    replicas, per_task = range(plan.layout.replicas), scripts.replicas_per_task
    write_watchdog_specs(plan, ctx, paths, replicas, per_task)
    for name, text in scripts.texts.items():
        write_private(paths.scripts / name, text)


def render_scripts(
    plan: DeploymentPlan, ctx: DeploymentContext, paths: SwarmPaths, per_task: int
) -> dict[str, str]:
    """The two batch scripts, keyed by file name."""
    template = slurm_config(plan).template_path
    site = None if template is None else Path(template)
    return {
        paths.endpoint_script.name: endpoint_script(plan, ctx, paths).render("batch.sh.j2", site),
        paths.replica_script.name: replica_script(plan, ctx, paths, per_task).render(
            "batch.sh.j2", site
        ),
    }


def _for_engines(plan: DeploymentPlan, ctx: DeploymentContext) -> DeploymentContext:
    python = engine_python(slurm_config(plan), ctx.interpreter)
    return ctx.model_copy(update={"interpreter": python})


def _kept_running(
    plan: DeploymentPlan, ctx: DeploymentContext, paths: SwarmPaths, argv: Sequence[str]
) -> dict[str, Any]:
    return {
        "argv": [word.replace("{python}", ctx.interpreter) for word in argv],
        "env": engine_environment(plan, ctx, paths),
    }


def write_endpoint_spec(plan: DeploymentPlan, ctx: DeploymentContext, paths: SwarmPaths) -> None:
    """Write the endpoint program's spec; it reads the number of replicas from it repeatedly."""
    spec = build_endpoint_spec(plan, ctx, paths, host="")
    write_private(paths.endpoint_spec, spec.model_dump_json(indent=2))


def write_watchdog_specs(
    plan: DeploymentPlan,
    ctx: DeploymentContext,
    paths: SwarmPaths,
    replicas: Iterable[int],
    per_task: int,
) -> None:
    """Write the specs of these replicas' watchdogs. A replica with a node's task for itself may be
    retried on another node.
    """
    on_nodes = _for_engines(plan, ctx)
    for index in replicas:
        private_dir(paths.replica_logs(index))
        spec = watchdog_spec(plan, on_nodes, paths, index, per_task)
        write_private(paths.watchdog_spec(index), json.dumps(spec, indent=2))


def watchdog_spec(
    plan: DeploymentPlan, ctx: DeploymentContext, paths: SwarmPaths, replica: int, per_task: int
) -> dict[str, Any]:
    """The spec of one replica's watchdog."""
    alone = per_task == 1 and plan.layout.nodes_per_replica == 1
    grace_s = plan.watchdog.kill_grace_seconds
    spec = build_watchdog_spec(plan, ctx, paths, replica, host="")
    spec["drain_seconds"] = max(grace_s, slurm_config(plan).drain_before_end_s - 2 * grace_s)
    spec["early_deaths"] = _EARLY_DEATHS if alone else None
    return spec
