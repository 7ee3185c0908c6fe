"""Processes of this machine: started in sessions of their own, found again, ended for certain.

A process is known by pid and start time, so that a later one with the same pid is never touched;
and by the tag in its environment, which every descendant inherits, so that nothing that a killed
command line started stays unknown. A program that retitles itself (the router does) overwrites the
environment that others see: it is known by the session it shares with a tagged leader.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from domyn_swarm.errors import CommandMissing, PlatformError
from domyn_swarm.model import Location, ProcessId, Reach
from domyn_swarm.paths import private_dir
from domyn_swarm.probing import comes_true
from domyn_swarm.process_identity import host_reach, identify, still_there, this_host

HOST = "127.0.0.1"  # all of a swarm of this machine listen there
TAG = "DOMYN_SWARM_TAG"
PART = "DOMYN_SWARM_PART"
JOB = "DOMYN_SWARM_JOB"
_OURS = frozenset({TAG, PART, JOB})
_LINUX = sys.platform == "linux"
_STARTS_WITHIN_MS = 1000  # however busy the machine is
_KERNEL_THREAD = 0x00200000  # PF_KTHREAD of the kernel's sched.h: it never has an environment


def spawn(
    argv: Sequence[str], env: Mapping[str, str], log_path: Path, files: Sequence[int] = ()
) -> ProcessId:
    """Start a program in a session of its own, its output appended to `log_path`.

    It inherits the environment, except what marks the caller itself as part of a swarm or job, and
    no open file but `files`, under other numbers.

    Raises:
        CommandMissing: there is no such program.
        PlatformError: the machine cannot start it.
    """
    private_dir(log_path.parent)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(log_path), flags, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
        *((os.POSIX_SPAWN_DUP2, file, max(files) + 1 + at) for at, file in enumerate(files)),
    ]
    inherited = {name: value for name, value in os.environ.items() if name not in _OURS}
    defaults = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE]
    try:
        pid = os.posix_spawn(
            argv[0],
            list(argv),
            {**inherited, **env},
            file_actions=actions,
            setsid=True,
            setsigdef=defaults,
        )
    except FileNotFoundError as error:
        raise CommandMissing(f"There is no program {argv[0]}.") from error
    except OSError as error:
        raise PlatformError(f"Cannot start {argv[0]}: {error.strerror}.") from error
    try:
        return identify(pid)
    except psutil.NoSuchProcess:  # ended and reaped
        return ProcessId(pid=pid, started_at=0.0)


def alive(process: ProcessId) -> bool:
    """Whether exactly this process still runs. A zombie does not, and is reaped if it is ours."""
    if not still_there(process):
        return False  # or a later one: not ours to ask anything of
    try:
        if psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
            return True
    except psutil.NoSuchProcess:
        return False
    with contextlib.suppress(ChildProcessError):
        os.waitpid(process.pid, os.WNOHANG)
    return False


def carrying(name: str, value: str) -> dict[ProcessId, dict[str, str]]:
    """Every live process whose environment holds `name=value`, with its environment."""
    found = {}
    mark = os.fsencode(f"{name}={value}")
    for pid in psutil.pids():
        if pid == os.getpid() or not _may_carry(pid, mark):
            continue
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            process = psutil.Process(pid)
            environment = process.environ()
            if environment.get(name) == value and process.status() != psutil.STATUS_ZOMBIE:
                found[identify(process.pid)] = environment
    return found


def carries(pid: int, name: str, value: str) -> bool:
    """Whether the process of this number lives and its environment holds `name=value`."""
    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        process = psutil.Process(pid)
        here = process.environ().get(name) == value
        return here and process.status() != psutil.STATUS_ZOMBIE
    return False


def _may_carry(pid: int, mark: bytes) -> bool:
    """Whether the bytes of its environment hold `mark`. psutil takes six times as long to say so,
    and a login node has thousands of processes, which are asked many times while a swarm ends.
    """
    if not _LINUX:
        return True
    try:
        for _ in range(_STARTS_WITHIN_MS):
            with open(f"/proc/{pid}/environ", "rb") as file:  # noqa: PTH123 - a Path costs as much again
                environment = file.read()
            if environment or not _is_starting(pid):
                return mark in environment
            time.sleep(0.001)
    except OSError:  # it has ended, or belongs to another user
        pass
    return False


def _is_starting(pid: int) -> bool:
    """Whether `execve` has replaced a process's memory and not yet put its environment there.

    By proc(5), /proc/PID/stat. Whoever started it goes on at the first of the two, so that a
    process may be looked for before it shows what it carries.
    """
    with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - as above
        fields = file.read().rpartition(b")")[2].split()  # behind the name, from the third on
    state, flags, environment_ends = fields[0], int(fields[6]), int(fields[48])
    return state not in (b"Z", b"X") and not flags & _KERNEL_THREAD and environment_ends == 0


def leads_a_session(process: ProcessId) -> bool:
    """Whether it is the first process of its session, as everything that `spawn` starts is."""
    try:
        return os.getsid(process.pid) == process.pid
    except ProcessLookupError:
        return False


def in_sessions(leaders: Collection[int]) -> list[ProcessId]:
    """Every other live process in the sessions that these pids lead or led."""
    found = []
    for pid in psutil.pids():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if pid == os.getpid() or os.getsid(pid) not in leaders:
                continue
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.append(identify(pid))
    return found


def send(processes: Iterable[ProcessId], number: signal.Signals) -> None:
    """Signal those that still run."""
    for process in processes:
        if alive(process):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)


def gone(processes: Callable[[], Iterable[ProcessId]], *, within_s: float) -> bool:
    """Wait until none of them runs any more; whether that came to pass."""
    return comes_true(
        lambda: not any(alive(process) for process in processes()), within_s=within_s, every_s=0.05
    )


def end(processes: Callable[[], Iterable[ProcessId]], *, grace_s: float) -> bool:
    """SIGTERM, and SIGKILL after the grace period; whether none of them is left."""
    send(processes(), signal.SIGTERM)
    if gone(processes, within_s=grace_s):
        return True
    send(processes(), signal.SIGKILL)
    return gone(processes, within_s=5.0)


class OnThisHost:
    """See `Located`: this host, in its present boot, and the PID namespace of this process."""

    def location(self, options: Mapping[str, Any]) -> Location:  # noqa: ARG002 - of the protocol
        """See `Located.location`."""
        return this_host()

    def reach(self, location: Location | None) -> Reach:
        """See `Located.reach`."""
        return Reach.HERE if location is None else host_reach(location)
