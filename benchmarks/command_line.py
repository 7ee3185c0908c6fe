"""Measures the CPU time of commands that read the state, over a home with 200 swarms.

    python benchmarks/command_line.py

Prints best and worst of five runs; nothing is asked of a platform.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from domyn_swarm import DomynLLMSwarmConfig
from domyn_swarm.model import SwarmPhase, utc_now
from domyn_swarm.state import SwarmRecord, SwarmStore
from domyn_swarm.swarm.launch import prepare

PROGRAM = Path(sys.executable).with_name("domyn-swarm")
SWARMS, RUNS = 200, 5
COMMANDS = (["--help"], ["swarm", "list", "--no-probe"], ["swarm", "list", "--no-probe", "--json"])


def fill(home: Path) -> None:
    """Record swarms of four replicas."""
    store = SwarmStore.open(home / "swarm.db")
    fields = {"name": "any", "model": "m", "engine": "sim", "backend": "local", "replicas": 4}
    plan = prepare(DomynLLMSwarmConfig.model_validate(fields)).plan
    parts = tuple({"kind": "replica", "index": one, "platform_id": str(one)} for one in range(4))
    for number in range(SWARMS):
        name = f"swarm-{number:03d}"
        store.create_swarm(
            SwarmRecord(
                name=name,
                tag=f"{name}.tag",
                backend="local",
                phase=SwarmPhase.READY,
                swarm_dir=str(home / "swarms" / name),
                plan_json=plan.model_dump_json(),
                parts=parts,
                created_at=utc_now(),
                updated_at=utc_now(),
            )
        )


def cpu_s(command: list[str], home: Path) -> float:
    """User and system time of one run."""
    child = subprocess.Popen(
        [PROGRAM, *command],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "DOMYN_SWARM_HOME": str(home)},
    )
    _, status, used = os.wait4(child.pid, 0)
    assert status == 0
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        fill(Path(folder))
        for command in COMMANDS:
            times = [cpu_s(command, Path(folder)) for _ in range(RUNS)]
            print(f"{' '.join(command)}: {min(times):.2f}-{max(times):.2f} s CPU")


if __name__ == "__main__":
    main()
