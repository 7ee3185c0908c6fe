"""Shared by our programs inside a Slurm job: child processes, and the return to the queue.

The batch script becomes the task by `exec`, so signals to the job's shell reach it: USR1 some time
before the time limit, TERM when the job is cancelled.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, NamedTuple, Protocol

from domyn_swarm.backends.slurm.commands import Slurm
from domyn_swarm.backends.slurm.ending import Scheduler
from domyn_swarm.errors import CommandMissing, PlatformError
from domyn_swarm.logs import configure, get_logger
from domyn_swarm.probing import Clock, comes_true
from domyn_swarm.restart_budget import RestartBudget, RestartPolicy
from domyn_swarm.temporary import settle_temporary_folder, too_long_for_sockets

_log = get_logger(__name__)

_PR_SET_PDEATHSIG = 1
_LOOK_S = 0.2
_REQUEUE_S = 120.0  # from `scontrol requeue` until Slurm ends this task
_AGAIN_S = 3.0  # interval of repeats while the controller does not answer
_KILLED = frozenset(
    128 + number
    for number in (
        *(signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS),
        *(signal.SIGABRT, signal.SIGILL, signal.SIGFPE),
    )
)
_RESTARTS = RestartPolicy(most=3, within_s=3600.0)  # of one program, without a pause


class Child(NamedTuple):
    """A program of a task; `env` is added to the task's own environment."""

    command: Sequence[str]
    env: Mapping[str, str]
    log: IO[bytes]
    companion: bool = False  # serves the others: ended after them, and they end with it
    again: bool = False  # restarted if it fails, a few times within an hour
    lifeline: bool = False  # its input closes with the task: see `containers.loses_signals`


class Process(Protocol):
    """The operations on a program that a task runs."""

    @property
    def pid(self) -> int:
        """The process id."""

    def poll(self) -> int | None:
        """The exit code, or minus the number of a signal; None while it runs."""

    def wait(self) -> int:
        """Wait for its end, and return the same."""

    def send_signal(self, number: int, /) -> None:
        """Send a signal; does nothing once it has ended."""

    def terminate(self) -> None:
        """Send SIGTERM."""


class Returning(Protocol):
    """A task or job that ended before its time, and may run again."""

    @property
    def goes_back(self) -> bool:
        """Whether it may: it was not cancelled meanwhile."""

    def heed(self) -> None:
        """Do what has to be done before the end."""

    def rest(self, seconds: float) -> None:
        """Wait for so long, or until a signal to end arrives."""


def _start_process(child: Child) -> Process:
    """Start the program; it ends with this task, however that ends."""
    return subprocess.Popen(
        child.command,
        env={**os.environ, **child.env},
        stdin=subprocess.PIPE if child.lifeline else subprocess.DEVNULL,
        stdout=child.log,
        stderr=child.log,
        preexec_fn=_end_with_parent,  # noqa: PLW1509 - no threads here
    )


class _Running:
    """A running child."""

    def __init__(self, child: Child, start: Callable[[Child], Process], clock: Clock) -> None:
        self.child = child
        self._start = start
        self._clock = clock
        self.process = start(child)
        self._restarts = RestartBudget(_RESTARTS)

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    @property
    def code(self) -> int:
        """How it ended: its exit code, or 128 + the number of a signal."""
        code = self.process.wait()
        return code if code >= 0 else 128 - code

    def again_if_dead(self) -> None:
        """Restart it if it has failed, within the restart budget."""
        if not (self.child.again and self.ended and died(self.code)):
            return
        if self._restarts.take(self._clock.monotonic()) is None:
            return
        try:
            pid, code = self.process.pid, self.code
            _log.warning("process %d failed (code %d); it is restarted", pid, code)
            self.process = self._start(self.child)
        except OSError as error:  # the task's other programs go on
            _log.error("it cannot be restarted: %s", error)


