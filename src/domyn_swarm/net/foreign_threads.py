"""Delays the end of a process until no thread of a library is inside Python code.

pyreqwest's thread wakes an event loop through its `call_soon_threadsafe`. There asyncio releases
the interpreter's lock, the code that waited for the answer continues, and a script may end before
the thread has the lock again. An interpreter that ends does not let the thread return (before
Python 3.14 it unwinds the thread), and the process aborts: `PyGILState_Release`, exit code 134.
"""

from __future__ import annotations

import atexit
import functools
import sys
import threading
import time

_LEAVES_S = 5.0  # a thread needs the lock for microseconds; the machine may be busy
_LOOK_S = 0.001


@functools.cache
def await_at_exit() -> None:
    """Let this process end only once no thread of a library runs Python code, or after 5 s: a
    thread that stays for longer is not about to leave.
    """
    atexit.register(_await_their_leaving)


def _await_their_leaving() -> None:
    until = time.monotonic() + _LEAVES_S
    time.sleep(_LOOK_S)  # a thread that waits for the lock gets it, and its frame becomes visible
    while _any_inside() and time.monotonic() < until:
        time.sleep(_LOOK_S)


def _any_inside() -> bool:
    """Whether a thread that Python did not start runs Python code now."""
    own = {thread.ident for thread in threading.enumerate()}
    return not own.issuperset(sys._current_frames())
