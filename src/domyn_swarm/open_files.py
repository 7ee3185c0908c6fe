"""The number of files that this process may have open, connections included.

A shell's soft limit is usually 1,024 (`ulimit -Sn`); the hard limit, up to which a process may
raise its soft limit, is often far higher (`ulimit -Hn`). A request in flight uses one file in the
process that sends it, and two in a router. Slurm starts jobs with the soft limit of the submitting
shell.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ENOUGH = 65_536  # higher only on request: some programs iterate over all possible descriptors
EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE})
"""Errors because this process or machine has no file left, and not because of the peer of a
connection.
"""
_UNLIMITED = 1 << 20  # used for an unlimited limit; also the most that Linux allows
_SPARE = 64  # files that a run opens in addition to connections: checkpoint, input, output
_OPEN_FILES = Path("/proc/self/fd")

_raising = threading.Lock()
_raised_by = 0  # number of `raised` blocks that run now
_before: tuple[int, int] = (0, 0)
_set: tuple[int, int] = (0, 0)


class Limits(NamedTuple):
    """Limits of a process's open files."""

    soft: int  # the limit that applies
    hard: int  # up to which the process may raise the soft limit


def limits() -> Limits:
    """The limits of this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Limits(_finite(soft), _finite(hard))


def raise_limit(needed: int = ENOUGH) -> int:
    """Raise the soft limit to `needed`, or to the hard limit if that is lower.

    Child processes inherit it.

    Returns:
        The new soft limit.
    """
    current = limits()
    wanted = min(max(needed, ENOUGH), current.hard)
    if wanted > current.soft:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with contextlib.suppress(ValueError, OSError):  # a sandbox may refuse it
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return limits().soft


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Raise the soft limit during a block, in a process of the user's such as a notebook.

    Of several concurrent blocks the last one restores the original limit.
    """
    global _raised_by, _before, _set  # noqa: PLW0603 - a limit of the whole process
    with _raising:
        if not _raised_by:
            _before = resource.getrlimit(resource.RLIMIT_NOFILE)
            raise_limit()
            _set = resource.getrlimit(resource.RLIMIT_NOFILE)
        _raised_by += 1
    try:
        yield
    finally:
        with _raising:
            _raised_by -= 1
            unchanged = resource.getrlimit(resource.RLIMIT_NOFILE) == _set
            if not _raised_by and unchanged:
                resource.setrlimit(resource.RLIMIT_NOFILE, _before)


def connections() -> int:
    """The number of further connections that this process may open."""
    try:
        in_use = sum(1 for _ in _OPEN_FILES.iterdir())
    except OSError:  # not Linux
        in_use = _SPARE
    return max(1, limits().soft - in_use - _SPARE)


def none_left() -> bool:
    """Whether this process cannot open any file now."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return error.errno in EXHAUSTED
    return False


def _finite(limit: int) -> int:
    unlimited = limit == resource.RLIM_INFINITY or limit < 0
    return _UNLIMITED if unlimited else min(limit, _UNLIMITED)
