"""The end of a process in which a library's threads call into Python.

pyreqwest's thread wakes an event loop through its `call_soon_threadsafe`. In there asyncio releases
the interpreter's lock, whoever waited for the answer goes on, and a script may be over before the
thread has the lock again. An interpreter that ends does not let it return (before Python 3.14 it
unwinds the thread), and the process aborts: `PyGILState_Release`, exit code 134.
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
    """Have this process end only once no thread of a library is in the middle of Python code, or
    after 5 s: a thread that stays there for so long was not woken to leave.
    """
    atexit.register(_await_their_leaving)


def _await_their_leaving() -> None:
    until = time.monotonic() + _LEAVES_S
    time.sleep(_LOOK_S)  # who waits for the lock to enter, in which no code shows yet, gets it
    while _any_inside() and time.monotonic() < until:
        time.sleep(_LOOK_S)


def _any_inside() -> bool:
    """Whether a thread that Python did not start runs Python code now."""
    own = {thread.ident for thread in threading.enumerate()}
    return not own.issuperset(sys._current_frames())
