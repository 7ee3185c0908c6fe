"""The replicas of an array task: `python -m domyn_swarm.backends.slurm.replica_task DIR PER_TASK`.

Starts a watchdog for each replica of the task, inside the container where there is one. Before the
time limit they drain, and the task goes back into the queue.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from domyn_swarm.backends.gpus import visible_gpus
from domyn_swarm.backends.slurm.containers import inside
from domyn_swarm.backends.slurm.layout import slurm_config
from domyn_swarm.backends.slurm.task import Child, Task, node_address, open_log, requeue
from domyn_swarm.logs import configure, get_logger
from domyn_swarm.paths import SwarmPaths, write_private
from domyn_swarm.planning.plan import DeploymentPlan

_log = get_logger(__name__)


def main(swarm_dir: str, per_task: int) -> int:
    """Run the replicas of this array task; return the exit code."""
    os.umask(0o077)
    configure("INFO")
    paths = SwarmPaths(Path(swarm_dir))
    plan = DeploymentPlan.model_validate_json(paths.plan.read_text())
    group = int(os.environ["SLURM_ARRAY_TASK_ID"])
    first = group * per_task
    address = node_address()
    task = Task()
    with contextlib.ExitStack() as logs:
        for index in range(first, min(first + per_task, plan.layout.replicas)):
            log = logs.enter_context(open_log(paths.watchdog_log(index)))
            own = visible_gpus(plan.layout.gpus_per_replica, index - first) if per_task > 1 else {}
            watchdog = [str(paths.watchdog_program), str(paths.watchdog_spec(index)), address]
            command = inside(slurm_config(plan), plan.image, watchdog, paths)
            _log.info("replica %d on %s: %s", index, address, " ".join(command))
            task.start(Child(command, own, log))
        code = task.wait()
    _log.info("task %d: its watchdogs ended with %d", group, code)
    if task.goes_back:
        _come_back(f"{os.environ['SLURM_ARRAY_JOB_ID']}_{group}", group, plan, paths)
    return code


def _come_back(job: str, group: int, plan: DeploymentPlan, paths: SwarmPaths) -> None:
    """Another time: by requeueing, or where that is not wanted by a successor, for which the
    endpoint program looks.
    """
    if slurm_config(plan).requeue:
        requeue(job)
    else:
        write_private(paths.expired(group), job)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
