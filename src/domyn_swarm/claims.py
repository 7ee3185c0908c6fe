"""Claims: files with which a process marks a swarm that it starts, or a job that it submits. A
claim ends with its process: the file that a killed process leaves excludes no other process.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from domyn_swarm.logs import get_logger
from domyn_swarm.model import Location, ProcessId, Reach, Record
from domyn_swarm.paths import write_private

_log = get_logger(__name__)

RENEW_S = 30.0
_STALE_S = 600.0  # after which a claim of another host that was not renewed has ended


class Claim(Record):
    """The process that holds a claim."""

    location: Location
    pid: int
    started_at: float  # see `ProcessId`


def claim(path: Path) -> None:
    """Claim `path` for this process. Renew a claim that is held longer than a few minutes."""
    from domyn_swarm.process_identity import (  # commands that only read do not load psutil
        this_host,
        this_process,
    )

    claimed = Claim(location=this_host(), **this_process().model_dump())
    write_private(path, claimed.model_dump_json())


def renew(path: Path) -> None:
    """Renew the claim of this process. Raises nothing."""
    with contextlib.suppress(OSError):
        os.utime(path)


def release(path: Path) -> None:
    """Release the claim of this process. Raises nothing: a claim whose file cannot be deleted ends
    with the process.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        _log.warning("cannot delete %s: %s", path, error)


def is_held(path: Path) -> bool:
    """Whether a claim is held: its process runs, or, on another host, it was renewed lately.

    A file that is not a claim is not held; a file that cannot be read counts as held.
    """
    try:
        current = Claim.model_validate_json(path.read_text("utf-8"))
        age_s = time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return False
    except OSError:
        return True
    except ValueError:
        return False
    from domyn_swarm.process_identity import host_reach, still_there

    reach = host_reach(current.location)
    if reach is Reach.ELSEWHERE:
        return age_s < _STALE_S
    process = ProcessId(pid=current.pid, started_at=current.started_at)
    return reach is Reach.HERE and still_there(process)
