"""How a coordinator starts a worker, talks to it and sees it end, wherever it runs."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Sequence
from typing import Protocol

from domyn_swarm.batch.link import Link, Report


class WorkerProcess(Protocol):
    """One worker that was started."""

    link: Link[Report]

    @property
    def name(self) -> str:
        """What messages call it."""

    async def ended(self) -> int:
        """Wait for its end; return its exit code, 0 where it came to the end of its work."""

    def kill(self) -> None:
        """End it at once; nothing happens when it has ended."""


class LocalWorker:
    """A process on this machine, at the other end of a socket pair."""

    def __init__(self, process: asyncio.subprocess.Process, link: Link[Report]) -> None:
        self.link = link
        self._process = process

    @property
    def name(self) -> str:
        """Its process id."""
        return f"worker process {self._process.pid}"

    async def ended(self) -> int:
        """See `WorkerProcess`."""
        return await self._process.wait()

    def kill(self) -> None:
        """See `WorkerProcess`."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()


async def start_local(command: Callable[[int], Sequence[str]]) -> LocalWorker:
    """Start `command(descriptor)`, which finds its end of the link at the descriptor."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = await asyncio.create_subprocess_exec(
            *command(theirs.fileno()), pass_fds=[theirs.fileno()]
        )
    connection = await asyncio.open_unix_connection(sock=ours)
    return LocalWorker(process, Link(*connection, Report))  # type: ignore[arg-type]
