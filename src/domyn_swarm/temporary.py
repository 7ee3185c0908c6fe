"""Where this node keeps temporary files: what is set may be another machine's folder."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

_VARIABLE = "TMPDIR"
_SOCKETS_FIT = 40  # bytes; a socket's path has 107, of which Ray's and ZeroMQ's names take the rest


def settle_temporary_folder() -> str | None:
    """Unset `TMPDIR` where there is no such folder, or none to write to, for this program and those
    that it starts; what is to be said about it.

    Raises:
        SystemExit: nothing can be written anywhere; with a message.
    """
    chosen = os.environ.get(_VARIABLE)
    said = None
    if chosen is not None and not _usable(chosen):
        del os.environ[_VARIABLE]
        tempfile.tempdir = None
        said = f"TMPDIR={chosen} cannot be written to on this node: it is unset"
    try:
        tempfile.gettempdir()
    except FileNotFoundError as error:
        raise SystemExit(
            f"domyn-swarm: {os.uname().nodename} has no room for temporary files: /tmp is full or "
            f"cannot be written to ({error.strerror or error}). Set TMPDIR in backend.env."
        ) from None
    return said


def too_long_for_sockets() -> str | None:
    """What is to be said where engines may not get their sockets into the folder."""
    chosen = os.environ.get(_VARIABLE, "")
    if len(os.fsencode(chosen)) <= _SOCKETS_FIT:
        return None
    return f"TMPDIR={chosen} is long: sockets of engines may not fit ({_SOCKETS_FIT} bytes do)"


def _usable(folder: str) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError:
        return False
    return Path(folder).is_absolute()
