"""The endpoint: `python -m domyn_swarm.backends.slurm.endpoint_task <swarm folder>` in its job.

Starts router and collector under the address by which nodes reach this one. Before the time limit
it goes back into the queue: it comes back elsewhere, under the same swarm.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from domyn_swarm.backends.endpoint.program import ADDRESS_VARIABLE
from domyn_swarm.backends.slurm.commands import Slurm
from domyn_swarm.backends.slurm.layout import JOB_PREFIX, slurm_config
from domyn_swarm.backends.slurm.task import Child, Task, node_address, requeue
from domyn_swarm.errors import PlatformError
from domyn_swarm.logs import configure, get_logger
from domyn_swarm.paths import SwarmPaths
from domyn_swarm.planning.plan import DeploymentPlan

_log = get_logger(__name__)

_JOBS_END_S = 30.0  # of the warning's minute


def main(swarm_dir: str) -> int:
    """Run the endpoint; return the exit code."""
    os.umask(0o077)
    configure("INFO")
    paths = SwarmPaths(Path(swarm_dir))
    job = os.environ["SLURM_JOB_ID"]
    task = Task(before_end=lambda: _end_jobs(job))
    command = [sys.executable, "-m", "domyn_swarm.backends.endpoint", str(paths.root), "slurm"]
    task.start(Child(command, {ADDRESS_VARIABLE: node_address()}, sys.stderr.buffer))
    code = task.wait()
    if task.goes_back:
        _come_back(job, paths)
    return code


def _come_back(job: str, paths: SwarmPaths) -> None:
    """Another time, on whatever node: by requeueing, or where that is not wanted by a successor."""
    plan = DeploymentPlan.model_validate_json(paths.plan.read_text())
    if slurm_config(plan).requeue:
        requeue(job)
    else:
        Slurm().submit(paths.endpoint_script)


def _end_jobs(endpoint: str) -> None:
    """Tell the jobs in this allocation, which end with it, that their time is up, while what they
    have in flight can still be answered.
    """
    slurm = Slurm()
    try:
        slurm.signal_steps(endpoint, "USR1")
        deadline = time.monotonic() + _JOBS_END_S
        while time.monotonic() < deadline and any(
            step.startswith(f"{endpoint}.") and job.comment.startswith(JOB_PREFIX)
            for step, job in slurm.steps().items()
        ):
            time.sleep(1.0)
    except PlatformError as error:
        _log.warning("jobs of this allocation were not told that it ends: %s", error.message)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
