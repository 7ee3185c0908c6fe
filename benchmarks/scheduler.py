"""Measures launching, ending and asking on a real Slurm cluster on this machine.

    python benchmarks/scheduler.py [--write]

The cluster is the test-suite's (`tests/slurm/cluster.py`), the engine the simulator: measured
is everything but loading a model. `--write` appends the table to `RESULTS.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

from domyn_swarm import DomynLLMSwarmConfig  # noqa: E402 - after the path is set
from domyn_swarm.services.swarms import SwarmService  # noqa: E402
from domyn_swarm.state import SwarmStore  # noqa: E402
from domyn_swarm.swarm.launch import prepare  # noqa: E402
from domyn_swarm.swarm.lifecycle import SwarmLifecycle  # noqa: E402
from slurm.cluster import SlurmCluster  # noqa: E402 - the test-suite's

COUNTER = """#!/bin/sh
echo {name} >> {record}
exec {program} "$@"
"""
ASKING = ("squeue", "sacct", "scontrol", "sbatch", "scancel", "srun")


def config(name: str, replicas: int, **keys: object) -> DomynLLMSwarmConfig:
    """A swarm of simulators."""
    fields = {
        "name": name,
        "model": "m",
        "engine": "sim",
        "replicas": replicas,
        "gpus_per_replica": 1,
        "watchdog": {"kill_grace_seconds": 3},
        "backend": {
            "type": "slurm",
            "partition": "main",
            "container": "none",
            "endpoint": {"mem": "500M", "cpus_per_task": 1},
        },
        **keys,
    }
    return DomynLLMSwarmConfig.model_validate(fields)


class Counted:
    """How often Slurm's commands were run."""

    def __init__(self, folder: Path) -> None:
        self._record = folder / "asked"
        self._record.touch()
        for name in ASKING:
            script = folder / name
            program = shutil.which(name)
            script.write_text(COUNTER.format(name=name, record=self._record, program=program))
            script.chmod(0o755)
        os.environ["PATH"] = f"{folder}:{os.environ['PATH']}"

    def count(self) -> int:
        """Since the beginning."""
        return len(self._record.read_text().splitlines())


@contextmanager
def cluster() -> Iterator[tuple[SlurmCluster, float]]:
    """A running cluster, and the seconds that its start took."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    made = SlurmCluster(folder, cpus=128, memory_mb=256_000)
    try:
        began = time.monotonic()
        made.start()
        took_s = time.monotonic() - began
        os.environ.update({name: made.env[name] for name in ("SLURM_CONF", "HWLOC_COMPONENTS")})
        os.environ["PATH"] = made.env["PATH"]
        os.environ["DOMYN_SWARM_HOME"] = str(folder / "home")
        yield made, took_s
    finally:
        made.stop()
        shutil.rmtree(folder, ignore_errors=True)


def ask(name: str) -> None:
    """One request through the endpoint."""
    info = SwarmService().endpoint(name)
    key = info.key_file.read_text().strip()
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    url = f"{info.url}/v1/chat/completions"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as reply:
        reply.read()


def until(condition: Callable[[], bool]) -> None:
    """Wait, looking ten times a second."""
    while not condition():
        time.sleep(0.1)


def launches(replicas: int, times: int) -> dict[str, float]:
    """Medians: seconds from `up` to the first served request, to all replicas, and of `down`."""
    first, every, down = [], [], []
    for number in range(times):
        name = f"run-{replicas}-{number}"
        lifecycle = SwarmLifecycle(SwarmStore.open())
        began = time.monotonic()
        lifecycle.up(prepare(config(name, replicas)), timeout_s=120)
        ask(name)
        first.append(time.monotonic() - began)
        until(lambda name=name: SwarmService().status(name).replicas_ready == replicas)  # type: ignore[misc]
        every.append(time.monotonic() - began)
        began = time.monotonic()
        lifecycle.down(name)
        down.append(time.monotonic() - began)
    found = {"first": first, "every": every, "down": down}
    return {name: statistics.median(values) for name, values in found.items()}


def polls(swarms: int, minutes: float) -> tuple[float, float]:
    """How often a minute one process asks Slurm that lists that many swarms every two seconds; and
    the seconds that one such list takes (median).
    """
    lifecycle = SwarmLifecycle(SwarmStore.open())
    for number in range(swarms):  # they wait in the queue: nothing else is measured
        made = config(f"queued-{number}", 1, gpus_per_replica=4)
        lifecycle.up(prepare(made), wait=False)
    counted = Counted(Path(os.environ["DOMYN_SWARM_HOME"]))
    service, took = SwarmService(), []
    service.list()
    before, ends = counted.count(), time.monotonic() + 60 * minutes
    while time.monotonic() < ends:
        began = time.monotonic()
        assert len(service.list()) == swarms
        took.append(time.monotonic() - began)
        time.sleep(2)
    asked = (counted.count() - before) / minutes
    return asked, statistics.median(took)


def table(lines: list[tuple[str, str]]) -> str:
    """Markdown."""
    rows = [f"| {what} | {figure} |" for what, figure in lines]
    return "\n".join(["| what | figure |", "|---|---|", *rows])


def main() -> None:
    """Measure, print, and with `--write` append."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--swarms", type=int, default=100)
    flags = parser.parse_args()
    with cluster() as (made, start_s):
        lines = [("cluster start, four nodes idle", f"{start_s:.1f} s")]
        for replicas in (1, 8):
            found = launches(replicas, 3)
            what = f"{replicas} replica{'s' if replicas > 1 else ''}"
            lines.append((f"`up` to the first served request, {what}", f"{found['first']:.1f} s"))
            lines.append((f"`up` to all replicas, {what}", f"{found['every']:.1f} s"))
            lines.append((f"`down`, {what}", f"{found['down']:.1f} s"))
        whole = ["--nodes=4", "--exclusive", "--time=60", "--output=/dev/null"]
        made.run("sbatch", *whole, "--wrap=sleep 3600")  # from now on all wait
        asked, took_s = polls(flags.swarms, 2.0)
        what = f"one process that lists {flags.swarms} swarms every two seconds"
        lines.append((f"commands of Slurm a minute, {what}", f"{asked:.1f}"))
        lines.append(("one such list", f"{took_s:.2f} s"))
    text = table(lines)
    print(text)
    if flags.write:
        today = datetime.now(UTC).date()
        title = f"\n## Slurm, {today}\n\n{os.cpu_count()} CPUs, {platform.machine()}; "
        title += "`python benchmarks/scheduler.py --write`, medians of three.\n\n"
        with (HERE / "RESULTS.md").open("a") as file:
            file.write(title + text + "\n")


if __name__ == "__main__":
    main()
