"""Processes of this machine: starts them in sessions, finds them again, and ends them.

A process is identified by pid and start time, so that a later process with the same pid is never
signalled. Processes of a swarm are found by the tag in their environment, which every descendant
inherits, so that a killed command leaves none behind. A program that changes its title (the router
does) overwrites the environment that others can read: it is found by its session, whose leader has
the tag.
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
from typing_extensions import override

from domyn_swarm.backends.protocols import Located
from domyn_swarm.errors import CommandMissing, PlatformError
from domyn_swarm.model import Location, ProcessId, Reach
from domyn_swarm.paths import private_dir
from domyn_swarm.probing import comes_true
from domyn_swarm.process_identity import host_reach, identify, still_there, this_host

HOST = "127.0.0.1"  # the address on which all programs of a local swarm listen
TAG = "DOMYN_SWARM_TAG"
PART = "DOMYN_SWARM_PART"
JOB = "DOMYN_SWARM_JOB"
_OURS = frozenset({TAG, PART, JOB})
_LINUX = sys.platform == "linux"
_STARTS_WITHIN_MS = 1000  # enough also on a busy machine
_KERNEL_THREAD = 0x00200000  # PF_KTHREAD of the kernel's sched.h: such a thread has no environment


def spawn(
    argv: Sequence[str], env: Mapping[str, str], log_path: Path, files: Sequence[int] = ()
) -> ProcessId:
    """Start a program in a new session, with its output appended to `log_path`.

    The program inherits the environment without the variables that mark the caller as part of a
    swarm or job. It inherits no open file but `files`, under other descriptors.

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
    """Whether exactly this process runs. A zombie does not; it is reaped if it is our child."""
    if not still_there(process):
        return False
    try:
        if psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
            return True
    except psutil.NoSuchProcess:
        return False
    with contextlib.suppress(ChildProcessError):
        os.waitpid(process.pid, os.WNOHANG)
    return False


def carrying(name: str, value: str) -> dict[ProcessId, dict[str, str]]:
    """Every live process whose environment contains `name=value`, with its environment."""
    matches = {}
    mark = os.fsencode(f"{name}={value}")
    for pid in psutil.pids():
        if pid == os.getpid() or not _may_carry(pid, mark):
            continue
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            process = psutil.Process(pid)
            environment = process.environ()
            if environment.get(name) == value and process.status() != psutil.STATUS_ZOMBIE:
                matches[identify(process.pid)] = environment
    return matches


def carries(pid: int, name: str, value: str) -> bool:
    """Whether the process `pid` is alive and its environment contains `name=value`."""
    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        process = psutil.Process(pid)
        matches = process.environ().get(name) == value
        return matches and process.status() != psutil.STATUS_ZOMBIE
    return False


def _may_carry(pid: int, mark: bytes) -> bool:
    """Whether the environment of a process contains the bytes `mark`.

    A fast filter: psutil takes six times as long, and the processes of a login node, which are
    thousands, are read many times while a swarm ends.
    """
    if not _LINUX:
        return True
    try:
        for _ in range(_STARTS_WITHIN_MS):
            with open(f"/proc/{pid}/environ", "rb") as file:  # noqa: PTH123 - a Path doubles the time
                environment = file.read()
            if environment or not _is_starting(pid):
                return mark in environment
            time.sleep(0.001)
    except OSError:  # the process has ended, or belongs to another user
        pass
    return False


def _is_starting(pid: int) -> bool:
    """Whether `execve` has replaced the memory of a process but not yet set its environment.

    See proc(5), /proc/PID/stat. `posix_spawn` returns after the first of the two steps, so that a
    process may be searched for before its environment is visible.
    """
    with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - as above
        fields = file.read().rpartition(b")")[2].split()  # the fields after the name, from field 3
    state, flags, environment_ends = fields[0], int(fields[6]), int(fields[48])
    return state not in (b"Z", b"X") and not flags & _KERNEL_THREAD and environment_ends == 0


def leads_a_session(process: ProcessId) -> bool:
    """Whether a process leads its session, as every process that `spawn` starts does."""
    try:
        return os.getsid(process.pid) == process.pid
    except ProcessLookupError:
        return False


def in_sessions(leaders: Collection[int]) -> list[ProcessId]:
    """Every other live process in the sessions that these pids lead or led."""
    members = []
    for pid in psutil.pids():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if pid == os.getpid() or os.getsid(pid) not in leaders:
                continue
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                members.append(identify(pid))
    return members


def send(processes: Iterable[ProcessId], number: signal.Signals) -> None:
    """Send a signal to the processes that still run."""
    for process in processes:
        if alive(process):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)


def gone(processes: Callable[[], Iterable[ProcessId]], *, within_s: float) -> bool:
    """Wait until none of the processes runs. Returns False if one still runs after `within_s`."""
    return comes_true(
        lambda: not any(alive(process) for process in processes()), within_s=within_s, every_s=0.05
    )


def end(processes: Callable[[], Iterable[ProcessId]], *, grace_s: float) -> bool:
    """Send SIGTERM, and SIGKILL after the grace period. Returns whether all processes ended.

    A process that is about to end has no environment any more, by which `carrying` knows it, while
    it still frees its memory: those that were sent a signal are watched by their ids.
    """
    signalled = [*processes()]

    def left() -> Iterable[ProcessId]:
        return {*processes(), *signalled}

    send(signalled, signal.SIGTERM)
    if gone(left, within_s=grace_s):
        return True
    send(left(), signal.SIGKILL)
    return gone(left, within_s=5.0)


class OnThisHost(Located):
    """A location: this host in its present boot, and the PID namespace of this process."""

    @override
    def location(self, options: Mapping[str, Any]) -> Location:
        return this_host()

    @override
    def reach(self, location: Location | None) -> Reach:
        return Reach.HERE if location is None else host_reach(location)
