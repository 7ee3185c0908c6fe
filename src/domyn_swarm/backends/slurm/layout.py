"""Derives the scripts of a swarm's jobs from its plan. Pure: runs no command and writes no file."""

from __future__ import annotations

import math
import sys
from pathlib import Path

from domyn_swarm.backends.job_end import exit_wrapper
from domyn_swarm.backends.protocols import ComputeSpec
from domyn_swarm.backends.rehearsal import PROGRAM
from domyn_swarm.backends.slurm.containers import IMAGE_PYTHON
from domyn_swarm.backends.slurm.job_task import JobTask
from domyn_swarm.backends.slurm.queue import (
    comment_of,
    endpoint_name,
    job_name,
    own_job_name,
    replicas_name,
)
from domyn_swarm.backends.slurm.scripts import BatchScript
from domyn_swarm.config.backends import SlurmConfig
from domyn_swarm.config.preamble import asks_for_gpus, without_gpus
from domyn_swarm.config.units import time_limit_s
from domyn_swarm.paths import JobPaths, SwarmPaths
from domyn_swarm.planning.plan import DeploymentContext, DeploymentPlan

_ENDPOINT_WARNING_S = 60  # seconds before its time limit at which the endpoint is requeued
REHEARSAL = "domyn-swarm-rehearsal"
REHEARSAL_COMMENT = comment_of("-", "rehearsal")
_REHEARSAL_MINUTES = 2
_STEP_WARNING_S = 40  # of the minute before an endpoint's limit; see `endpoint_task.end_jobs`
_JOB_WARNING_S = 120  # and a job is signalled to finish; short ones later
_SERVING_MAIL = "FAIL,REQUEUE,TIME_LIMIT"
# mail about each task, not about the array as a whole
_REPLICA_MAIL = f"{_SERVING_MAIL},ARRAY_TASKS"


def slurm_config(plan: DeploymentPlan) -> SlurmConfig:
    """The backend section that the plan was made from."""
    return SlurmConfig.model_validate(plan.backend_options)


def interpreter(config: SlurmConfig, submitting: str) -> str:
    """The Python that runs our programs on the nodes."""
    return submitting if config.venv_path is None else str(Path(config.venv_path) / "bin/python")


def container_program(config: SlurmConfig) -> str | None:
    """The program that runs the image; None: the engine is installed on the node."""
    return None if config.container in (None, "none") else config.container


def engine_python(config: SlurmConfig, submitting: str) -> str:
    """The Python that runs engines: the image's, or that of our programs."""
    return IMAGE_PYTHON if container_program(config) else interpreter(config, submitting)


def replicas_per_task(plan: DeploymentPlan, *, whole_nodes: bool) -> int:
    """How many replicas share a task of the array: one, because Slurm then packs nodes best; or as
    many as fit a node, if only whole nodes are given or wanted.
    """
    layout, packing = plan.layout, slurm_config(plan).packing
    packed = packing == "node" or (packing == "auto" and (whole_nodes or _bound_by_nobody(plan)))
    if not packed or layout.nodes_per_replica > 1 or layout.gpus_per_replica == 0:
        return 1
    return layout.gpus_per_node // layout.gpus_per_replica


def _bound_by_nobody(plan: DeploymentPlan) -> bool:
    """Whether Slurm binds no GPUs to a task, so that one task must have all GPUs of a node."""
    config = slurm_config(plan)
    unasked = config.gres == "none" and not any(map(asks_for_gpus, config.preamble))
    return unasked and plan.layout.gpus_per_replica > 0


def drain_window_s(config: SlurmConfig, limit_s: float) -> int:
    """Seconds before the end of its time at which a replica stops accepting requests; 0: it has no
    limit.
    """
    return config.drain_before_end_s if limit_s != math.inf else 0


def job_warning_s(limit_s: float) -> int | None:
    """Seconds before the end of its time at which a job is signalled to finish; None: it has no
    limit.
    """
    return None if limit_s == math.inf else min(_JOB_WARNING_S, round(limit_s / 4))


