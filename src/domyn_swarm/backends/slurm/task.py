"""What our programs inside a Slurm job share: a child, the way back into the queue.

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
_AGAIN_S = 3.0  # a controller that does not answer is asked again
_KILLED = frozenset(
    128 + number
    for number in (
        *(signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS),
        *(signal.SIGABRT, signal.SIGILL, signal.SIGFPE),
    )
)
_RESTARTS = RestartPolicy(most=3, within_s=3600.0)  # of one program, at once


class Child(NamedTuple):
    """A program of a task; `env` is added to the task's own."""

    command: Sequence[str]
    env: Mapping[str, str]
    log: IO[bytes]
    companion: bool = False  # it serves the others: told to end after them, and they end with it
    again: bool = False  # it is started again when it dies, a few times within an hour
    lifeline: bool = False  # its input ends with the task: see `containers.loses_signals`


class Process(Protocol):
    """What a task asks of a program that it runs."""

    @property
    def pid(self) -> int:
        """Its number."""

    def poll(self) -> int | None:
        """Its exit code, or minus the number of a signal; None while it runs."""

    def wait(self) -> int:
        """The same, once it has ended."""

    def send_signal(self, number: int, /) -> None:
        """Send a signal to it; nothing once it has ended."""

    def terminate(self) -> None:
        """Tell it to end."""


class Returning(Protocol):
    """What ended before its time, and may run on another time."""

    @property
    def goes_back(self) -> bool:
        """Whether it may: nobody has ended it meanwhile."""

    def heed(self) -> None:
        """Do what is to be done before the end."""

    def rest(self, seconds: float) -> None:
        """Do nothing for so long, or until it is told to end."""


def _start_process(child: Child) -> Process:
    """The program runs; it ends with this task, however that ends."""
    return subprocess.Popen(
        child.command,
        env={**os.environ, **child.env},
        stdin=subprocess.PIPE if child.lifeline else subprocess.DEVNULL,
        stdout=child.log,
        stderr=child.log,
        preexec_fn=_end_with_parent,  # noqa: PLW1509 - no threads here
    )


class _Running:
    """A child as it runs."""

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
        """Start it once more should it have died, but not for ever."""
        if not (self.child.again and self.ended and died(self.code)):
            return
        if self._restarts.take(self._clock.monotonic()) is None:
            return
        try:
            pid, code = self.process.pid, self.code
            _log.warning("process %d died (code %d); it starts again", pid, code)
            self.process = self._start(self.child)
        except OSError as error:  # the task's other programs are not to end for it
            _log.error("it does not: %s", error)


class Task:
    """Runs programs and hands signals on to them.

    `before_end` is called when the time limit is near, before the programs are told to end: not by
    the signal's handler, but where the task waits. `start` starts a program.
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
        """Note it, and hand it on: at once, whatever the task does. That is a system call or two
        for each program; all that takes time is done where the task waits.
        """
        if number == signal.SIGUSR1:
            self.warned = True
            if self._before_end is not None:  # it takes its time: see `heed`
                return
        else:
            self._stopped = True
        self._hand_on()

    def heed(self) -> None:
        """Do what is to be done before the end, once, should the time limit be near."""
        if self.warned and self._before_end is not None:
            self._before_end()
            self._before_end = None
            self._hand_on()

    def _hand_on(self) -> None:
        for child in self._children:
            if not child.ended:
                child.process.send_signal(signal.SIGTERM)

    def end(self) -> None:
        """End as if somebody had cancelled the task: its programs are told, and it does not come
        back.
        """
        if not self._stopped:
            self._stopped = True
            self._hand_on()

    def start(self, child: Child) -> None:
        """Start a program; it ends with this task, however that ends."""
        (self._companions if child.companion else self._children).append(
            _Running(child, self._start, self._clock)
        )
        if self.told:  # it came before there was a child to tell
            self._hand_on()

    def wait(self, meanwhile: Callable[[], None] = lambda: None) -> int:
        """Wait for the end of all programs; the first exit code that is not 0, 128 + the number
        for a signal. A companion that ends before them is their end too. `meanwhile` is called
        again and again.
        """
        while self._any_left():
            self.lost_companion = any(one.ended for one in self._companions)
            if self.lost_companion:  # told again and again: there is nothing left to drain
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
        if not self.told:
            for child in self._children:
                child.again_if_dead()
                if self.told:  # as it was started: it is not among those who were told
                    self._hand_on()
        return not all(child.ended for child in self._children)

    @property
    def cancelled(self) -> bool:
        """Whether somebody ends the task, or it ends itself: there is no time left for anything."""
        return self._stopped

    @property
    def told(self) -> bool:
        """Whether its programs were told to end: by a warning, or by whoever ends the task."""
        return self.warned or self._stopped

    def rest(self, seconds: float) -> None:
        """Do nothing for so long, or until the task is told to end."""

        def cancelled() -> bool:
            self.heed()
            return self._stopped

        comes_true(cancelled, within_s=seconds, every_s=_LOOK_S, clock=self._clock)

    @property
    def goes_back(self) -> bool:
        """Whether the task ended for its time limit or a lost node alone: it may go on another
        time.
        """
        return (self.warned or self.lost_companion) and not self._stopped


def died(code: int) -> bool:
    """Whether a program that ended with this code was killed, or is a watchdog that itself failed:
    what it ran is not known to be wrong.
    """
    if code in (0, *_KILLED):
        return code != 0
    from domyn_swarm.watchdog import BROKEN  # here: a watchdog's imports cost more than a task's

    return code == BROKEN


def _lost_node(codes: Sequence[int]) -> bool:
    """Whether a watchdog said so by its exit code."""
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
    """Have a task that ended before its time run on another time: by requeueing, for which Slurm
    ends it; where that is not wanted, or Slurm refuses it, by `successor`. Whether it does.

    A task that somebody cancels loses its steps first, which looks like a lost node: it does not
    come back. While the controller does not answer, it is asked until the task is ended.
    """
    slurm = slurm or Slurm()
    while task.goes_back:
        task.heed()
        try:
            if not _still_wanted(slurm, job):
                _log.info("%s is being ended and does not come back", job)
                return False
            if by_requeue and slurm.requeue(job):
                task.rest(_REQUEUE_S)
                return True
            if not _still_wanted(slurm, job):  # somebody else has put it back meanwhile
                return True
        except CommandMissing as error:
            _log.error("%s cannot ask for its way back: %s", job, error.message)
        except PlatformError as error:
            _log.warning("%s asks again for its way back: %s", job, error.message)
            task.rest(_AGAIN_S)
            continue
        try:
            successor()
            return True
        except CommandMissing:  # it never comes
            raise
        except (OSError, PlatformError) as error:  # a full disk, a busy controller
            _log.warning("%s asks again for its successor: %s", job, error)
            task.rest(_AGAIN_S)
    return False


def _still_wanted(slurm: Scheduler, job: str) -> bool:
    """Whether the job runs on, as far as Slurm is concerned."""
    slurm.expect_change()  # what is known may be too old
    seen = slurm.jobs([job]).get(job)
    return seen is not None and seen.runs_on


def open_log(path: Path) -> IO[bytes]:
    """A log that the next run of the task goes on with; the task's own where the disk has no room:
    that is no reason not to serve.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return path.open("ab")
    except OSError as error:
        _log.warning("cannot open %s, which goes to this log instead: %s", path, error)
        return os.fdopen(os.dup(2), "ab")


def begin() -> None:
    """What each task does first: private files, a log, a folder for temporary ones."""
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
