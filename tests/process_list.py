"""All processes of this machine, for tests that look for what is left of a program."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import psutil


def running() -> Iterator[psutil.Process]:
    """Every process of this machine. `psutil.process_iter` remembers those that it has seen: of a
    pid that is used again it may hold the earlier one, with its start time; that cannot be killed.
    """
    for pid in psutil.pids():
        with contextlib.suppress(psutil.NoSuchProcess):
            yield psutil.Process(pid)


def words_of(process: psutil.Process) -> list[str]:
    """Its arguments; none once it has ended, also while nobody has waited for it."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []
