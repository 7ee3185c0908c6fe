"""How many files this process may have open, connections among them.

A shell's soft limit is 1,024 as a rule (`ulimit -Sn`); the hard limit, up to which every process
may raise its own, is often far higher (`ulimit -Hn`). A request in flight holds one file in who
sends it, and two in a router. Slurm starts jobs with the soft limit of the submitting shell.
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

ENOUGH = 65_536  # a process that asks for no more gets no more: some look at every number
EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE})
"""Errors of opening: this process, or this machine, has no file left. They say nothing of who was
to be reached.
"""
_UNLIMITED = 1 << 20  # what is taken for no limit at all; also the most that Linux allows
_SPARE = 64  # files a run opens beside its connections: checkpoint, input, output
_OPEN_FILES = Path("/proc/self/fd")

_raising = threading.Lock()
_raised_by = 0  # of `raised` bodies that run now
_before: tuple[int, int] = (0, 0)
_set: tuple[int, int] = (0, 0)


class Limits(NamedTuple):
    """Files that a process may have open."""

    soft: int  # now
    hard: int  # up to which it may raise that


def limits() -> Limits:
    """Those of this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Limits(_finite(soft), _finite(hard))


def raise_limit(needed: int = ENOUGH) -> int:
    """Raise the soft limit to what is needed, as far as the hard one lets; children inherit it.

    Returns:
        The soft limit from now on.
    """
    found = limits()
    wanted = min(max(needed, ENOUGH), found.hard)
    if wanted > found.soft:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with contextlib.suppress(ValueError, OSError):  # a sandbox may refuse what is allowed
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return limits().soft


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """The same for a while, in a process that is not ours: a notebook's. The last of several that
    leave puts back what was there.
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
    """How many connections this process may open beside what it has open and needs itself."""
    try:
        in_use = sum(1 for _ in _OPEN_FILES.iterdir())
    except OSError:  # not Linux
        in_use = _SPARE
    return max(1, limits().soft - in_use - _SPARE)


def none_left() -> bool:
    """Whether no file can be opened now."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return error.errno in EXHAUSTED
    return False


def _finite(limit: int) -> int:
    unlimited = limit == resource.RLIM_INFINITY or limit < 0
    return _UNLIMITED if unlimited else min(limit, _UNLIMITED)
