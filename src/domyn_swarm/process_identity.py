"""Which process it is, and which host. A pid is used again one day; when each began tells them
apart, but the clock may be set meanwhile: by NTP, by hand, after a laptop slept. And a pid means
something only on its host, within one boot and one PID namespace.
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
    """The process that has this pid now.

    Its start counts from the boot of this machine, in steps of 0.01 s, as Linux has it (`starttime`
    in proc(5)); psutil adds the time of the boot, which moves whenever the clock is set.

    Raises:
        psutil.NoSuchProcess: none has it.
    """
    while True:
        booted = psutil.boot_time()
        began = psutil.Process(pid).create_time() - booted
        if psutil.boot_time() == booted:
            return ProcessId(pid=pid, started_at=round(began, 2))


def this_process() -> ProcessId:
    """The one that runs this."""
    return identify(os.getpid())


def still_there(process: ProcessId) -> bool:
    """Whether it has not ended, or is a zombie yet: a later one with its pid is another."""
    try:
        return abs(identify(process.pid).started_at - process.started_at) < _TOLERANCE_S
    except psutil.NoSuchProcess:
        return False


def this_host() -> Location:
    """Where processes that this one starts will run."""
    return Location(
        kind="host",
        name=socket.gethostname(),
        boot_id=_text(_BOOT_ID),
        pid_namespace=_inode(_PID_NAMESPACE),
        machine_id=_digest(_text(_MACHINE_ID)),
    )


def host_reach(there: Location, here: Location | None = None) -> Reach:
    """What can be known here (default: of this process) of processes that were started there.

    Within one boot and one PID namespace all processes are visible, whatever the host is called
    now. A host that was restarted since has none of them any more; but the same name is no proof
    of that: containers, cloned machines and images share names. It counts as restarted only when
    it is the same installation, and neither there nor here is a container.
    """
    here = this_host() if here is None else here
    if there.kind != "host":
        return Reach.ELSEWHERE
    if there.boot_id is None or here.boot_id is None:  # a system that does not provide it
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
    """The id itself is not to be shown around: see machine-id(5)."""
    if identity is None:
        return None
    return hashlib.sha256(f"domyn-swarm {identity}".encode()).hexdigest()[:16]
