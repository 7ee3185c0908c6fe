"""Builds and runs `mock_server.c`, makes inputs, and measures child processes."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
_INPUT_PROGRAM = """
import sys
import pyarrow as pa, pyarrow.parquet as pq
path, rows, width, group = sys.argv[1], *map(int, sys.argv[2:])
schema = pa.schema([("prompt", pa.string())])
with pq.ParquetWriter(path, schema) as writer:
    for start in range(0, rows, group):
        numbers = range(start, min(start + group, rows))
        column = [f"row={number}; " + "y" * width for number in numbers]
        writer.write_table(pa.table({"prompt": column}, schema=schema))
"""


@dataclass(frozen=True)
class Measured:
    """What one child process cost."""

    wall_s: float
    cpu_s: float
    peak_mb: float
    code: int


@dataclass(frozen=True)
class Mock:
    """A running mock server."""

    port: int

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def stats(self) -> dict[str, float]:
        """Requests, rows asked more than once, how busy the slots were; see `mock_server.c`."""
        with urllib.request.urlopen(f"{self.url}/stats") as reply:
            return dict(json.load(reply))


def build(folder: Path) -> Path:
    """Compile the mock server into `folder`."""
    program = folder / "mock_server"
    source = HERE / "mock_server.c"
    subprocess.run(["cc", "-O2", "-o", str(program), str(source), "-lm"], check=True)
    return program


@contextlib.contextmanager
def serving(
    program: Path, *, latency_ms: float = 0.0, sigma: float = 0.0, slots: int = 0
) -> Iterator[Mock]:
    """A mock server for the duration of the block."""
    words = [str(program), "0", str(latency_ms), str(sigma), str(slots)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdin is not None
        yield Mock(int(child.stdout.readline()))
        child.stdin.close()


def write_input(path: Path, rows: int, width: int = 590, *, group_rows: int = 50_000) -> None:
    """Prompts of about 600 characters, written in another process: its memory is not ours."""
    words = [str(path), str(rows), str(width), str(group_rows)]
    subprocess.run([sys.executable, "-c", _INPUT_PROGRAM, *words], check=True)


def measure(command: Sequence[str], **options: object) -> Measured:
    """Run a command to its end; CPU is user and system, its own children included."""
    began = time.monotonic()
    child = subprocess.Popen(command, **options)  # type: ignore[call-overload]
    peak_mb = 0.0
    while True:
        pid, status, used = os.wait4(child.pid, os.WNOHANG)
        if pid:
            break
        with contextlib.suppress(OSError, StopIteration):
            text = Path(f"/proc/{child.pid}/status").read_text()
            line = next(one for one in text.splitlines() if one.startswith("VmHWM"))
            peak_mb = int(line.split()[1]) / 1024
        time.sleep(0.01)
    child.returncode = os.waitstatus_to_exitcode(status)
    wall_s = time.monotonic() - began
    return Measured(wall_s, used.ru_utime + used.ru_stime, peak_mb, child.returncode)


def write_job(folder: Path, mock: Mock, **changes: object) -> Path:
    """A job folder for the worker over `folder/in.parquet`."""
    spec = {
        "job_id": "bench",
        "name": "bench",
        "job": "domyn_swarm.jobs:ChatCompletionJob",
        "model": "mock",
        "endpoint_url": mock.url,
        "input": str(folder / "in.parquet"),
        "output": str(folder / "out.parquet"),
        "input_columns": ["prompt"],
        "checkpoint_root": str(folder / "checkpoints"),
        "min_version": "0.0.0",
        **changes,
    }
    job = folder / "job"
    job.mkdir(exist_ok=True)
    (job / "job.json").write_text(json.dumps(spec))
    return job


def run_worker(job: Path) -> Measured:
    """One run of the worker program over a job folder."""
    command = [sys.executable, "-m", "domyn_swarm.jobs.worker", str(job)]
    measured = measure(command, stderr=subprocess.DEVNULL)
    assert measured.code == 0, (job / "result.json").read_text()
    return measured


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder that goes away."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        yield Path(folder)
