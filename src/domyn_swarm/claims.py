"""Files by which a process says that it is at work on something: bringing a swarm up, submitting a
job. A claim ends with its process: one that was killed leaves a file that keeps nobody out.
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
_STALE_S = 600.0  # without being renewed: a process that cannot be seen from here is gone


class Claim(Record):
    """Who is at work."""

    location: Location
    pid: int
    started_at: float  # see `ProcessId`


def claim(path: Path) -> None:
    """Say that this process is at work. One that may take longer than a few minutes renews it."""
    from domyn_swarm.process_identity import (  # looking at records does without
        this_host,
        this_process,
    )

    claimed = Claim(location=this_host(), **this_process().model_dump())
    write_private(path, claimed.model_dump_json())


def renew(path: Path) -> None:
    """Say that it still is. Raises nothing."""
    with contextlib.suppress(OSError):
        os.utime(path)


def release(path: Path) -> None:
    """Say that it is not any more. Raises nothing: a claim that cannot be taken away ends with this
    process.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        _log.warning("%s is left: %s", path, error)


def is_held(path: Path) -> bool:
    """Whether its process lives: where that can be seen from here; elsewhere, whether the claim
    was renewed lately. A file that is no claim is held by nobody; one that cannot be read may be.
    """
    try:
        found = Claim.model_validate_json(path.read_text("utf-8"))
        age_s = time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return False
    except OSError:
        return True
    except ValueError:
        return False
    from domyn_swarm.process_identity import host_reach, still_there

    where = host_reach(found.location)
    if where is Reach.ELSEWHERE:
        return age_s < _STALE_S
    process = ProcessId(pid=found.pid, started_at=found.started_at)
    return where is Reach.HERE and still_there(process)
