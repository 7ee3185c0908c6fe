"""The node's folder for temporary files. An inherited `TMPDIR` may not exist on the node."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

_VARIABLE = "TMPDIR"
_MAX_FOLDER = 40  # bytes; a socket's path has at most 107, and Ray's and ZeroMQ's names need 67


def settle_temporary_folder() -> str | None:
    """Unset `TMPDIR` if it is not a writable folder, for this program and its children.

    Returns a message if it did so.

    Raises:
        SystemExit: no temporary folder is writable; with a message.
    """
    chosen = os.environ.get(_VARIABLE)
    message = None
    if chosen is not None and not _usable(chosen):
        del os.environ[_VARIABLE]
        tempfile.tempdir = None
        message = f"TMPDIR={chosen} cannot be written to on this node: it is unset"
    try:
        tempfile.gettempdir()
    except FileNotFoundError as error:
        raise SystemExit(
            f"domyn-swarm: {os.uname().nodename} has no space for temporary files: /tmp is full or "
            f"cannot be written to ({error.strerror or error}). Set TMPDIR in backend.env."
        ) from None
    return message


def too_long_for_sockets() -> str | None:
    """A warning if the paths of engines' sockets in `TMPDIR` may be too long; None: they fit."""
    chosen = os.environ.get(_VARIABLE, "")
    if len(os.fsencode(chosen)) <= _MAX_FOLDER:
        return None
    return f"TMPDIR={chosen} is long: sockets of engines may not fit ({_MAX_FOLDER} bytes do)"


def _usable(folder: str) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError:
        return False
    return Path(folder).is_absolute()
