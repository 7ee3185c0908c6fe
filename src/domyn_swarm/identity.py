"""Which process it is. A pid is used again one day; when each began tells them apart, but the
clock may be set meanwhile: by NTP, by hand, after a laptop slept.
"""

from __future__ import annotations

import os

import psutil

from domyn_swarm.model import ProcessId

_TOLERANCE_S = 0.5


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
