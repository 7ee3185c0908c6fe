"""Processes of ours that need not import everything first: forked from one that has.

Half a second of each start goes into imports. A fork server (`multiprocessing`'s) has them done,
and forks: what runs is a process of its own with an environment, files and an exit code of its own,
and a SIGKILL hits it as any other. What it starts itself it starts as ever.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from patience import limit_s

_PRELOADED = [
    "warm",
    "pandas",  # Arrow imports it where it is installed
    "pyarrow.parquet",
    "sqlalchemy.dialects.sqlite.pysqlite",
    "yaml",
    "domyn_swarm.backends.local",
    "domyn_swarm.cli.app",
    "domyn_swarm.cli.jobs",
    "domyn_swarm.cli.looking",
    "domyn_swarm.cli.swarms",
    "domyn_swarm.cli.views",
    "domyn_swarm.engines.sim",
    "domyn_swarm.jobs.chat",
    "domyn_swarm.jobs.range_worker",
    "domyn_swarm.jobs.worker",
    "domyn_swarm.services.jobs",
    "domyn_swarm.services.swarms",
]


@dataclass(frozen=True)
class Program:
    """A program's function (`module:name`), its words, and where it reads and writes."""

    entry: str
    words: Sequence[str]
    stdin: Path
    stdout: Path
    stderr: Path
    env: Mapping[str, str]
    folder: str


class Process:
    """A forked process; the part of `subprocess.Popen` that tests use."""

    def __init__(self, program: Program) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        self._process = context.Process(target=_become, args=(program,))
        self._process.start()
        self.pid: int = self._process.pid or 0

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()

    @property
    def returncode(self) -> int | None:
        """As `Popen.returncode`: minus the signal's number if one killed it."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The exit code once it has ended."""
        return self.returncode

    def wait(self) -> int:
        """Wait for the end, and return the exit code.

        Raises:
            subprocess.TimeoutExpired: it hangs; it is killed.
        """
        self._process.join(limit_s())
        if (code := self.returncode) is None:
            self.kill()
            raise subprocess.TimeoutExpired(str(self._process), limit_s())
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal unless it has ended."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


def _become(program: Program) -> None:
    """In the fork: what `execve` would have set, then the program."""
    os.environ.clear()
    os.environ.update(program.env)
    os.chdir(program.folder)
    for number, path, flags in (
        (0, program.stdin, os.O_RDONLY),
        (1, program.stdout, os.O_WRONLY | os.O_CREAT | os.O_APPEND),
        (2, program.stderr, os.O_WRONLY | os.O_CREAT | os.O_APPEND),
    ):
        opened = os.open(path, flags, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin, sys.stdout, sys.stderr = (
        os.fdopen(0, "r", closefd=False),
        os.fdopen(1, "w", closefd=False),
        os.fdopen(2, "w", buffering=1, closefd=False),
    )
    sys.argv = [program.entry, *program.words]
    module, _, name = program.entry.partition(":")
    sys.exit(getattr(import_module(module), name)())