class Task:
    """Runs programs and forwards signals to them.

    `before_end` is called when the time limit is near, before the programs are signalled: not in
    the signal handler, but where the task waits. `start` starts a program.
    """

    def __init__(
        self,
        before_end: Callable[[], None] | None = None,
        *,
        clock: Clock = time,
        start: Callable[[Child], Process] = _start_process,
    ) -> None:
        self.warned = False  # the time limit is near
        self._before_end = before_end
        self._clock = clock
        self._start = start
        self._stopped = False
        self._children: list[_Running] = []
        self._companions: list[_Running] = []
        self.lost_companion = False
        signal.signal(signal.SIGUSR1, self._on_signal)
        signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        """Record the signal and forward it at once, whatever the task does. That takes a system
        call or two per program; anything slower is done where the task waits.
        """
        if number == signal.SIGUSR1:
            self.warned = True
            if self._before_end is not None:  # it takes time: see `heed`
                return
        else:
            self._stopped = True
        self._hand_on()

    def heed(self) -> None:
        """Do what has to be done before the end, once, if the time limit is near."""
        if self.warned and self._before_end is not None:
            self._before_end()
            self._before_end = None
            self._hand_on()

    def _hand_on(self) -> None:
        for child in self._children:
            if not child.ended:
                child.process.send_signal(signal.SIGTERM)

    def end(self) -> None:
        """End as if the task had been cancelled: its programs are signalled, and it is not
        requeued.
        """
        if not self._stopped:
            self._stopped = True
            self._hand_on()

    def start(self, child: Child) -> None:
        """Start a program; it ends with this task, however that ends."""
        (self._companions if child.companion else self._children).append(
            _Running(child, self._start, self._clock)
        )
        if self.signalled:  # the signal came before there was a child
            self._hand_on()

    def wait(self, meanwhile: Callable[[], None] = lambda: None) -> int:
        """Wait for the end of all programs; return the first exit code that is not 0, or 128 + the
        number of a signal. A companion that ends first ends the others. `meanwhile` is called
        repeatedly.
        """
        while self._any_left():
            self.lost_companion = any(one.ended for one in self._companions)
            if self.lost_companion:  # signalled repeatedly: there is nothing left to drain
                self._hand_on()
            meanwhile()
            self._clock.sleep(_LOOK_S)
            self.heed()
        self.heed()  # the warning came as the last of them ended
        for companion in self._companions:
            companion.process.terminate()
        codes = [child.code for child in self._children]
        self._children, self._companions = [], []
        failed = [code for code in codes if code]
        self.lost_companion = self.lost_companion or _lost_node(failed)
        return next(iter(failed), 0)

    def _any_left(self) -> bool:
        if not self.signalled:
            for child in self._children:
                child.again_if_dead()
                if self.signalled:  # it started during the signal, and did not receive it
                    self._hand_on()
        return not all(child.ended for child in self._children)

    @property
    def cancelled(self) -> bool:
        """Whether the task is cancelled, or ends itself: there is no time left for anything."""
        return self._stopped

    @property
    def signalled(self) -> bool:
        """Whether its programs were signalled to end: by a warning, or by a cancel."""
        return self.warned or self._stopped

    def rest(self, seconds: float) -> None:
        """Wait for so long, or until the task is signalled to end."""

        def cancelled() -> bool:
            self.heed()
            return self._stopped

        comes_true(cancelled, within_s=seconds, every_s=_LOOK_S, clock=self._clock)

    @property
    def goes_back(self) -> bool:
        """Whether the task ended only for its time limit or a lost node, and so may run again."""
        return (self.warned or self.lost_companion) and not self._stopped


def died(code: int) -> bool:
    """Whether a program that ended with this code was killed, or is a watchdog that failed itself:
    its engine is not known to be at fault.
    """
    if code in (0, *_KILLED):
        return code != 0
    from domyn_swarm.watchdog import BROKEN  # here: a watchdog's imports cost more than a task's

    return code == BROKEN


def _lost_node(codes: Sequence[int]) -> bool:
    """Whether a watchdog reported that by its exit code."""
    if not codes:
        return False
    from domyn_swarm.watchdog import LOST_NODE  # here, see `died`

    return LOST_NODE in codes


def come_back(
    task: Returning,
    job: str,
    *,
    by_requeue: bool,
    successor: Callable[[], None],
    slurm: Scheduler | None = None,
) -> bool:
    """Run a task again that ended before its time: by requeueing, for which Slurm ends it; if that
    is not wanted, or Slurm refuses, by `successor`. Return whether it will run again.

    A task that is cancelled loses its steps first, which looks like a lost node; it is not
    requeued. While the controller does not answer, the request is repeated until the task is ended.
    """
    slurm = slurm or Slurm()
    while task.goes_back:
        task.heed()
        try:
            if not _still_wanted(slurm, job):
                _log.info("%s is being ended and is not requeued", job)
                return False
            if by_requeue and slurm.requeue(job):
                task.rest(_REQUEUE_S)
                return True
            if not _still_wanted(slurm, job):  # it has been requeued from elsewhere meanwhile
                return True
        except CommandMissing as error:
            _log.error("%s cannot request its requeue: %s", job, error.message)
        except PlatformError as error:
            _log.warning("%s repeats the request for its requeue: %s", job, error.message)
            task.rest(_AGAIN_S)
            continue
        try:
            successor()
            return True
        except CommandMissing:  # a retry would not help
            raise
        except (OSError, PlatformError) as error:  # a full disk, a busy controller
            _log.warning("%s repeats the request for its successor: %s", job, error)
            task.rest(_AGAIN_S)
    return False


def _still_wanted(slurm: Scheduler, job: str) -> bool:
    """Whether Slurm still has the job as running."""
    slurm.expect_change()  # the snapshot may be too old
    seen = slurm.jobs([job]).get(job)
    return seen is not None and seen.runs_on


def open_log(path: Path) -> IO[bytes]:
    """Open a log that the next run of the task continues; the task's own output if the disk is
    full, which must not prevent serving.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return path.open("ab")
    except OSError as error:
        _log.warning("cannot open %s, which goes to this log instead: %s", path, error)
        return os.fdopen(os.dup(2), "ab")


def begin() -> None:
    """The first steps of each task: private files, a log, a folder for temporary files."""
    os.umask(0o077)
    configure("INFO")
    for said in (settle_temporary_folder(), too_long_for_sockets()):
        if said is not None:
            _log.warning("%s", said)


def _end_with_parent() -> None:
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    except (OSError, AttributeError):  # not Linux
        return
