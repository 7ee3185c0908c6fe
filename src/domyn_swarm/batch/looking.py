"""A look at each of many files, side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from domyn_swarm.logs import get_logger

_log = get_logger(__name__)
_File = TypeVar("_File")
_Found = TypeVar("_Found")

_AT_ONCE = 32  # most of a look is waiting for a disk, or for a store
_TELL_S = 5.0


def looked_at(files: Sequence[_File], look: Callable[[_File], _Found]) -> list[_Found]:
    """What a look at each file finds, in their order. What takes long is told in the log.

    Raises:
        Exception: what a look raises, of the first file that it does for.
    """
    if len(files) == 1:
        return [look(files[0])]
    found: list[_Found] = []
    told = time.monotonic()
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="files") as pool:
        try:
            for one in pool.map(look, files):
                found.append(one)
                if time.monotonic() - told > _TELL_S:
                    told = time.monotonic()
                    _log.warning("looked at %d of %d files", len(found), len(files))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return found
