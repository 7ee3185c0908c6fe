"""The platform's keys in a job's file, and the same flags of the commands that submit jobs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated

from domyn_swarm.jobs.run_options import ChangeableOptions
from domyn_swarm.planning.plan import JobResources, PlatformOptions
from domyn_swarm.record import After, about


def finite(read: Callable[[str], float], text: str, otherwise: str) -> float:
    """The value that `read` returns for a text, in its units.

    Raises:
        ValueError: it cannot be read, or means no limit (0). `otherwise`: what omitting it does.
    """
    value = read(text)
    if value == math.inf:
        raise ValueError(f"must be more than 0; leave it out {otherwise}")
    return value


def _limited(read: Callable[[str], float], value: str | None, otherwise: str) -> str | None:
    if value is not None:
        finite(read, value, otherwise)
    return value


def _time_limit(value: str | None) -> str | None:
    from domyn_swarm.config.units import time_limit_s  # here: `--help` needs no reader of values

    return _limited(time_limit_s, value, "for the default")


def _duration(value: str | None) -> str | None:
    from domyn_swarm.config.units import duration_s

    return _limited(duration_s, value, "to go on until the rows are settled")


def _memory(value: str | None) -> str | None:
    from domyn_swarm.config.units import memory_gb

    return _limited(memory_gb, value, "for the default")


class ResourceKeys(PlatformOptions):
    """The resources that a job requests, in the form that users write."""

    mem: Annotated[
        str | None,
        After(_memory),
        about("Memory for the job: 8G, 500M.", metavar="SIZE"),
    ] = None
    time_limit: Annotated[
        str | None,
        After(_time_limit),
        about(
            "When to end it: 12:00:00, 90 (minutes), 2-00:00:00.", flag="--time", metavar="LIMIT"
        ),
    ] = None
    stop_after: Annotated[
        str | None,
        After(_duration),
        about(
            "End it so long after it began, all its runs together: 3d, 12h, 2-12:00:00.",
            metavar="TIME",
        ),
    ] = None


class ChangeKeys(ChangeableOptions, ResourceKeys):
    """The settings that may change when a job runs again, in the form that users write."""


def resources_of(keys: ResourceKeys, *, detached: bool) -> JobResources:
    """The resources in the units of programs. `detached`: no command follows the job."""
    from domyn_swarm.config.units import duration_s, memory_gb, time_limit_s

    same = {name: getattr(keys, name) for name in PlatformOptions.field_names()}
    return JobResources(
        **same,
        detached=detached,
        memory_gb=None if keys.mem is None else memory_gb(keys.mem),
        time_limit_s=None if keys.time_limit is None else time_limit_s(keys.time_limit),
        stop_after_s=None if keys.stop_after is None else duration_s(keys.stop_after),
    )
