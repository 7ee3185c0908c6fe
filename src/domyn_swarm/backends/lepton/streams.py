"""Copies the platform's logs into files of the swarm's folder."""

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
    """Bring the file of a log up to date. An empty log changes nothing.

    New text is appended to the file, so that a program that follows it reads no line twice. The
    file is replaced only if the log does not begin with its content.
    """
    private_dir(path.parent)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w+b") as file:
            file.writelines(chunk.encode() for chunk in chunks)
            size = file.tell()
            if _begins_with_file(file, path):
                _append_rest(path, file)
            elif size or not path.exists():
                file.flush()
                Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)


def _begins_with_file(whole: BinaryIO, path: Path) -> bool:
    """Whether the file at `path` is not empty, and the log `whole` begins with its content."""
    whole.seek(0)
    try:
        with path.open("rb") as existing:
            empty = True
            while block := existing.read(_BLOCK_BYTES):
                empty = False
                if whole.read(len(block)) != block:
                    return False
    except FileNotFoundError:
        return False
    return not empty


def _append_rest(path: Path, whole: BinaryIO) -> None:
    """Append the part of the log beyond the file's present end: other processes append, too."""
    with path.open("ab", buffering=0) as file:
        whole.seek(os.fstat(file.fileno()).st_size)
        shutil.copyfileobj(whole, file)


def follow(chunks: Iterator[str], path: Path) -> None:
    """Append a log's stream to its file on a thread, until the stream or this process ends.

    The stream begins at the log's beginning: the part that the file already has is skipped.
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
            _log.warning("stopped following %s: %s", path, error)
        except Exception:  # noqa: BLE001 - the boundary of a thread
            _log.exception("stopped following %s", path)

    private_dir(path.parent)
    threading.Thread(target=append, name=f"follow {path.name}", daemon=True).start()
