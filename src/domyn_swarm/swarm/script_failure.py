"""Scripts that ended before they could start a program of ours: the last line of their log."""

from __future__ import annotations

from pathlib import Path

from domyn_swarm.backends.base import read_tail
from domyn_swarm.paths import SwarmPaths

_OURS = "domyn-swarm: "


def script_failure(paths: SwarmPaths) -> tuple[str, Path] | None:
    """What the first of a swarm's scripts that could not begin says of it, and the log that has it;
    None: each has begun, as far as is known.
    """
    for log in (paths.endpoint_log, *sorted(paths.slurm_logs.glob("replica-*.log"))):
        last = read_tail(log).strip().rpartition("\n")[2]
        if last.startswith(_OURS):
            return last.removeprefix(_OURS), log
    return None
