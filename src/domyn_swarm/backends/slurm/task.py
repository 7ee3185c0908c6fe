"""What our programs inside a Slurm job share: an address, a child, the way back into the queue.

The batch script becomes the task by `exec`, so signals to the job's shell reach it: USR1 some time
before the time limit, TERM when the job is cancelled.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, NamedTuple

from domyn_swarm.backends.slurm.commands import Slurm
from domyn_swarm.errors import PlatformError
from domyn_swarm.logs import get_logger
from domyn_swarm.watchdog import LOST_NODE

_log = get_logger(__name__)

_PR_SET_PDEATHSIG = 1
_LOOK_S = 0.5
_REQUEUE_S = 120.0  # from `scontrol requeue` until Slurm ends this task


def node_address() -> str:
    """Where other nodes reach this one: as the scheduler does, else by its name."""
    name = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    address = Slurm().node_address(name) or name
    try:
        socket.getaddrinfo(address, None)
    except OSError:
        return socket.gethostname()
    return address


class Child(NamedTuple):
    """A program of a task; `env` is added to the task's own."""

    command: Sequence[str]
    env: Mapping[str, str]
    log: IO[bytes]
    companion: bool = False  # it serves the others: told to end after them, and they end with it


class Task:
    """Runs programs and hands signals on to them.

    `before_end` is called when the time limit is near, before the programs are told to end.
    """

    def __init__(self, before_end: Callable[[], None] | None = None) -> None:
        self.warned = False  # the time limit is near
        self._before_end = before_end
        self._stopped = False
        self._children: list[subprocess.Popen[bytes]] = []
        self._companions: list[subprocess.Popen[bytes]] = []
        self.lost_companion = False
        signal.signal(signal.SIGUSR1, self._on_signal)
        signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGUSR1:
            if self._before_end is not None and not self.warned:
                self._before_end()
            self.warned = True
        else:
            self._stopped = True
        self._hand_on()

    def _hand_on(self) -> None:
        for child in self._children:
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)

    def start(self, child: Child) -> None:
        """Start a program; it ends with this task, however that ends."""
        process = subprocess.Popen(
            child.command,
            env={**os.environ, **child.env},
            stdin=subprocess.DEVNULL,
            stdout=child.log,
            stderr=child.log,
            preexec_fn=_end_with_parent,  # noqa: PLW1509 - no threads here
        )
        (self._companions if child.companion else self._children).append(process)
        if self.warned or self._stopped:  # it came before there was a child to tell
            self._hand_on()

    def wait(self) -> int:
        """Wait for the end of all programs; the first exit code that is not 0, 128 + the number
        for a signal. A companion that ends before them is their end too.
        """
        while self._companions and any(child.poll() is None for child in self._children):
            self.lost_companion = any(one.poll() is not None for one in self._companions)
            if self.lost_companion:  # told again and again: there is nothing left to drain
                self._hand_on()
            time.sleep(_LOOK_S)
        for companion in self._companions:
            companion.terminate()
        codes = [child.wait() for child in self._children]
        self.lost_companion = self.lost_companion or LOST_NODE in codes
        return next((code if code > 0 else 128 - code for code in codes if code), 0)

    @property
    def goes_back(self) -> bool:
        """Whether the task ended for its time limit or a lost node alone: it may go on another
        time.
        """
        return (self.warned or self.lost_companion) and not self._stopped


def still_wanted(job: str) -> bool:
    """Whether the job runs on, as far as Slurm is concerned. One that somebody cancels loses its
    steps first, which looks like a lost node: it must not come back.
    """
    try:
        seen = Slurm().jobs([job]).get(job)
    except PlatformError:
        return False
    return seen is not None and seen.state == "RUNNING"


def requeue(job: str) -> None:
    """Go back into the queue; Slurm ends this task meanwhile."""
    if not Slurm().requeue(job):
        _log.error("Slurm did not take %s back into the queue", job)
        return
    time.sleep(_REQUEUE_S)


def open_log(path: Path) -> IO[bytes]:
    """A log that the next run of the task goes on with."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path.open("ab")


def _end_with_parent() -> None:
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    except (OSError, AttributeError):  # not Linux
        return
