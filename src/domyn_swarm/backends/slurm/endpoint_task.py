"""The endpoint: `python -m domyn_swarm.backends.slurm.endpoint_task <swarm folder>` in its job.

Starts router and collector under the address by which nodes reach this one. Before the time limit
it goes back into the queue: it comes back elsewhere, under the same swarm.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from domyn_swarm.backends.endpoint.program import ADDRESS_VARIABLE
from domyn_swarm.backends.slurm.task import Task, node_address, requeue
from domyn_swarm.logs import configure
from domyn_swarm.paths import SwarmPaths


def main(swarm_dir: str) -> int:
    """Run the endpoint; return the exit code."""
    os.umask(0o077)
    configure("INFO")
    paths = SwarmPaths(Path(swarm_dir))
    task = Task()
    command = [sys.executable, "-m", "domyn_swarm.backends.endpoint", str(paths.root)]
    code = task.run(command, {ADDRESS_VARIABLE: node_address()}, sys.stderr.buffer)
    if task.goes_back:
        requeue(os.environ["SLURM_JOB_ID"])
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
