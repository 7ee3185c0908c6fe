"""Driving the installed command in tests."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

import warm
from patience import limit_s, until
from process_list import running, words_of

PROGRAM = str(Path(sys.executable).with_name("domyn-swarm"))
ENTRY = "domyn_swarm.cli.app:main"  # as the installed script has it


@dataclass(frozen=True)
class CommandLine:
    """`domyn-swarm` with one home: that of the environment which runs the tests, or another."""

    home: Path
    program: str = PROGRAM

    @property
    def environment(self) -> dict[str, str]:
        """What its processes are given."""
        return {**os.environ, "DOMYN_SWARM_HOME": str(self.home)}

    def __call__(self, *args: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run to the end; ours is forked from a process that has imported it."""
        if self.program != PROGRAM:
            return self.installed(*args, stdin=stdin)
        return warm.run(ENTRY, [*map(str, args)], self.environment, stdin)

    def installed(self, *args: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """The same through the installed script, from the start of Python on."""
        return subprocess.run(
            [self.program, *map(str, args)],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=limit_s(),
            check=False,
            env=self.environment,
        )

    def ok(self, *args: object, **options: Any) -> str:
        """Run to the end, which must be 0; its stdout."""
        done = self(*args, **options)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def json(self, *args: object) -> Any:
        """What it prints with `--json`."""
        return json.loads(self.ok(*args, "--json"))

    def start(self, *args: object) -> subprocess.Popen[str]:
        """Run in the background."""
        return subprocess.Popen(
            [self.program, *map(str, args)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment,
        )

    def processes(self) -> list[psutil.Process]:
        """Everything alive that has this home in its arguments or its environment."""
        mark = str(self.home)
        return [one for one in running() if _mentions(one, mark)]

    def clean_up(self) -> None:
        """Stop everything; what is left then fails the test, and is killed."""
        done = self("down", "--all", "-y")
        left = self.processes()
        names = [" ".join(words_of(one))[:200] for one in left]
        for one in left:
            one.send_signal(signal.SIGKILL)
        assert done.returncode == 0, done.stderr
        assert names == []


def _mentions(process: psutil.Process, mark: str) -> bool:
    if process.pid == os.getpid():
        return False
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        words = [*process.cmdline(), *process.environ().values()]
    except psutil.Error:
        return False
    return any(mark in word for word in words)


@dataclass(frozen=True)
class SimConfig:
    """A config file for the simulator, and the file in which it writes down what it was asked."""

    path: Path
    record: Path

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Jobs whose topic begins with `held` get ten answers and no more: whatever the machine's
        speed, they are under way, and do not end. Ten, if fewer are in flight than there are slots.
        """
        file = self.record.with_name("hold")
        file.touch()
        try:
            yield
        finally:
            file.unlink()

    def asked(self, topic: str = "") -> list[str]:
        """The text of every request about a topic that reached an engine, in no order."""
        if not self.record.exists():
            return []
        lines = self.record.read_text(encoding="utf-8").splitlines()
        prompts = [str(json.loads(line)["prompt"]) for line in lines]
        return [prompt for prompt in prompts if prompt.startswith(topic)]


def write_sim_config(
    folder: Path, name: str | None = "demo", *, replicas: int = 1, latency_s: float = 0.0
) -> SimConfig:
    """A config of simulated replicas; the configs of one folder share one record."""
    record = folder / "asked.jsonl"
    path = folder / f"{name or 'unnamed'}.yaml"
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
        "  errors:",
        "  - {match: '^refused( here)?: question number 1$', status: 400}",
        f"  - {{match: '^held .*: question number [0-9]{{2,}}$', held_by: {folder / 'hold'}}}",
        "watchdog: {probe_interval: 1}",
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return SimConfig(path, record)


@dataclass(frozen=True)
class Job:
    """A job of so many rows about a topic that no other test asks about."""

    topic: str
    source: Path
    target: Path
    count: int

    def submission(self, *more: str) -> list[str]:
        """The arguments that submit it."""
        return [
            *("job", "submit", "--input", str(self.source), "--output", str(self.target)),
            *("--input-column", "prompt", *more),
        ]

    def assert_complete(self) -> None:
        """Every row once, in input order, answered."""
        answers = pq.read_table(self.target).to_pylist()
        assert [row["id"] for row in answers] == [f"row-{number}" for number in range(self.count)]
        assert all(row["result"].strip() for row in answers)


def write_job(folder: Path, topic: str, count: int) -> Job:
    """Write the job's input: columns `id` and `prompt`."""
    source = folder / f"{topic}.parquet"
    table = pa.table(
        {
            "id": [f"row-{number}" for number in range(count)],
            "prompt": [f"{topic}: question number {number}" for number in range(count)],
        }
    )
    pq.write_table(table, source)
    return Job(topic, source, folder / f"{topic}-out.parquet", count)


def rows_done(handle: dict[str, Any]) -> int:
    """How many rows of a job are settled, as its worker wrote it down."""
    progress = Path(handle["job_dir"]) / "progress.json"
    return int(json.loads(progress.read_text())["rows_done"]) if progress.exists() else 0


def worker_of(handle: dict[str, Any]) -> psutil.Process:
    """The process that does a job's work (not the wrapper that records how it ends)."""

    def found() -> psutil.Process | None:
        for one in running():
            try:
                words = one.cmdline()
            except psutil.Error:
                continue
            if "domyn_swarm.backends.exit_wrapper" in words and handle["job_dir"] in words:
                return next(iter(one.children()), None)  # none: it is about to start it
        return None

    return until(found)
