"""From a plan to the scripts of its jobs. Pure: no command is run, no file written."""

from __future__ import annotations

from pathlib import Path

from domyn_swarm.backends.base import ComputeSpec
from domyn_swarm.backends.slurm.commands import comment_of
from domyn_swarm.backends.slurm.scripts import BatchScript
from domyn_swarm.config.backends import SlurmConfig, time_limit_s
from domyn_swarm.paths import JobPaths, SwarmPaths
from domyn_swarm.planning.context import DeploymentContext
from domyn_swarm.planning.plan import DeploymentPlan

_ENDPOINT_WARNING_S = 60  # before its time limit the endpoint goes back into the queue
_JOB_WARNING_S = 120  # and a job is told to finish


def slurm_config(plan: DeploymentPlan) -> SlurmConfig:
    """The backend section that the plan was made from."""
    return SlurmConfig.model_validate(plan.backend_options)


def interpreter(config: SlurmConfig, submitting: str) -> str:
    """The Python that our programs run with on the nodes."""
    return submitting if config.venv_path is None else str(Path(config.venv_path) / "bin/python")


def replica_script(plan: DeploymentPlan, ctx: DeploymentContext, paths: SwarmPaths) -> BatchScript:
    """The array: one task per replica, scheduled one by one."""
    config, resources = slurm_config(plan), plan.resources
    python = interpreter(config, ctx.interpreter)
    limit_s = time_limit_s(config.time_limit)
    warned = config.drain_before_end_s if limit_s != float("inf") else 0
    return BatchScript(
        name=f"{plan.name}-replicas",
        comment=comment_of(ctx.tag, "replica"),
        output=_pattern(paths.slurm_logs, "replica-%a.log"),
        command=[python, "-m", "domyn_swarm.backends.slurm.replica_task", str(paths.root)],
        options={
            "array": f"0-{plan.layout.replicas - 1}",
            "partition": config.partition,
            "account": config.account,
            "qos": config.qos,
            "time": config.time_limit,
            "nodelist": config.node_list,
            "exclude": config.exclude_nodes,
            "nodes": plan.layout.nodes_per_replica,
            "ntasks-per-node": 1,
            "cpus-per-task": resources.cpus,
            "mem": None if resources.memory_gb is None else f"{round(resources.memory_gb * 1024)}M",
            "gres": f"gpu:{plan.layout.tensor_parallel}" if resources.gpus else None,
            "signal": f"B:USR1@{warned}" if warned else None,
            **_mail(config),
        },
        flags=["--requeue" if config.requeue else "--no-requeue"],
        preamble=config.preamble,
        modules=config.modules,
        env={**ctx.shared_env, **config.env},
    )


def endpoint_script(plan: DeploymentPlan, ctx: DeploymentContext, paths: SwarmPaths) -> BatchScript:
    """The small job that holds router and collector; it takes no GPU."""
    config = slurm_config(plan)
    own = config.endpoint
    wall_time = own.wall_time or config.time_limit
    limited = time_limit_s(wall_time) != float("inf")
    return BatchScript(
        name=f"{plan.name}-endpoint",
        comment=comment_of(ctx.tag, "endpoint"),
        output=_pattern(paths.endpoint_log.parent, paths.endpoint_log.name),
        command=[
            *(interpreter(config, ctx.interpreter), "-m"),
            *("domyn_swarm.backends.slurm.endpoint_task", str(paths.root)),
        ],
        options={
            "partition": own.partition or config.partition,
            "account": config.account,
            "qos": own.qos or config.qos,
            "time": wall_time,
            "nodes": 1,
            "ntasks": 1,
            "cpus-per-task": own.cpus_per_task,
            "mem": own.mem,
            "signal": f"B:USR1@{_ENDPOINT_WARNING_S}" if limited else None,
            **_mail(config),
        },
        flags=["--requeue"],
        preamble=config.preamble if own.partition is None else (),
        modules=config.modules,
        env={**ctx.shared_env, **config.env},
    )


def job_script(config: SlurmConfig, spec: ComputeSpec, wrapped: list[str]) -> BatchScript:
    """A job of its own, that survives logout and needs no GPU."""
    own, paths = config.endpoint, JobPaths(Path(spec.job_dir))
    memory = own.mem if spec.memory_gb is None else f"{round(spec.memory_gb * 1024)}M"
    minutes = None if spec.time_limit_s is None else -(-round(spec.time_limit_s) // 60)
    return BatchScript(
        name=f"job-{spec.job_id}",
        comment=comment_of(spec.tag or "-", f"job/{spec.job_id}"),
        output=_pattern(paths.log.parent, paths.log.name),
        command=wrapped,
        options={
            "partition": own.partition or config.partition,
            "account": config.account,
            "qos": own.qos or config.qos,
            "time": minutes or own.wall_time or config.time_limit,
            "nodes": 1,
            "ntasks": 1,
            "cpus-per-task": spec.cpus or own.cpus_per_task,
            "mem": memory,
            "signal": f"B:USR1@{_JOB_WARNING_S}",
            **_mail(config),
        },
        flags=["--no-requeue"],
        modules=config.modules,
        env={**config.env, **spec.env},
    )


def _mail(config: SlurmConfig) -> dict[str, str | None]:
    kinds = None if config.mail_user is None else "FAIL,REQUEUE,TIME_LIMIT"
    return {"mail-user": config.mail_user, "mail-type": kinds}


def _pattern(folder: Path, name: str) -> Path:
    """A file name with Slurm's patterns, in a folder whose own `%` are none."""
    return Path(str(folder).replace("%", "%%")) / name
