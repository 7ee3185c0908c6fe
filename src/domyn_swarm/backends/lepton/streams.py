"""Logs that the platform keeps, as files of the swarm's folder."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from domyn_swarm.errors import PlatformError
from domyn_swarm.logs import get_logger
from domyn_swarm.paths import private_dir

_log = get_logger(__name__)
_BLOCK_BYTES = 64 * 1024


def save(chunks: Iterator[str], path: Path) -> None:
    """Bring a log to what there is of it now; an empty answer changes nothing.

    What was there stays in its file and grows, so that whoever reads along sees no line twice;
    only a log that began anew takes the place of the old one.
    """
    private_dir(path.parent)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w+b") as file:
            file.writelines(chunk.encode() for chunk in chunks)
            size = file.tell()
            if _begins(file, path):
                _grow(path, file)
            elif size or not path.exists():
                file.flush()
                Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)


def _begins(whole: BinaryIO, path: Path) -> bool:
    """Whether the file at the path holds something, and a log begins with it."""
    whole.seek(0)
    try:
        with path.open("rb") as known:
            empty = True
            while block := known.read(_BLOCK_BYTES):
                empty = False
                if whole.read(len(block)) != block:
                    return False
    except FileNotFoundError:
        return False
    return not empty


def _grow(path: Path, whole: BinaryIO) -> None:
    """Append what of the log lies beyond the file's end by now: others may append, too."""
    with path.open("ab", buffering=0) as file:
        whole.seek(os.fstat(file.fileno()).st_size)
        shutil.copyfileobj(whole, file)


def follow(chunks: Iterator[str], path: Path) -> None:
    """Append to a log, from now on and for as long as this process lives.

    The stream begins with what the log held before: what the file has of it already is left out.
    """

    def append() -> None:
        at = 0
        try:
            with path.open("ab", buffering=0) as file:
                for chunk in chunks:
                    data = chunk.encode()
                    written = os.fstat(file.fileno()).st_size
                    file.write(data[max(0, written - at) :])
                    at += len(data)
        except (OSError, PlatformError) as error:
            _log.warning("%s is not followed any more: %s", path, error)
        except Exception:  # noqa: BLE001 - a thread says its own end
            _log.exception("%s is not followed any more", path)

    private_dir(path.parent)
    threading.Thread(target=append, name=f"follow {path.name}", daemon=True).start()
