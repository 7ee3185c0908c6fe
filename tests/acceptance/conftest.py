"""A command line that cleans up behind itself, configs for the simulator, inputs."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from command_line import CommandLine, SimConfig


@pytest.fixture
def swarm(swarm_home: Path) -> Iterator[CommandLine]:
    """The command line; afterwards everything is down, and nothing of it runs."""
    cli = CommandLine(swarm_home)
    yield cli
    done = cli("down", "--all", "-y")
    left = cli.processes()
    names = [" ".join(one.cmdline())[:200] for one in left if one.is_running()]
    for one in left:
        one.send_signal(signal.SIGKILL)
    assert done.returncode == 0, done.stderr
    assert names == []


@pytest.fixture
def sim_config(tmp_path: Path) -> Callable[..., SimConfig]:
    """Write a config: `sim_config("demo", replicas=2, latency_s=0.05)`."""

    def write(name: str | None = "demo", *, replicas: int = 1, latency_s: float = 0.0) -> SimConfig:
        record = tmp_path / "asked.jsonl"
        path = tmp_path / f"{name or 'unnamed'}.yaml"
        lines = [
            *([f"name: {name}"] if name else []),
            "model: sim-model",
            "engine: sim",
            f"replicas: {replicas}",
            "backend: local",
            "engine_options:",
            f"  latency_s: {latency_s}",
            "  slots: 8",
            f"  record: {record}",
            "watchdog: {probe_interval: 1}",
        ]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return SimConfig(path, record)

    return write


@pytest.fixture
def rows(tmp_path: Path) -> Callable[[int], Path]:
    """Write an input of so many rows: `id` and `prompt`."""

    def write(count: int) -> Path:
        path = tmp_path / f"in-{count}.parquet"
        table = pa.table(
            {
                "id": [f"row-{number}" for number in range(count)],
                "prompt": [f"question number {number}" for number in range(count)],
            }
        )
        pq.write_table(table, path)
        return path

    return write
