"""Another node of a replica that spans several, started by `srun` from the first one.

`python -m domyn_swarm.backends.slurm.node_task SWARM_DIR REPLICA HEAD PORT`: keeps the engine's
part of this node running, inside the container if there is one.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from domyn_swarm.backends.slurm.containers import LIFELINE, inside, loses_signals
from domyn_swarm.backends.slurm.task import Child, Task, begin, open_log
from domyn_swarm.backends.slurm.task_plan import read_task_plan
from domyn_swarm.paths import SwarmPaths


def main(swarm_dir: str, replica: int, head: str, port: str) -> int:
    """Run until the first node ends the step; return the exit code."""
    begin()
    paths = SwarmPaths(Path(swarm_dir))
    plan = read_task_plan(paths)
    rank = int(os.environ["SLURM_PROCID"]) + 1
    lifeline = loses_signals(plan)
    program = [str(paths.follower_program), str(paths.follower_spec), head, port, str(rank)]
    program += [LIFELINE] if lifeline else []
    task = Task()
    with open_log(paths.node_log(replica, rank)) as log:
        task.start(Child(inside(plan, program, paths), {}, log, lifeline=lifeline))
        return task.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:5]))
