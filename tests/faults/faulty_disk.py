"""Workers and commands on a disk on which one call fails: each is forked from a process with a
library preloaded that counts calls under a folder, and fails the one that it is told to.

Run as a program, this is that process: it reads runs from stdin, one a line, and answers with how
each ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import select
import signal
import subprocess
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from faults.preloaded import build

_TESTS = str(Path(__file__).parents[1])
KINDS = (  # as in `faults.c`
    *("fsync", "write", "rename", "listdir", "link", "create", "unlink"),
    "read",  # a file that is there is opened to be read
)


@dataclass(frozen=True)
class Fault:
    """The `at`-th call of a kind fails with an error; `for_ever`: and all after it."""

    kind: str
    at: int
    error: int
    for_ever: bool = False

    def __str__(self) -> str:
        more = " and all after it" if self.for_ever else ""
        return f"{self.kind} {self.at}{more}: {errno.errorcode[self.error]}"


@dataclass(frozen=True)
class Ended:
    """How a worker ended."""

    code: int
    said: str
    calls: dict[str, int]  # by kind


class FaultyDisk:
    """The process that workers are forked from."""

    def __init__(self, scratch: Path) -> None:
        self._library = build(scratch)
        self._process = self._started()

    def _started(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, __file__],
            env={**os.environ, "LD_PRELOAD": str(self._library), "PYTHONPATH": _TESTS},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, folder: Path, job: Path, fault: Fault | None, limit_s: float) -> Ended:
        """Run the worker of a job folder, while calls under `folder` are counted."""
        asked = {"job": str(job)}
        return self._run(folder, job.with_name("said"), asked, fault, limit_s)

    def command(
        self, home: Path, words: Sequence[str], fault: Fault | None, limit_s: float
    ) -> Ended:
        """Run a command with a home, in the environment of now; calls under it are counted."""
        env = {**os.environ, "DOMYN_SWARM_HOME": str(home)}
        asked = {"env": env, "words": list(words)}
        return self._run(home, home.with_name("said"), asked, fault, limit_s)

    def _run(
        self, folder: Path, log: Path, asked: dict[str, Any], fault: Fault | None, limit_s: float
    ) -> Ended:
        log.write_text("")
        asked |= {"folder": str(folder), "log": str(log), "library": str(self._library)}
        try:
            code, calls = self._answer(json.dumps([asked, fault and asdict(fault)]), limit_s)
        except BaseException as error:  # its answer would be taken for that of the next run
            self.end()
            self._process = self._started()
            if isinstance(error, TimeoutError):
                raise AssertionError(f"a worker hangs after {fault}: {log.read_text()}") from error
            raise
        return Ended(code, log.read_text(), calls)

    def _answer(self, line: str, limit_s: float) -> tuple[int, dict[str, int]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], limit_s)
        if not ready:
            raise TimeoutError
        code, calls = json.loads(self._process.stdout.readline())
        return code, calls

    def end(self) -> None:
        """End it, and a worker that hangs."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        with contextlib.suppress(OSError):  # what was written to it and never read
            self._process.stdin.close()
        self._process.stdout.close()


def _serve() -> None:
    _small_files()
    for line in sys.stdin:
        asked, fault = json.loads(line)
        read_end, write_end = os.pipe()
        if (child := os.fork()) == 0:
            os.close(read_end)
            code = _program(asked, fault, write_end)
            os._exit(code)
        os.close(write_end)
        with os.fdopen(read_end) as reader:
            calls = reader.read()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(json.dumps([code, json.loads(calls or "{}")]), flush=True)


def _small_files() -> None:
    """So that a small run has many of them: they are rotated, sealed and joined."""
    from domyn_swarm.batch.checkpoint import journal, lease, segments
    from domyn_swarm.cli import app, submit  # noqa: F401 - loaded once, for all
    from domyn_swarm.jobs import worker  # noqa: F401 - likewise
    from domyn_swarm.services import jobs  # noqa: F401 - likewise

    journal.JOURNAL_ROWS = 5
    segments.MOST_FILES, segments._AT_ONCE = 3, 2
    lease.BEAT_S = 0.05


def _program(asked: dict[str, Any], fault: dict[str, Any] | None, write_end: int) -> int:
    log = os.open(asked["log"], os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    library = ctypes.CDLL(asked["library"])
    folder = asked["folder"].encode()
    if fault is None:
        library.faults_arm(folder, -1, 0, 0, 0)
    else:
        kind, at = KINDS.index(fault["kind"]), ctypes.c_long(fault["at"])
        library.faults_arm(folder, kind, at, fault["error"], int(fault["for_ever"]))
    try:
        code = _ended(asked)
    except BaseException:  # noqa: BLE001 - as a program of its own prints it
        traceback.print_exc()
        code = 70
    calls = {name: int(library.faults_count(kind)) for kind, name in enumerate(KINDS)}
    os.write(write_end, json.dumps(calls).encode())
    return code


def _ended(asked: dict[str, Any]) -> int:
    """The exit code of the worker, or of the command."""
    if "job" in asked:
        from domyn_swarm.jobs.worker import main as work

        return work([asked["job"]])
    from domyn_swarm.cli.app import main

    os.environ.update(asked["env"])
    sys.argv = ["domyn-swarm", *asked["words"]]
    try:
        main()
    except SystemExit as end:
        sys.stdout.flush()
        return int(end.code or 0)
    return 0


if __name__ == "__main__":
    _serve()
