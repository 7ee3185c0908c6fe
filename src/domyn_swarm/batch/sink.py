"""Results on their way to the disk: written at once, synced by rows or seconds."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Protocol

from domyn_swarm.batch.background import in_thread
from domyn_swarm.batch.rows import Result


class Keeper(Protocol):
    """A checkpoint, or a journal of one."""

    def append(self, results: Sequence[Result]) -> None:
        """Keep results: the death of the process loses none."""

    def sync(self) -> None:
        """Have them survive a loss of power.

        Raises:
            JobError: the disk does not take them.
        """


class SyncedSink:
    """Syncs what it keeps by rows or seconds, whichever comes first."""

    def __init__(self, keeper: Keeper, sync_rows: int) -> None:
        self._keeper = keeper
        self._sync_rows = sync_rows
        self._unsynced = 0
        self._enough = asyncio.Event()

    def append(self, results: Sequence[Result]) -> None:
        """See `runner.Sink.append`."""
        self._keeper.append(results)
        self._unsynced += len(results)
        if self._unsynced >= self._sync_rows:
            self._enough.set()

    async def keep_syncing(self, every_s: float) -> None:
        """Sync until cancelled; what the last sync missed is synced when the journal closes.

        Raises:
            JobError: the disk does not take the results.
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
