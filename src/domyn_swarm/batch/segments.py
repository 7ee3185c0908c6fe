"""The files of a checkpoint: journals that grow, segments that do not change any more.

Names are `<generation>-<sequence>.journal` and `.segment`; a later generation or sequence wins
where two files hold the same row. A file belongs to the one driver that created it.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Sequence
from pathlib import Path

from domyn_swarm.batch.frames import encode_frame, read_results, scan_frames
from domyn_swarm.batch.rows import Result
from domyn_swarm.errors import JobError
from domyn_swarm.logs import get_logger

_log = get_logger(__name__)

_NAME = re.compile(r"^(\d{6})-(\d{8})\.(journal|segment)$")
SEGMENT_FRAME_ROWS = 2048
JOURNAL_ROWS = 20_000
JOURNAL_BYTES = 64 << 20


def file_order(path: Path) -> tuple[int, int, bool]:
    """Sort key: generation, sequence, and a segment after the journal it was made from."""
    match = _NAME.match(path.name)
    if match is None:
        raise ValueError(f"{path} is not a file of a checkpoint")
    return int(match[1]), int(match[2]), match[3] == "segment"


def checkpoint_files(folder: Path) -> list[Path]:
    """The journals and segments in a folder, from the weakest claim to the strongest."""
    return sorted((path for path in folder.iterdir() if _NAME.match(path.name)), key=file_order)


def void_path(folder: Path, generation: int) -> Path:
    """Exists when the errors that this generation recorded do not count any more."""
    return folder / f"{generation:06d}.void"


class Journal:
    """The file that one driver appends to now; sealed into a segment when it has grown enough.

    `append` returns when the operating system has the bytes: a killed process loses nothing.
    `sync` makes them survive the machine. Sealing happens on a thread of its own.
    """

    def __init__(self, folder: Path, generation: int) -> None:
        self._folder = folder
        self._generation = generation
        mine = [key[1] for key in map(file_order, checkpoint_files(folder)) if key[0] == generation]
        self._sequence = max(mine, default=-1)
        self._descriptor = -1
        self._lock = threading.Lock()  # descriptor against the syncing thread
        self._sealing: list[threading.Thread] = []
        self._open_next()

    def _open_next(self) -> None:
        self._sequence += 1
        name = f"{self._generation:06d}-{self._sequence:08d}.journal"
        self._path = self._folder / name
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
        self._descriptor = os.open(self._path, flags, 0o600)
        self._bytes = 0
        self._rows = 0

    def append(self, results: Sequence[Result]) -> None:
        """Write one frame.

        Raises:
            JobError: the disk does not take it (full, quota, gone); the journal ends with the
                last whole frame and nothing before it is lost.
        """
        frame = encode_frame(results)
        try:
            written = os.write(self._descriptor, frame)
            if written != len(frame):
                os.ftruncate(self._descriptor, self._bytes)
                raise OSError(None, f"only {written} of {len(frame)} bytes were taken")
        except OSError as error:
            raise JobError(
                f"Cannot write the checkpoint {self._path}: {error.strerror or error}.",
                hint="Make room and submit the same job again: what is finished is kept.",
            ) from error
        self._bytes += len(frame)
        self._rows += len(results)
        if self._rows >= JOURNAL_ROWS or self._bytes >= JOURNAL_BYTES:
            self._rotate()

    def sync(self) -> None:
        """Have everything that was appended survive a loss of power."""
        with self._lock:
            if self._descriptor < 0:
                return  # closed, and synced then
            descriptor = os.dup(self._descriptor)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _rotate(self) -> None:
        full, old = self._path, self._descriptor
        with self._lock:
            self._open_next()
        os.close(old)
        self._sealing = [thread for thread in self._sealing if thread.is_alive()]
        thread = threading.Thread(target=self._seal, args=(full,), name="seal", daemon=True)
        thread.start()
        self._sealing.append(thread)

    def _seal(self, journal: Path) -> None:
        try:
            seal(journal)
        except OSError as error:  # the journal stays and is as good as a segment
            _log.warning("cannot seal %s: %s", journal, error)

    def close(self) -> None:
        """Sync, close, and seal what is left. Every row stays readable if sealing fails."""
        try:
            self.sync()
        except OSError as error:  # the rows are in the file all the same, for whoever reads it now
            _log.warning("cannot sync %s: %s", self._path, error)
        with self._lock:
            os.close(self._descriptor)
            self._descriptor = -1
        for thread in self._sealing:
            thread.join()
        self._seal(self._path)


def seal(journal: Path) -> None:
    """Turn a journal that nobody appends to into a segment; an empty one just goes.

    The segment appears whole (temporary file, fsync, rename) before the journal goes, so that
    a crash in between leaves both, which is harmless.
    """
    results = _all_results(journal)
    if results:
        results.sort(key=lambda result: result.ordinal)
        temporary = journal.with_suffix(".sealing")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        with os.fdopen(os.open(temporary, flags, 0o600), "wb") as file:
            for start in range(0, len(results), SEGMENT_FRAME_ROWS):
                chunk = results[start : start + SEGMENT_FRAME_ROWS]
                file.write(encode_frame(chunk, compress=True))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(journal.with_suffix(".segment"))
    journal.unlink()


def _all_results(path: Path) -> list[Result]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return [result for ref in scan_frames(path) for result in read_results(descriptor, ref)]
    finally:
        os.close(descriptor)
