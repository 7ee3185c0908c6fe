"""Reads files that other processes replace by renaming, also over a network file system."""

from __future__ import annotations

import errno
from pathlib import Path

_TRIES = 3  # a file may be replaced again while it is opened again


def read_replaced(path: Path, tries: int = _TRIES) -> str | None:
    """The content of a file in UTF-8; None if it does not exist.

    A client of NFS may have opened the file that was replaced meanwhile (`ESTALE`): it is opened
    again. Any other failure is raised: what cannot be read may well exist.

    Raises:
        OSError: it cannot be read.
        UnicodeDecodeError: it is not UTF-8.
    """
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno != errno.ESTALE or tries <= 1:
            raise
    return read_replaced(path, tries - 1)
