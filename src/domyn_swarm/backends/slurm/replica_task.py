"""One replica: `python -m domyn_swarm.backends.slurm.replica_task <swarm folder>` in an array task.

Starts the watchdog, inside the container where there is one. Before the time limit it drains and
goes back into the queue.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from domyn_swarm.backends.slurm.containers import inside
from domyn_swarm.backends.slurm.layout import slurm_config
from domyn_swarm.backends.slurm.task import Task, node_address, open_log, requeue
from domyn_swarm.logs import configure, get_logger
from domyn_swarm.paths import SwarmPaths
from domyn_swarm.planning.plan import DeploymentPlan

_log = get_logger(__name__)


def main(swarm_dir: str) -> int:
    """Run the replica that this array task is; return the exit code."""
    os.umask(0o077)
    configure("INFO")
    paths = SwarmPaths(Path(swarm_dir))
    plan = DeploymentPlan.model_validate_json(paths.plan.read_text())
    index = int(os.environ["SLURM_ARRAY_TASK_ID"])
    config = slurm_config(plan)
    watchdog = [str(paths.watchdog_program), str(paths.watchdog_spec(index)), node_address()]
    command = inside(config, plan.image, watchdog, paths)
    _log.info("replica %d on %s: %s", index, watchdog[-1], " ".join(command))
    task = Task()
    with open_log(paths.watchdog_log(index)) as log:
        code = task.run(command, {}, log)
    _log.info("replica %d: the watchdog ended with %d", index, code)
    if task.goes_back and config.requeue:
        requeue(f"{os.environ['SLURM_ARRAY_JOB_ID']}_{index}")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
