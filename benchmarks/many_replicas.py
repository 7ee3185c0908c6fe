"""Measures `status` of a swarm with 64 replicas: simulators, each with its watchdog, all reporting.

    python benchmarks/many_replicas.py

Takes 5 GB of memory and minutes to start on two cores. Prints the wall time of five runs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from domyn_swarm import DomynLLMSwarm, DomynLLMSwarmConfig

PROGRAM = Path(sys.executable).with_name("domyn-swarm")
REPLICAS, RUNS = 64, 5


def status_s(name: str) -> float:
    """The wall time of one `status`."""
    began = time.monotonic()
    subprocess.run([PROGRAM, "status", name, "--json"], stdout=subprocess.DEVNULL, check=True)
    return time.monotonic() - began


def main() -> None:
    """Bring the swarm up, measure, print."""
    with tempfile.TemporaryDirectory() as home:
        os.environ["DOMYN_SWARM_HOME"] = home
        fields = {
            "name": "many",
            "model": "m",
            "engine": "sim",
            "backend": "local",
            "replicas": REPLICAS,
            "min_ready": REPLICAS,
        }
        with DomynLLMSwarm(cfg=DomynLLMSwarmConfig.model_validate(fields)) as swarm:
            assert swarm.snapshot().replicas_ready == REPLICAS
            times = [status_s(swarm.name) for _ in range(RUNS)]
    print(f"status of {REPLICAS} replicas: {min(times):.2f}-{max(times):.2f} s")


if __name__ == "__main__":
    main()
