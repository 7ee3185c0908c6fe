"""How a coordinator starts workers, talks to them and sees them end, and which deaths a run goes
on after.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from domyn_swarm.batch.run.asking import RetryPolicy
from domyn_swarm.batch.run.link import Link, Report
from domyn_swarm.batch.run.runner import Encode, RunPolicy
from domyn_swarm.errors import JobError

_MOST = 10  # deaths in succession of workers that settled nothing, or that held the same row


class AfterDeath(Enum):
    """What is to be done about a worker that died."""

    REPLACE = "replace"
    GO_ON_WITHOUT = "go on without"  # its successors settle nothing, and others are at work
    GIVE_UP = "give up"


class WorkerDeaths:
    """What came of the rows between deaths."""

    def __init__(self, workers: int) -> None:
        """`workers`: how many there are to be; all of them may be pre-empted at the same moment."""
        self._most_idle = max(_MOST, workers)
        self._idle = 0  # deaths in succession of workers that had settled nothing
        self._of_rows: Counter[int] = Counter()  # by ordinal: of rows that were taken back
        self._suspects: list[int] = []

    def first_rows_settled(self) -> None:
        """A worker that had settled nothing until now has settled rows."""
        self._idle = 0

    def settled(self, ordinals: Iterable[int]) -> None:
        """These rows killed nobody."""
        if self._of_rows:
            for ordinal in ordinals:
                self._of_rows.pop(ordinal, None)

    def count(self, *, settled_any: bool, left: Iterable[int], others: bool) -> AfterDeath:
        """Count one more death, and judge it.

        Args:
            settled_any: the worker had settled rows.
            left: the ordinals of those it held and did not settle.
            others: others are at work that can take these rows.
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
        """Why to give up after the death that was counted last, which was with this exit code."""
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


@dataclass(frozen=True)
class WorkPlan:
    """How pending rows become results, in whichever process."""

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
