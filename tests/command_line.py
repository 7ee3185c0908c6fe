"""Driving the installed command in tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

PROGRAM = str(Path(sys.executable).with_name("domyn-swarm"))


def wait_for(what: Callable[[], Any], *, timeout_s: float = 60.0) -> Any:
    """Poll until `what` gives something true, and return it."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.05)
    raise AssertionError(f"not seen within {timeout_s} s")


@dataclass(frozen=True)
class CommandLine:
    """`domyn-swarm` with one home."""

    home: Path

    def __call__(
        self, *args: object, stdin: str = "", timeout_s: float = 120.0
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end."""
        return subprocess.run(
            [PROGRAM, *map(str, args)],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
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
            [PROGRAM, *map(str, args)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def processes(self) -> list[psutil.Process]:
        """Everything alive that has this home in its arguments or its environment."""
        mark = str(self.home)
        return [one for one in psutil.process_iter() if _mentions(one, mark)]


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

    def asked(self) -> list[str]:
        """The text of every request that reached an engine, in no order."""
        if not self.record.exists():
            return []
        lines = self.record.read_text(encoding="utf-8").splitlines()
        return [str(json.loads(line)["prompt"]) for line in lines]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a Parquet file."""
    return pq.read_table(path).to_pylist()


def worker_of(handle: dict[str, Any]) -> psutil.Process:
    """The process that works on a job: the one that was told the job's folder and does the work."""

    def found() -> psutil.Process | None:
        for one in psutil.process_iter():
            try:
                words = one.cmdline()
            except psutil.Error:
                continue
            if "domyn_swarm.jobs.worker" in words and handle["job_dir"] in words:
                children = [c for c in one.children() if handle["job_dir"] in c.cmdline()]
                return children[0] if children else one
        return None

    return wait_for(found)
