"""Identities of processes and hosts.

Pids are reused, so a process is identified by pid and start time. The start time must not depend on
the clock, which NTP, a user or a resume from sleep may set. A pid is only valid on its host, within
one boot and one PID namespace.
"""

from __future__ import annotations

import hashlib
import os
import socket
from pathlib import Path

import psutil

from domyn_swarm.model import Location, ProcessId, Reach

_TOLERANCE_S = 0.5
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PID_NAMESPACE = Path("/proc/self/ns/pid")
_MACHINE_ID = Path("/etc/machine-id")
INITIAL_PID_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO of the kernel's proc_ns.h: in no container


def identify(pid: int) -> ProcessId:
    """The identity of the process that has this pid now.

    Its start time is relative to the boot, in steps of 0.01 s (`starttime` in proc(5)). psutil adds
    the boot time, which changes whenever the clock is set.

    Raises:
        psutil.NoSuchProcess: there is no such process.
    """
    while True:
        booted = psutil.boot_time()
        began = psutil.Process(pid).create_time() - booted
        if psutil.boot_time() == booted:
            return ProcessId(pid=pid, started_at=round(began, 2))


def this_process() -> ProcessId:
    """The identity of the calling process."""
    return identify(os.getpid())


def still_there(process: ProcessId) -> bool:
    """Whether exactly this process exists, possibly as a zombie."""
    try:
        return abs(identify(process.pid).started_at - process.started_at) < _TOLERANCE_S
    except psutil.NoSuchProcess:
        return False


def this_host() -> Location:
    """The location of this process, and of processes that it starts."""
    return Location(
        kind="host",
        name=socket.gethostname(),
        boot_id=_text(_BOOT_ID),
        pid_namespace=_inode(_PID_NAMESPACE),
        machine_id=_digest(_text(_MACHINE_ID)),
    )


def host_reach(there: Location, here: Location | None = None) -> Reach:
    """Whether processes that were started at `there` are visible at `here` (default: this process).

    Within one boot and one PID namespace all processes are visible, even if the host has another
    name now. After a restart of the host, none of its processes runs. A host with the same name and
    another boot may still be another one, because containers, cloned machines and images share
    names: it counts as restarted only if it is the same installation, and neither location is a
    container.
    """
    here = this_host() if here is None else here
    if there.kind != "host":
        return Reach.ELSEWHERE
    if there.boot_id is None or here.boot_id is None:  # the system does not provide it
        same_boot = there.name == here.name
    else:
        same_boot = there.boot_id == here.boot_id
    if same_boot:
        return Reach.HERE if there.pid_namespace == here.pid_namespace else Reach.ELSEWHERE
    same_installation = (
        there.name == here.name
        and there.machine_id is not None
        and there.machine_id == here.machine_id
        and there.pid_namespace == here.pid_namespace == INITIAL_PID_NAMESPACE
    )
    return Reach.OVER if same_installation else Reach.ELSEWHERE


def _text(path: Path) -> str | None:
    try:
        return path.read_text("ascii").strip() or None
    except (OSError, ValueError):
        return None


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


def _digest(identity: str | None) -> str | None:
    """A hash of an id that must not be published: see machine-id(5)."""
    if identity is None:
        return None
    return hashlib.sha256(f"domyn-swarm {identity}".encode()).hexdigest()[:16]
