"""The growing end of a checkpoint: results are written at once, and synced by rows or seconds."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from domyn_swarm.batch.background import in_thread
from domyn_swarm.batch.checkpoint.frames import encode_frame
from domyn_swarm.batch.checkpoint.segments import checkpoint_files, file_order, merge_writer, seal
from domyn_swarm.batch.durable_files import sync_folder, write_whole
from domyn_swarm.batch.outcomes.row_outcomes import Result
from domyn_swarm.errors import JobError
from domyn_swarm.logs import get_logger

_log = get_logger(__name__)

JOURNAL_ROWS = 20_000
JOURNAL_BYTES = 64 << 20


class Journal:
    """The file to which one process appends; sealed into a segment when it has grown enough.

    `append` returns when the operating system has the bytes: a killed process loses nothing. `sync`
    makes them survive the machine. Sealing happens on a thread of its own.

    A failed sync is never forgotten: the system reports it only once, so every later call raises
    it.
    """

    def __init__(self, folder: Path, generation: int, writer: int = 0) -> None:
        """Begin a file.

        Raises:
            JobError: the folder cannot be read or written.
        """
        self._folder = folder
        self._writer = (generation, writer)
        self._descriptor = -1
        self._rotated: dict[int, Path] = {}  # files that no longer grow and are not synced yet
        self._named = False  # the folder was synced since the newest file was created
        self._failure: JobError | None = None
        self._lock = threading.Lock()  # descriptors against the syncing and the sealing thread
        try:
            keys = map(file_order, checkpoint_files(folder))
            self._sequence = max((key[2] for key in keys if key[:2] == self._writer), default=-1)
            self._open_next()
        except OSError as error:
            raise _cannot_write(folder, error) from error
        self._sealer = ThreadPoolExecutor(1, thread_name_prefix="seal")
        self._sealing: list[Future[None]] = []

    def _open_next(self) -> None:
        generation, writer = self._writer
        name = f"{generation:06d}-{writer:03d}-{self._sequence + 1:08d}.journal"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
        self._descriptor = os.open(self._folder / name, flags, 0o600)
        self._path = self._folder / name
        self._sequence += 1
        self._named = False
        self._bytes = 0
        self._rows = 0

    def append(self, results: Sequence[Result]) -> None:
        """Write one frame.

        Raises:
            JobError: the disk refuses it (full, quota, gone); the journal ends with the last whole
                frame and nothing before it is lost.
        """
        self._check()
        frame = encode_frame(results, self._writer[0])
        try:
            write_whole(self._descriptor, frame)
        except OSError as error:
            self._take_back()
            raise _cannot_write(self._path, error) from error
        self._bytes += len(frame)
        self._rows += len(results)
        if self._rows >= JOURNAL_ROWS or self._bytes >= JOURNAL_BYTES:
            self._rotate()

    def _take_back(self) -> None:
        """Cut off a part of a frame: results appended after it could not be read."""
        try:
            os.ftruncate(self._descriptor, self._bytes)
        except OSError as error:
            self._failure = _cannot_write(self._path, error)

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def sync(self) -> None:
        """Make everything that was appended survive a loss of power.

        Raises:
            JobError: the disk refuses it; network file systems report only now that they are full.
        """
        with self._lock:
            if self._descriptor >= 0:
                opened = [*self._rotated.items(), (self._descriptor, self._path)]
                copies = [(os.dup(descriptor), path) for descriptor, path in opened]
            else:
                copies = []  # closed, to be synced next
            named, sequence = self._named, self._sequence
        for descriptor, path in copies:
            self._sync(descriptor, path)
            self._close(descriptor)
        if copies and not named:
            self._sync_names(sequence)
        self._check()

    def _sync(self, descriptor: int, path: Path) -> None:
        """Sync a file; an error becomes the journal's."""
        try:
            os.fsync(descriptor)
        except OSError as error:
            self._failure = _cannot_write(path, error)

    def _sync_names(self, sequence: int) -> None:
        try:
            sync_folder(self._folder)
        except OSError as error:
            self._failure = _cannot_write(self._folder, error)
            return
        with self._lock:
            self._named = sequence == self._sequence

    def _rotate(self) -> None:
        full, old = self._path, self._descriptor
        with self._lock:
            try:
                self._open_next()
            except OSError as error:  # the results are written; the old file stays in use
                raise _cannot_write(self._folder, error) from error
            self._rotated[old] = full
        self._sealing = [one for one in self._sealing if not one.done() or one.exception()]
        self._sealing.append(self._sealer.submit(self._finish, full, old))

    def _finish(self, journal: Path, descriptor: int) -> None:
        """Sync a file that no longer grows, and seal it."""
        self._sync(descriptor, journal)
        with self._lock:
            del self._rotated[descriptor]
        self._close(descriptor)
        self._seal(journal)

    def _seal(self, journal: Path) -> None:
        if self._failure is not None:
            return  # after a failed sync the content on that disk is unknown
        try:
            seal(journal)
            merge_writer(self._folder, *self._writer)
        except OSError as error:  # the files are synced, and as good as fewer files
            _log.warning("cannot seal %s: %s", journal, error)

    def close(self) -> None:
        """Sync, close, and seal the last file. Every row stays readable if sealing fails.

        Raises:
            JobError: the disk refuses some results. Everything is closed nevertheless.
        """
        try:
            self.sync()
        finally:
            with self._lock:
                descriptor, self._descriptor = self._descriptor, -1
            self._close(descriptor)
            self._sealing.append(self._sealer.submit(self._seal, self._path))
            self._sealer.shutdown(wait=True)
            for sealed in self._sealing:
                sealed.result()
        self._check()

    def _close(self, descriptor: int) -> None:
        try:
            os.close(descriptor)
        except OSError as error:
            self._failure = _cannot_write(self._path, error)


def _cannot_write(path: Path, error: OSError) -> JobError:
    return JobError(
        f"Cannot write the checkpoint {path}: {error.strerror or error}.",
        hint="Make room and submit the same job again: finished rows are kept.",
    )


class Keeper(Protocol):
    """A checkpoint, or a journal of one."""

    def append(self, results: Sequence[Result]) -> None:
        """Keep results: the death of the process loses none."""

    def sync(self) -> None:
        """Make appended results survive a loss of power.

        Raises:
            JobError: the disk refuses them.
        """


class SyncedSink:
    """Syncs results after a number of rows or seconds, whichever comes first."""

    def __init__(self, keeper: Keeper, sync_rows: int) -> None:
        self._keeper = keeper
        self._sync_rows = sync_rows
        self._unsynced = 0
        self._enough = asyncio.Event()

    def append(self, results: Sequence[Result]) -> None:
        """Keep results: it is the sink of a `runner.Runner`."""
        self._keeper.append(results)
        self._unsynced += len(results)
        if self._unsynced >= self._sync_rows:
            self._enough.set()

    async def keep_syncing(self, every_s: float) -> None:
        """Sync until cancelled; later results are synced when the journal closes.

        Raises:
            JobError: the disk refuses the results.
        """
        while True:
            # Not `wait_for`: before Python 3.12 it may swallow the task's own cancellation.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(every_s):
                    await self._enough.wait()
            self._enough.clear()
            if self._unsynced:
                self._unsynced = 0
                await in_thread(self._keeper.sync)
