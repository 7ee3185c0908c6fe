"""Keeps one program running on a node: `follower.py SPEC.json HEAD PORT RANK [lifeline]`.

Runs on the nodes of a replica beside the first one (an engine's worker, Ray's). Standard library
only and Python 3.8 syntax: this file is copied next to the engine and runs in whatever image the
engine comes in, with `restart_budget.py` beside it. The program is restarted a second after it
ends; SIGTERM ends it and this process. `{head}`, `{port}` and `{rank}` in its arguments are
replaced.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or __package__:
    from domyn_swarm.restart_budget import RestartBudget, RestartPolicy
else:  # run as a copy: the module lies in the same folder
    sys.path.insert(0, str(Path(__file__).absolute().parent))
    from restart_budget import RestartBudget, RestartPolicy

RESTARTS = RestartPolicy(first_pause_s=1.0, longest_pause_s=1.0)  # for as long as the replica lives
GRACE_S = 10.0
MOST_FILES = 65_536


def log(text: str) -> None:
    """Write one line with the time to stderr; it is lost if the disk does not accept it."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    try:
        os.write(2, f"{stamp} {text}\n".encode("utf-8", "backslashreplace"))
    except OSError:
        return


def allow_many_files() -> None:
    """Raise the limit of open files as far as it goes, for the program; as the watchdog does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def end_with_parent() -> None:
    """In the child: a process group of its own, killed by the kernel when its parent ends."""
    os.setpgid(0, 0)
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    except (OSError, AttributeError):  # not Linux
        return


class Follower:
    """Runs the program until SIGTERM or SIGINT."""

    def __init__(self, argv: list[str], env: dict[str, str]) -> None:
        self._argv = argv
        self._env = dict(os.environ, **env)
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop)

    def _on_stop(self, *_: object) -> None:
        self._stopped = True
        self._signal(signal.SIGTERM)

    def _signal(self, number: int) -> None:
        if self._process is not None and self._process.returncode is None:
            try:
                os.killpg(self._process.pid, number)
            except OSError:
                return

    def run(self) -> int:
        """Run until SIGTERM or SIGINT; returns the exit code."""
        restarts = RestartBudget(RESTARTS)
        while not self._stopped:
            process = self._start()
            if process is not None:
                if self._stopped:
                    self._signal(signal.SIGTERM)
                code = self._wait(process)
                if self._stopped:
                    break
                log(f"the program ended with {code}; it is started again")
            time.sleep(restarts.take() or 0.0)
        return 0

    def _start(self) -> subprocess.Popen[bytes] | None:
        """The program; None where the system has no room for it now."""
        try:
            self._process = subprocess.Popen(
                self._argv,
                env=self._env,
                stdin=subprocess.DEVNULL,
                preexec_fn=end_with_parent,  # noqa: PLW1509 - no threads here
            )
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE):
                raise  # it never can be started
            log(f"the program cannot be started now: {error}")
            return None
        return self._process

    def _wait(self, process: subprocess.Popen[bytes]) -> int:
        ends_at: float | None = None
        while process.poll() is None:
            if self._stopped:
                ends_at = ends_at or time.monotonic() + GRACE_S
                if time.monotonic() >= ends_at:
                    self._signal(signal.SIGKILL)
            time.sleep(0.1)
        return int(process.returncode)


def end_with_input() -> None:
    """End this process with SIGTERM when its standard input ends: its parent has ended."""
    while os.read(0, 512):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def main(arguments: list[str]) -> int:
    """Run; returns the exit code."""
    os.umask(0o077)
    allow_many_files()
    path, head, port, rank = arguments[1:5]
    spec: dict[str, Any] = json.loads(Path(path).read_text("utf-8"))
    places = {"{head}": head, "{port}": port, "{rank}": rank}
    argv = []
    for word in spec["argv"]:
        for name, value in places.items():
            word = word.replace(name, value)  # noqa: PLW2901 - one after the other
        argv.append(word)
    if arguments[5:] == ["lifeline"]:
        threading.Thread(target=end_with_input, daemon=True, name="lifeline").start()
    log(f"node {rank} of the replica whose first one is {head}: {' '.join(argv)}")
    return Follower(argv, spec["env"]).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv))
