"""The endpoint: `python -m domyn_swarm.backends.slurm.endpoint_task <swarm folder>` in its job.

Starts router and collector under the address by which nodes reach this one, and again should they
be killed. Before the time limit it goes back into the queue: it comes back elsewhere, under the
same swarm.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from domyn_swarm.backends.endpoint.address import ADDRESS_VARIABLE
from domyn_swarm.backends.slurm.commands import Slurm
from domyn_swarm.backends.slurm.ending import Scheduler
from domyn_swarm.backends.slurm.node_address import node_address
from domyn_swarm.backends.slurm.queue import JOB_PREFIX
from domyn_swarm.backends.slurm.task import Child, Task, begin, come_back
from domyn_swarm.backends.slurm.task_plan import read_task_plan
from domyn_swarm.errors import PlatformError
from domyn_swarm.logs import get_logger
from domyn_swarm.paths import SwarmPaths, write_private
from domyn_swarm.probing import Clock, comes_true
from domyn_swarm.restart_budget import RestartBudget, RestartPolicy

_log = get_logger(__name__)

_JOBS_END_S = 30.0  # of the warning's minute
_LOOK_S = 1.0
_BUG = 1  # the exit code of a traceback
_KILLED = 128  # exit codes above it are those of signals
_RESTARTS = RestartPolicy(
    most=9, first_pause_s=1.0, longest_pause_s=60.0, progress_s=300.0
)  # ten deaths in a row


def main(swarm_dir: str) -> int:
    """Run the endpoint; return the exit code."""
    begin()
    paths = SwarmPaths(Path(swarm_dir))
    plan = read_task_plan(paths)
    job = os.environ["SLURM_JOB_ID"]
    paths.endpoint_leaves.unlink(missing_ok=True)  # of its run before, if that was in this job
    task: Task = Task(lambda: end_jobs(Slurm(), job, paths, cancelled=lambda: task.cancelled))
    command = [sys.executable, "-m", "domyn_swarm.backends.endpoint", str(paths.root), "slurm"]
    child = Child(command, {ADDRESS_VARIABLE: node_address()}, sys.stderr.buffer)
    code = keep_running(task, child)
    come_back(
        task,
        job,
        by_requeue=plan.requeue,
        successor=lambda: _log.info("the successor is %s", Slurm().submit(paths.endpoint_script)),
    )
    return code


def keep_running(task: Task, child: Child, clock: Clock = time) -> int:
    """Run the program until it ends, or died too often of a signal (perhaps for its memory) or of
    a bug.
    """
    restarts = RestartBudget(_RESTARTS)
    while True:
        began = clock.monotonic()
        task.start(child)
        code = task.wait()
        restarts.ran(clock.monotonic() - began)
        died = code == _BUG or code > _KILLED
        pause_s = restarts.take() if died and not task.told else None
        if pause_s is None:
            return code
        _log.error("the endpoint died (code %d); again in %g s", code, pause_s)
        task.rest(pause_s)
        if task.told:
            return code


def end_jobs(
    slurm: Scheduler,
    endpoint: str,
    paths: SwarmPaths,
    clock: Clock = time,
    *,
    cancelled: Callable[[], bool] = lambda: False,
) -> None:
    """Tell the jobs in this allocation, which end with it, that their time is up, while what they
    have in flight can still be answered; wait for them, unless the allocation is `cancelled`.
    """

    def none_left() -> bool:
        return cancelled() or not any(
            step.startswith(f"{endpoint}.") and job.comment.startswith(JOB_PREFIX)
            for step, job in slurm.steps().items()
        )

    try:
        write_private(paths.endpoint_leaves, endpoint)  # from now on none begins
    except OSError as error:
        _log.warning("jobs may still begin in this allocation: %s", error)
    try:
        slurm.signal_steps(endpoint, "USR1")
        comes_true(none_left, within_s=_JOBS_END_S, every_s=_LOOK_S, clock=clock)
    except PlatformError as error:
        _log.warning("jobs of this allocation were not told that it ends: %s", error.message)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
