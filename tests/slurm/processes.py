"""What runs on this machine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import psutil


def running() -> Iterator[psutil.Process]:
    """Every process. `psutil.process_iter` remembers what it has seen: of a number that is used
    again, as happens after 32,768 processes, it may hold the earlier one, which cannot be killed.
    """
    for pid in psutil.pids():
        with contextlib.suppress(psutil.NoSuchProcess):
            yield psutil.Process(pid)