def replica_script(
    plan: DeploymentPlan, ctx: DeploymentContext, paths: SwarmPaths, per_task: int
) -> BatchScript:
    """The array; its tasks are scheduled one by one."""
    config, layout = slurm_config(plan), plan.layout
    tasks = math.ceil(layout.replicas / per_task)
    python = interpreter(config, ctx.interpreter)
    warned = drain_window_s(config, time_limit_s(config.longest_limit))
    return BatchScript(
        name=replicas_name(ctx.tag, per_task),
        comment=_comment(config, ctx.tag, f"replica/{per_task}"),
        output=_pattern(paths.slurm_logs, "replica-%a.log"),
        command=[
            *(python, "-m", "domyn_swarm.backends.slurm.replica_task"),
            *(str(paths.root), str(per_task)),
        ],
        options={
            "array": f"0-{tasks - 1}",
            "partition": config.partition,
            "account": config.account,
            "qos": config.qos,
            "time": config.longest_limit,
            "time-min": config.shortest_limit,
            "nodelist": config.node_list,
            "exclude": config.exclude_nodes,
            "nodes": layout.nodes_per_replica,
            "ntasks-per-node": 1,
            **_replica_size(plan, per_task),
            "signal": f"B:USR1@{warned}" if warned else None,
            **_mail(config.mail_user, _REPLICA_MAIL),
        },
        flags=[*(["--exclusive"] if _whole_nodes(plan, per_task) else []), _requeue(config)],
        preamble=config.preamble,
        modules=config.modules,
        foreign=_foreign(config),
        env={**config.env, **ctx.shared_env},
    )


def _whole_nodes(plan: DeploymentPlan, per_task: int) -> bool:
    """Whether a task has its nodes for itself."""
    alone = slurm_config(plan).packing != "replica" and _bound_by_nobody(plan)
    return per_task > 1 or alone


def _replica_size(plan: DeploymentPlan, per_task: int) -> dict[str, str | int | None]:
    """What one node gives a task: its share, or everything."""
    layout, resources, config = plan.layout, plan.resources, slurm_config(plan)
    if per_task > 1:
        return {"mem": config.mem, "gres": _gres(config, layout.gpus_per_node)}
    memory_gb = resources.memory_gb
    return {
        "cpus-per-task": resources.cpus,
        "mem": None if memory_gb is None else f"{round(memory_gb * 1024)}M",
        "gres": _gres(config, layout.tensor_parallel) if resources.gpus else None,
    }


def _gres(config: SlurmConfig, gpus: int) -> str | None:
    """The value of `--gres` for so many GPUs, in the site's form; None: the option is left out."""
    return None if config.gres == "none" else config.gres.replace("{n}", str(gpus))


def _requeue(config: SlurmConfig) -> str:
    return "--requeue" if config.requeue else "--no-requeue"


def endpoint_script(plan: DeploymentPlan, ctx: DeploymentContext, paths: SwarmPaths) -> BatchScript:
    """The small job that runs router and collector; it needs no GPU."""
    config = slurm_config(plan)
    own = config.endpoint
    wall_time = own.wall_time or config.longest_limit
    limited = time_limit_s(wall_time) != math.inf
    return BatchScript(
        name=endpoint_name(ctx.tag),
        comment=_comment(config, ctx.tag, "endpoint"),
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
            "time-min": None if own.wall_time else config.shortest_limit,
            "nodes": 1,
            "ntasks": 1,
            "cpus-per-task": own.cpus_per_task,
            "mem": own.mem,
            "signal": f"B:USR1@{_ENDPOINT_WARNING_S}" if limited else None,
            **_mail(config.mail_user, _SERVING_MAIL),
        },
        flags=[_requeue(config)],
        preamble=_preamble(config),
        modules=config.modules,
        foreign=_foreign(config),
        env={**config.env, **ctx.shared_env},
    )


def step_script(spec: ComputeSpec) -> BatchScript:
    """The script of a job that shares the endpoint's allocation: an environment, then its
    program.
    """
    config = SlurmConfig.model_validate(spec.platform_options)
    return BatchScript(
        name=job_name(spec.job_id),
        comment="",
        output=JobPaths(Path(spec.job_dir)).log,
        command=_going_on(config, spec, _STEP_WARNING_S, step=True)
        if spec.continues
        else _wrapped(config, spec),
        modules=config.modules,
        foreign=_foreign(config, of_job=True),
        env={**config.env, **spec.env},
    )


def _wrapped(config: SlurmConfig, spec: ComputeSpec) -> list[str]:
    """The job's program under the exit wrapper, run by the nodes' interpreter."""
    python, program = _on_nodes(config, spec)
    return exit_wrapper(python, spec, program)


def _going_on(
    config: SlurmConfig, spec: ComputeSpec, warned_s: float | None, *, step: bool = False
) -> list[str]:
    """The program of a job that is run again until its rows are settled."""
    python, program = _on_nodes(config, spec)
    task = JobTask(
        job_dir=spec.job_dir,
        cwd=spec.cwd,
        requeue=config.requeue and not step,
        step=step,
        warned_s=warned_s or 0.0,
        limit_s=spec.resources.time_limit_s or 0.0,
        stop_after_s=spec.resources.stop_after_s,
    )
    return task.argv(python, program)


