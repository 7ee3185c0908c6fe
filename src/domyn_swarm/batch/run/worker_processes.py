"""Starts worker processes, talks to them and decides whether a run continues after one ends."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from typing_extensions import override

from domyn_swarm.batch.run.asking import RetryPolicy
from domyn_swarm.batch.run.link import Link, Report
from domyn_swarm.batch.run.runner import Encode, RunPolicy
from domyn_swarm.errors import JobError

_MOST = 10  # consecutive ends of workers that settled nothing, or that held the same row


class AfterDeath(Enum):
    """The reaction to a worker's end."""

    REPLACE = "replace"
    GO_ON_WITHOUT = "go on without"  # workers settle nothing in its place, and others are running
    GIVE_UP = "give up"


class WorkerDeaths:
    """Counts the ends of workers, and the rows that they held."""

    def __init__(self, workers: int) -> None:
        """`workers`: the number of workers, all of which may be preempted at the same moment."""
        self._most_idle = max(_MOST, workers)
        self._idle = 0  # consecutive ends of workers that had settled nothing
        self._of_rows: Counter[int] = Counter()  # by ordinal: of rows that were taken back
        self._suspects: list[int] = []

    def first_rows_settled(self) -> None:
        """Record that a worker has settled its first rows."""
        self._idle = 0

    def settled(self, ordinals: Iterable[int]) -> None:
        """Record settled rows: they ended no worker."""
        if self._of_rows:
            for ordinal in ordinals:
                self._of_rows.pop(ordinal, None)

    def count(self, *, settled_any: bool, left: Iterable[int], others: bool) -> AfterDeath:
        """Count another end, and return the reaction.

        Args:
            settled_any: the worker had settled rows.
            left: the ordinals of its unsettled rows.
            others: other workers are running that can take these rows.
        """
        left = list(left)
        self._of_rows.update(left)
        self._suspects = [ordinal for ordinal in left if self._of_rows[ordinal] > _MOST]
        self._idle = 0 if settled_any else self._idle + 1
        if self._suspects:
            return AfterDeath.GIVE_UP
        if self._idle <= self._most_idle:
            return AfterDeath.REPLACE
        return AfterDeath.GO_ON_WITHOUT if others else AfterDeath.GIVE_UP

    def reason(self, code: int) -> JobError:
        """Why the run gives up after the last counted end, which had this exit code."""
        if not self._suspects:
            return JobError(
                f"{self._idle} worker processes died one after the other and none of them settled "
                f"a row; the last ended with exit code {code}.",
                hint="The job's log says more. Finished rows are kept.",
            )
        which = f"Row {min(self._suspects)}"
        if len(self._suspects) > 1:
            others = len(self._suspects) - 1
            those = "the row that was" if others == 1 else f"one of {others} rows that were"
            which += f", or {those} handed out with it,"
        return JobError(
            f"{which} was with {_MOST + 1} worker processes that died, the last with exit code "
            f"{code}.",
            hint="The job's log says more. Finished rows are kept; with --workers 1 the row that "
            "kills them is easier to find.",
        )


class WorkerProcess(Protocol):
    """A started worker."""

    link: Link[Report]

    @property
    def name(self) -> str:
        """Its name in messages."""

    async def ended(self) -> int:
        """Wait for its end; returns its exit code, 0 if it finished its work."""

    def kill(self) -> None:
        """Kill it at once; does nothing if it has ended."""


class LocalWorker(WorkerProcess):
    """A process on this machine, at the other end of a socket pair."""

    def __init__(self, process: asyncio.subprocess.Process, link: Link[Report]) -> None:
        self.link = link
        self._process = process

    @property
    @override
    def name(self) -> str:
        """Its process id."""
        return f"worker process {self._process.pid}"

    @override
    async def ended(self) -> int:
        return await self._process.wait()

    @override
    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()


async def start_local(command: Callable[[int], Sequence[str]]) -> LocalWorker:
    """Start `command(descriptor)`, which gets its end of the link as that descriptor."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = await asyncio.create_subprocess_exec(
            *command(theirs.fileno()), pass_fds=[theirs.fileno()]
        )
    connection = await asyncio.open_unix_connection(sock=ours)
    return LocalWorker(process, Link(*connection, Report))  # type: ignore[arg-type]


@dataclass(frozen=True)
class WorkPlan:
    """How pending rows become results, in any process."""

    run_policy: RunPolicy
    retry_policy: RetryPolicy
    encode: Encode
    sync_rows: int = 20_000
    sync_s: float = 1.0
    notice: Callable[[str], None] = field(default=lambda _: None)


@dataclass(frozen=True)
class WorkerPlan:
    """Processes that share a run's work."""

    count: int
    start: Callable[[], Awaitable[WorkerProcess]]
