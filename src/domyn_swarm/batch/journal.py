"""The growing end of a checkpoint."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from domyn_swarm.batch.frames import encode_frame
from domyn_swarm.batch.merging import merge_writer
from domyn_swarm.batch.rows import Result
from domyn_swarm.batch.segments import checkpoint_files, file_order, seal
from domyn_swarm.errors import JobError
from domyn_swarm.logs import get_logger

_log = get_logger(__name__)

JOURNAL_ROWS = 20_000
JOURNAL_BYTES = 64 << 20


class Journal:
    """The file that one process appends to now; sealed into a segment when it has grown enough.

    `append` returns when the operating system has the bytes: a killed process loses nothing.
    `sync` makes them survive the machine. Sealing happens on a thread of its own.
    """

    def __init__(self, folder: Path, generation: int, writer: int = 0) -> None:
        self._folder = folder
        self._writer = (generation, writer)
        keys = map(file_order, checkpoint_files(folder))
        self._sequence = max((key[2] for key in keys if key[:2] == self._writer), default=-1)
        self._descriptor = -1
        self._lock = threading.Lock()  # descriptor against the syncing thread
        self._sealer = ThreadPoolExecutor(1, thread_name_prefix="seal")
        self._sealing: list[Future[None]] = []
        self._open_next()

    def _open_next(self) -> None:
        self._sequence += 1
        generation, writer = self._writer
        self._path = self._folder / f"{generation:06d}-{writer:03d}-{self._sequence:08d}.journal"
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
        frame = encode_frame(results, self._writer[0])
        try:
            written = os.write(self._descriptor, frame)
            if written != len(frame):
                os.ftruncate(self._descriptor, self._bytes)
                raise OSError(None, f"only {written} of {len(frame)} bytes were taken")
        except OSError as error:
            raise _cannot_write(self._path, error) from error
        self._bytes += len(frame)
        self._rows += len(results)
        if self._rows >= JOURNAL_ROWS or self._bytes >= JOURNAL_BYTES:
            self._rotate()

    def sync(self) -> None:
        """Have everything that was appended survive a loss of power.

        Raises:
            JobError: the disk does not take it: network file systems say only now that it is full.
        """
        with self._lock:
            if self._descriptor < 0:
                return  # closed, and synced then
            descriptor = os.dup(self._descriptor)
        try:
            os.fsync(descriptor)
        except OSError as error:
            raise _cannot_write(self._path, error) from error
        finally:
            os.close(descriptor)

    def _rotate(self) -> None:
        full, old = self._path, self._descriptor
        with self._lock:
            self._open_next()
        os.close(old)
        self._sealing = [one for one in self._sealing if not one.done() or one.exception()]
        self._sealing.append(self._sealer.submit(self._seal, full))

    def _seal(self, journal: Path) -> None:
        try:
            seal(journal)
            merge_writer(self._folder, *self._writer)
        except OSError as error:  # the files stay and are as good as fewer ones
            _log.warning("cannot seal %s: %s", journal, error)

    def close(self) -> None:
        """Sync, close, and seal what is left. Every row stays readable if sealing fails.

        Raises:
            JobError: the disk does not take what was appended last. All is closed nevertheless.
        """
        try:
            self.sync()
        finally:
            with self._lock:
                os.close(self._descriptor)
                self._descriptor = -1
            self._sealing.append(self._sealer.submit(self._seal, self._path))
            self._sealer.shutdown(wait=True)
            for sealed in self._sealing:
                sealed.result()


def _cannot_write(path: Path, error: OSError) -> JobError:
    return JobError(
        f"Cannot write the checkpoint {path}: {error.strerror or error}.",
        hint="Make room and submit the same job again: what is finished is kept.",
    )
