"""How long tests wait before they fail: the one place that decides it.

A wait costs its limit only where a test fails, so there is one limit for all of them, wide enough
for a machine that runs several tests side by side. The run measures once how fast the machine is;
a slower one gets more time. No test has a number of seconds of its own that decides whether it
passes.

`DOMYN_SWARM_TEST_PATIENCE` sets the factor instead of measuring it.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

import pytest

VARIABLE = "DOMYN_SWARM_TEST_PATIENCE"

_LIMIT_S = 90.0  # on a machine that starts the program below in `_REFERENCE_S`
_TEST_LIMITS = 5  # a test may wait that many times to the limit, then it hangs
_REFERENCE_S = 0.5
_MOST = 8.0
_PROGRAM = "import domyn_swarm.config, domyn_swarm.state"

T = TypeVar("T")


def pytest_configure() -> None:
    """Measure once per run, in the process that starts the others: they inherit the variable."""
    if VARIABLE not in os.environ:
        os.environ[VARIABLE] = f"{_measured():.2f}"


def pytest_report_header() -> str:
    """Say how slow the machine is."""
    return f"patience: {factor():g} x, waits fail after {limit_s():.0f} s"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that hangs ends with a traceback."""
    for item in items:
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(_TEST_LIMITS * limit_s()))


def _measured() -> float:
    """Starts of Python and of our imports are what most tests spend their time on; the faster of
    two, since the first may read from a cold disk.
    """
    took = []
    for _ in range(2):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", _PROGRAM], check=True)
        took.append(time.perf_counter() - began)
    return min(_MOST, max(1.0, min(took) / _REFERENCE_S))


def factor() -> float:
    """How much slower than the reference this machine is: at least 1."""
    return float(os.environ.get(VARIABLE, "1"))


def limit_s() -> float:
    """After how many seconds a wait has failed."""
    return _LIMIT_S * factor()


def scaled(seconds: float) -> float:
    """A setting of a program under test (a grace period, a silence) that a slow machine needs more
    of; it says how long something takes, not whether a test passes.
    """
    return seconds * factor()


def until(condition: Callable[[], T], *, every_s: float = 0.05) -> T:
    """Poll until `condition` returns something true, and return it.

    Raises:
        AssertionError: it did not within the limit.
    """
    deadline = time.monotonic() + limit_s()
    while not (value := condition()):
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {limit_s():.0f} s; last: {value!r}")
        time.sleep(every_s)
    return value


async def until_async(condition: Callable[[], Any], *, every_s: float = 0.01) -> Any:
    """As `until`, for a test whose event loop must go on meanwhile."""
    async with asyncio.timeout(limit_s()):
        while not (value := condition()):  # noqa: ASYNC110 - conditions signal nothing
            await asyncio.sleep(every_s)
    return value
