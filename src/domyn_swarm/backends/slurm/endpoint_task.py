"""The endpoint's job: `python -m domyn_swarm.backends.slurm.endpoint_task <swarm folder>`.

Starts router and collector at the address by which nodes reach this one, and restarts them if they
are killed. Before its time limit the job is requeued, and continues on another node under the same
swarm.
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

_JOBS_END_S = 30.0  # of the minute between warning and limit
_LOOK_S = 1.0
_BUG = 1  # exit code of a traceback
_KILLED = 128  # higher exit codes are those of signals
_RESTARTS = RestartPolicy(
    most=9, first_pause_s=1.0, longest_pause_s=60.0, progress_s=300.0
)  # ten failures in a row


def main(swarm_dir: str) -> int:
    """Run the endpoint; return the exit code."""
    begin()
    paths = SwarmPaths(Path(swarm_dir))
    plan = read_task_plan(paths)
    job = os.environ["SLURM_JOB_ID"]
    paths.endpoint_leaves.unlink(missing_ok=True)  # of the previous run, if it was in this job
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
    """Run the program until it ends, or has failed too often by a signal (perhaps for its memory)
    or a bug.
    """
    restarts = RestartBudget(_RESTARTS)
    while True:
        began = clock.monotonic()
        task.start(child)
        code = task.wait()
        restarts.ran(clock.monotonic() - began)
        died = code == _BUG or code > _KILLED
        pause_s = restarts.take() if died and not task.signalled else None
        if pause_s is None:
            return code
        _log.error("the endpoint failed (code %d); restarted in %g s", code, pause_s)
        task.rest(pause_s)
        if task.signalled:
            return code


def end_jobs(
    slurm: Scheduler,
    endpoint: str,
    paths: SwarmPaths,
    clock: Clock = time,
    *,
    cancelled: Callable[[], bool] = lambda: False,
) -> None:
    """Signal the jobs in this allocation, which end with it, early enough for their requests in
    flight to be answered; wait for them, unless the allocation is `cancelled`.
    """

    def none_left() -> bool:
        return cancelled() or not any(
            step.startswith(f"{endpoint}.") and job.comment.startswith(JOB_PREFIX)
            for step, job in slurm.steps().items()
        )

    try:
        write_private(paths.endpoint_leaves, endpoint)  # no job starts in it from now on
    except OSError as error:
        _log.warning("jobs may still begin in this allocation: %s", error)
    try:
        slurm.signal_steps(endpoint, "USR1")
        comes_true(none_left, within_s=_JOBS_END_S, every_s=_LOOK_S, clock=clock)
    except PlatformError as error:
        _log.warning(
            "jobs of this allocation could not be signalled that it ends: %s", error.message
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
