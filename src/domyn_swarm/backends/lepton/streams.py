"""Logs that the platform keeps, as files of the swarm's folder."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from domyn_swarm.errors import PlatformError
from domyn_swarm.logs import get_logger
from domyn_swarm.paths import private_dir

_log = get_logger(__name__)


def save(chunks: Iterator[str], path: Path) -> None:
    """Replace a log by what there is of it now; an empty answer replaces no log."""
    private_dir(path.parent)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.writelines(chunks)
            size = file.tell()
        if size or not path.exists():
            Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)


def follow(chunks: Iterator[str], path: Path) -> None:
    """Append to a log, from now on and for as long as this process lives.

    The stream begins with what the log held before: that much is left out.
    """
    known = path.stat().st_size if path.exists() else 0

    def append() -> None:
        left = known
        try:
            with path.open("ab", buffering=0) as file:
                for chunk in chunks:
                    data = chunk.encode()
                    file.write(data[left:])
                    left = max(0, left - len(data))
        except (OSError, PlatformError) as error:
            _log.warning("%s is not followed any more: %s", path, error)

    private_dir(path.parent)
    threading.Thread(target=append, name=f"follow {path.name}", daemon=True).start()
