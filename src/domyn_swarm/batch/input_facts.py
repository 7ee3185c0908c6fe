"""What a look at each file of a job finds, and its checksum where that is asked for: taken once,
kept with the job, and believed for as long as the file is the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Self

import msgspec
import pyarrow as pa

from domyn_swarm.batch.input_files import InputFile
from domyn_swarm.logs import get_logger
from domyn_swarm.paths import private_file

_log = get_logger(__name__)

_AT_ONCE = 32  # most of a look is waiting for a disk, or for a store
_TELL_S = 5.0
_CHUNK_BYTES = 1 << 20


class Look(NamedTuple):
    """One file."""

    schema: pa.Schema  # of text: the names, and what its cells are; empty where there is nothing
    rows: int


class _Kept(msgspec.Struct, array_like=True):
    path: str
    version: str
    schema: int  # which of them
    rows: int


class _Document(msgspec.Struct):
    schemas: list[bytes]
    files: list[_Kept]
    digests: dict[str, tuple[str, str]] = {}  # by path: the file's version, and its SHA-256


class InputFacts:
    """The looks at a job's files, those of an earlier program among them."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, Look]] = {}
        self._digests: dict[str, tuple[str, str]] = {}

    @classmethod
    def load(cls, path: Path) -> Self:
        """What was kept in a file; nothing where it cannot be read."""
        facts = cls()
        try:
            document = msgspec.msgpack.decode(path.read_bytes(), type=_Document)
            schemas = [pa.ipc.read_schema(pa.py_buffer(one)) for one in document.schemas]
            facts._known = {
                one.path: (one.version, Look(schemas[one.schema], one.rows))
                for one in document.files
            }
            facts._digests = document.digests
        except (OSError, msgspec.DecodeError, pa.ArrowException, IndexError):
            return cls()
        return facts

    def save(self, path: Path) -> None:
        """Keep them in a file.

        Raises:
            OSError: it cannot be written.
        """
        at: dict[pa.Schema, int] = {}
        files = [
            _Kept(name, version, at.setdefault(look.schema, len(at)), look.rows)
            for name, (version, look) in self._known.items()
        ]
        schemas = [one.serialize().to_pybytes() for one in at]
        private_file(path).write_bytes(
            msgspec.msgpack.encode(_Document(schemas, files, self._digests))
        )

    def digest(self, file: InputFile) -> str:
        """The SHA-256 of what a file holds.

        Raises:
            OSError: it cannot be read.
        """
        version = _version(file)
        known = self._digests.get(str(file))
        if version and known is not None and known[0] == version:
            return known[1]
        digest = hashlib.sha256()
        with contextlib.closing(file.open()) as opened:
            while chunk := opened.read(_CHUNK_BYTES):
                digest.update(chunk)
        self._digests[str(file)] = version, digest.hexdigest()
        return digest.hexdigest()

    def looks(
        self,
        files: Sequence[InputFile],
        look: Callable[[InputFile], Look],
        *,
        side_by_side: bool = False,
    ) -> list[Look]:
        """A look at each file, in their order; what takes long is told in the log.

        Raises:
            Exception: what a look raises, of the first file that it does for.
        """

        def one(file: InputFile) -> Look:
            version = _version(file)
            known = self._known.get(str(file))
            if version and known is not None and known[0] == version:
                return known[1]
            found = look(file)
            self._known[str(file)] = version, found
            return found

        found: list[Look] = []
        told = time.monotonic()
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="files") as pool:
            try:
                for each in pool.map(one, files) if side_by_side else map(one, files):
                    found.append(each)
                    if len(found) < len(files) and time.monotonic() - told > _TELL_S:
                        told = time.monotonic()
                        _log.warning("looked at %d of %d files", len(found), len(files))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return found


def _version(file: InputFile) -> str:
    """What changes when the file does; nothing where that cannot be known."""
    try:
        if file.system is not None:
            named = "" if "http" in file.system.protocol else file.system.ukey(file.path)
            return str(named)  # fsspec takes what HTTP serves for what never changes
        found = os.stat(file.path)  # noqa: PTH116 - ten thousand times
    except Exception:  # noqa: BLE001 - file systems raise errors of libraries of their own
        return ""
    return f"{found.st_size}-{found.st_mtime_ns}"
