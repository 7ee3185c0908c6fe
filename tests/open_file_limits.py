"""This process with few open files, for a while."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def soft_limit(files: int) -> Iterator[None]:
    """No number of a file is higher than that."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def highest() -> int:
    """Number of an open file of this process; with a Ray cluster in other tests, some hundred."""
    return max(int(one.name) for one in Path("/proc/self/fd").iterdir())


@contextlib.contextmanager
def no_files_left() -> Iterator[None]:
    """Nothing can be opened."""
    taken: list[int] = []
    with soft_limit(highest() + 2):
        try:
            with contextlib.suppress(OSError):
                while True:
                    taken.append(os.open(os.devnull, os.O_RDONLY))
            yield
        finally:
            for file in taken:
                os.close(file)
