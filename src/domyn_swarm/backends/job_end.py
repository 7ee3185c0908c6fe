"""The end of a job: the wait for it, the wrapper that records it, and the reader of that record."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from domyn_swarm.backends.protocols import ComputeSpec
from domyn_swarm.errors import PlatformError, PlatformUnavailable, words_of
from domyn_swarm.logs import get_logger
from domyn_swarm.model import (
    ExitRecord,
    JobHandle,
    JobStatus,
)
from domyn_swarm.paths import JobPaths
from domyn_swarm.probing import Clock, Deadline, Observation, Phase, wait_until
from domyn_swarm.replaced_files import read_replaced

_log = get_logger(__name__)
_TAIL_BYTES = 64 * 1024


def wait_for_end(
    probe: Callable[[], JobStatus],
    *,
    timeout_s: float | None,
    every_s: float,
    clock: Clock = time,
) -> JobStatus:
    """`ComputeBackend.wait`, by polling the job's status at an interval. A platform that does not
    answer is asked again.

    Raises:
        PlatformUnavailable: it did not answer once within the time.
    """
    status: JobStatus | None = None
    away = PlatformUnavailable("the platform was not asked")

    def observe() -> Observation:
        nonlocal status, away
        try:
            status = probe()
        except PlatformUnavailable as error:
            away = error
            return Observation(Phase.UNKNOWN, error.message)
        return Observation(Phase.READY if status.final else Phase.STARTING)

    limit_s = math.inf if timeout_s is None else timeout_s
    wait_until(observe, deadline=Deadline(limit_s, limit_s), every_s=every_s, clock=clock)
    if status is None:
        raise away
    return status


def probe_each(
    probe: Callable[[JobHandle], JobStatus], handles: Sequence[JobHandle]
) -> dict[str, JobStatus]:
    """`ComputeBackend.probe_all` for platforms that are asked for each job separately."""
    found = {}
    for handle in handles:
        try:
            found[handle.job_id] = probe(handle)
        except PlatformError as error:
            _log.warning("the status of %s is not known: %s", handle.job_id, error.message)
    return found


def exit_wrapper(python: str, spec: ComputeSpec, argv: Sequence[str]) -> list[str]:
    """The command that runs a job's program under the wrapper that records how it ended."""
    limit_s = spec.resources.shortest_limit_s
    return [
        *(python, "-m", "domyn_swarm.backends.exit_wrapper"),
        *(() if limit_s is None else (f"--time-limit={limit_s:g}",)),
        *(str(JobPaths(Path(spec.job_dir)).exit), spec.cwd, "--", *argv),
    ]


def read_tail(path: Path, begin: int = 0) -> str:
    """The end of a log, as far back as it may explain an end; empty if there is no log. Output
    before the byte offset `begin` is left out.
    """
    try:
        with path.open("rb") as file:
            file.seek(max(begin, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            return file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""


def read_exit(path: Path) -> ExitRecord | None:
    """The exit record of a job's wrapper; None while it does not exist.

    Raises:
        PlatformUnavailable: it cannot be read, so that it is not known how the job ended.
    """
    try:
        text = read_replaced(path)
    except OSError as error:
        raise unreadable(error, path) from error
    return None if text is None else ExitRecord.model_validate_json(text)


def unreadable(error: OSError, path: Path) -> PlatformUnavailable:
    """The error of a job one of whose files is there and cannot be read."""
    return PlatformUnavailable(
        words_of(error, path), hint="What became of the job is not known until it can be read."
    )