def _on_nodes(config: SlurmConfig, spec: ComputeSpec) -> tuple[str, list[str]]:
    """The nodes' interpreter, and the job's program with it."""
    python = interpreter(config, sys.executable)
    program = python if spec.argv[0] == sys.executable else spec.argv[0]
    return python, [program, *spec.argv[1:]]


def job_script(spec: ComputeSpec) -> BatchScript:
    """A job with its own allocation, which survives a logout and needs no GPU."""
    config = SlurmConfig.model_validate(spec.platform_options)
    own, paths = config.endpoint, JobPaths(Path(spec.job_dir))
    asked = spec.resources
    memory = own.mem if asked.memory_gb is None else f"{round(asked.memory_gb * 1024)}M"
    time, time_min = own.wall_time or config.longest_limit, config.shortest_limit
    if asked.time_limit_s is not None:
        time = str(math.ceil(asked.time_limit_s / 60))
    if asked.time_limit_s is not None or own.wall_time:
        time_min = None
    limit_s = time_limit_s(time_min or time)
    warned_s = job_warning_s(limit_s)
    command = _going_on(config, spec, warned_s) if spec.continues else _wrapped(config, spec)
    return BatchScript(
        name=own_job_name(spec.job_id, spec.tag),
        comment=_comment(config, spec.tag or "-", f"job/{spec.job_id}"),
        output=_pattern(paths.log.parent, paths.log.name),
        command=command,
        options={
            "partition": own.partition or config.partition,
            "account": config.account,
            "qos": own.qos or config.qos,
            "time": time,
            "time-min": time_min,
            "nodes": 1,
            "ntasks": 1,
            "cpus-per-task": asked.cpus or own.cpus_per_task,
            "mem": memory,
            "signal": None if warned_s is None else f"B:USR1@{warned_s}",
            **_mail(asked.mail_user or config.mail_user, "END,FAIL,TIME_LIMIT"),
        },
        flags=[_requeue(config) if spec.continues else "--no-requeue"],
        preamble=_preamble(config),
        modules=config.modules,
        foreign=_foreign(config, of_job=True),
        env={**config.env, **spec.env},
    )


def _foreign(config: SlurmConfig, *, of_job: bool = False) -> tuple[str, ...]:
    """Variables of the shell and of modules that must not reach the Python of `venv_path`. A job's
    own code may be on PYTHONPATH.
    """
    if config.venv_path is None:
        return ()
    return ("PYTHONHOME", "PYTHONUSERBASE", *(() if of_job else ("PYTHONPATH",)))


def _comment(config: SlurmConfig, tag: str, what: str) -> str:
    ours = comment_of(tag, what)
    return ours if config.comment is None else f"{ours} {config.comment}"


def rehearsal_nodes(plan: DeploymentPlan) -> int:
    """On how many nodes it is rehearsed: two show whether those of a replica reach each other."""
    return min(2, plan.layout.nodes_per_replica)


def rehearsal_script(
    plan: DeploymentPlan, ctx: DeploymentContext, folder: Path, *, gpus: bool
) -> BatchScript:
    """A job with the replicas' resources, but a smaller size and time, that runs `node_report` in a
    folder. `gpus`: whether it also has a replica's GPUs.
    """
    config = slurm_config(plan)
    with_gpus = gpus and bool(plan.resources.gpus)
    return BatchScript(
        name=REHEARSAL,
        comment=_comment(config, "-", "rehearsal"),
        output=_pattern(folder, "log"),
        command=[interpreter(config, ctx.interpreter), str(folder / PROGRAM), str(folder)],
        options={
            "partition": config.partition,
            "account": config.account,
            "qos": config.qos,
            "time": _REHEARSAL_MINUTES,
            "nodelist": config.node_list,
            "exclude": config.exclude_nodes,
            "nodes": rehearsal_nodes(plan),
            "ntasks-per-node": 1,
            "cpus-per-task": 1,
            "mem": config.endpoint.mem,
            "gres": _gres(config, plan.layout.tensor_parallel) if with_gpus else None,
        },
        flags=["--no-requeue"],
        preamble=config.preamble if with_gpus else without_gpus(config.preamble),
        modules=config.modules,
        foreign=_foreign(config),
        env={**config.env, **ctx.shared_env},
    )


def _preamble(config: SlurmConfig) -> tuple[str, ...]:
    """The site's preamble for the replicas' partition, for other jobs that run there without
    a GPU.
    """
    if config.endpoint.partition is not None:
        return ()
    return without_gpus(config.preamble)


def _mail(user: str | None, kinds: str) -> dict[str, str | None]:
    return {"mail-user": user, "mail-type": None if user is None else kinds}


def _pattern(folder: Path, name: str) -> Path:
    """A file name with Slurm's patterns, in a folder whose own `%` are escaped."""
    return Path(str(folder).replace("%", "%%")) / name
