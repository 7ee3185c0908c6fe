"""Reads the logs of swarms and jobs: merged in the order of time, and followed as they grow."""

from __future__ import annotations

import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, NamedTuple

from domyn_swarm.errors import JobNotFound, StateError
from domyn_swarm.model import JobHandle
from domyn_swarm.paths import JobPaths, SwarmPaths
from domyn_swarm.services.requests import LogRequest
from domyn_swarm.services.swarms import SwarmService
from domyn_swarm.state import JobRecord, SwarmRecord, SwarmStore
from domyn_swarm.swarm.factory import rehydrate
from domyn_swarm.swarm.submitter import JobSubmitter
from domyn_swarm.swarm.whereabouts import is_elsewhere

_EVERY_S = 0.25
_ENDED_EVERY = 8  # reads of the files per check whether the swarm or job has ended
_BLOCK_BYTES = 64 * 1024
_TIME = re.compile(
    r"(?:(?P<year>\d{4})-)?(?P<month>\d\d)-(?P<day>\d\d)[T ]"
    r"(?P<clock>\d\d:\d\d:\d\d)(?:[.,](?P<fraction>\d{1,6}))?(?P<zone>Z|[+-]\d\d:?\d\d)?"
)
_TIME_WITHIN = 80  # characters from the beginning of a line that are searched for its time


class Line(NamedTuple):
    """A line of a log. Lines are sorted by time; lines of the same time keep their order."""

    at: float  # seconds since the epoch
    text: str


@dataclass(frozen=True)
class Log:
    """One file to read, and which of its lines to show."""

    path: Path
    label: str  # printed before each line, unless empty
    group: str = ""  # logs of a group share the number of last lines
    wanted: Callable[[str], bool] = lambda _line: True


@dataclass
class _Tail:
    """The position in a file up to which it was read."""

    log: Log
    offset: int = 0
    inode: int = 0
    at: float = 0.0  # of the last line
    head: bool = field(default=True)  # nothing has been read yet

    def last(self, lines: int, *, whole: bool) -> list[Line]:
        """The last lines to show; with `whole` without a line that is still being written."""
        try:
            with self.log.path.open("rb") as file:
                self._opened(file.fileno())
                content, self.offset = _end_of(file, lines, self.log.wanted)
        except FileNotFoundError:
            return []
        if whole:
            kept = content[: content.rfind(b"\n") + 1]
            self.offset -= len(content) - len(kept)
            content = kept
        shown = self._lines(content)
        return shown[-lines:] if lines else []

    def fresh(self) -> list[Line]:
        """The complete lines written since the last read; all lines if the file was replaced."""
        try:
            with self.log.path.open("rb") as file:
                if self._opened(file.fileno()) or file.seek(0, 2) < self.offset:
                    self.offset = 0
                file.seek(self.offset)
                content = file.read()
        except FileNotFoundError:
            return []
        content = content[: content.rfind(b"\n") + 1]
        self.offset += len(content)
        return self._lines(content)

    def _opened(self, descriptor: int) -> bool:
        """Record the file's inode. Returns whether the file was replaced since the last read."""
        status = os.fstat(descriptor)
        before, self.inode = self.inode, status.st_ino
        self.at = self.at or status.st_ctime
        return before not in (0, status.st_ino)

    def _lines(self, content: bytes) -> list[Line]:
        texts = content.decode("utf-8", "replace").splitlines()
        times = [time_of(text) for text in texts]
        at = next((time_s for time_s in times if time_s is not None), self.at)
        if self.head or at > self.at:  # lines before the first time get that time
            self.at = at
        self.head = False
        lines = []
        for text, time_s in zip(texts, times, strict=True):
            self.at = self.at if time_s is None else time_s
            if self.log.wanted(text):
                lines.append(Line(self.at, text))
        return lines


class LogReader:
    """Reads several logs as one. The end of each log is fixed when the reader is created.

    With `ended` it also reads new lines, until `ended` returns True. Meanwhile it calls `logs`
    again, because replicas may be added.
    """

    def __init__(
        self,
        logs: Callable[[], Sequence[Log]],
        last_lines: int,
        ended: Callable[[], bool] | None = None,
    ) -> None:
        self._logs = logs
        self._last_lines = last_lines
        self._ended = ended
        self._tails: dict[Path, _Tail] = {}
        self._last = self._first()

    def lines(self) -> Iterator[str]:
        """The last lines, and then new lines."""
        yield from _shown(self._last)
        reads = 0
        while self._ended is not None:
            reads += 1
            over = reads % _ENDED_EVERY == 0 and self._ended()
            yield from _shown(self._fresh())
            if over:
                return
            time.sleep(_EVERY_S)

    def _first(self) -> list[tuple[Line, str]]:
        groups: dict[str, list[tuple[Line, str]]] = {}
        for log in self._logs():
            tail = self._tails[log.path] = _Tail(log)
            own = tail.last(self._last_lines, whole=self._ended is not None)
            groups.setdefault(log.group, []).extend((line, log.label) for line in own)
        last: list[tuple[Line, str]] = []
        for lines in groups.values():
            last += deque(_in_order(lines), self._last_lines)
        return last

    def _fresh(self) -> list[tuple[Line, str]]:
        for log in self._logs():
            if log.path not in self._tails:
                self._tails[log.path] = _Tail(log)
        return [(line, tail.log.label) for tail in self._tails.values() for line in tail.fresh()]


def _shown(lines: list[tuple[Line, str]]) -> Iterator[str]:
    for line, label in _in_order(lines):
        yield f"[{label}] {line.text}" if label else line.text


def _in_order(lines: Iterable[tuple[Line, str]]) -> list[tuple[Line, str]]:
    return sorted(lines, key=lambda labelled: labelled[0].at)


def _end_of(file: BinaryIO, lines: int, wanted: Callable[[str], bool]) -> tuple[bytes, int]:
    """The end of a file with at least `lines` wanted lines, and its size. Reads no more of it."""
    size = start = file.seek(0, os.SEEK_END)
    blocks: list[bytes] = []  # complete lines, each decoded once; the last block first
    rest: list[bytes] = []  # the end of a line that begins in an earlier block; likewise
    matches = 0
    while start > 0 and lines > 0 and matches <= lines:
        step = min(_BLOCK_BYTES, start)
        start -= step
        file.seek(start)
        block = file.read(step)
        begins = block.find(b"\n") + 1 if start > 0 else 0
        if start > 0 and not begins:
            rest.append(block)
            continue
        whole = block[begins:] + b"".join(reversed(rest))
        blocks.append(whole)
        rest = [block[:begins]]
        matches += _count(whole, wanted)
    return b"".join(reversed(blocks)), size


def _count(content: bytes, wanted: Callable[[str], bool]) -> int:
    return sum(wanted(line) for line in content.decode("utf-8", "replace").splitlines())


def time_of(line: str) -> float | None:
    """The time in the beginning of a line, in seconds since the epoch: `2026-01-31T10:00:00Z`,
    `2026-01-31 10:00:00,123` or `01-31 10:00:00`. Without a zone it is local time.
    """
    match = _TIME.search(line[:_TIME_WITHIN])
    if match is None:
        return None
    year = match["year"] or str(datetime.now(UTC).astimezone().year)
    fraction = (match["fraction"] or "0").ljust(6, "0")
    zone = "+00:00" if match["zone"] == "Z" else match["zone"] or ""
    text = f"{year}-{match['month']}-{match['day']}T{match['clock']}.{fraction}{zone}"
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


# The lines of `watchdog.log` that report a replica's state.
_STATE = re.compile(
    r"\S+Z (starting|ready|unhealthy|restarting|draining|exited|failed)( \w+=|\s*$)"
)


def swarm_logs(request: LogRequest, store: SwarmStore | None = None) -> Iterator[str]:
    """The last lines of a swarm's logs; with `follow` also new lines, until the swarm has ended.

    Raises:
        SwarmNotFound, JobNotFound: there is no swarm or job of that name.
        StateError: there is no such log; or no name was given, and not exactly one swarm is live.
        PlatformError: the platform keeps the log and did not return it.
    """
    store = store or SwarmStore.open()
    if request.source == "job":
        job = store.job(request.job_id or "")
        if request.name not in (None, job.swarm):
            record = store.swarm(request.name)
            raise JobNotFound(
                f"The job {job.job_id} does not belong to {record.name}.",
                hint=f"It belongs to {job.swarm or 'no swarm'}. Run domyn-swarm job logs "
                f"{job.job_id}",
            )
        return job_log(job.job_id, last_lines=request.last_lines, follow=request.follow)
    record = store.swarm(request.name or SwarmService(store).only_live())
    swarm = rehydrate(record)
    paths = swarm.paths
    if request.source == "replica" and record.phase.live and not is_elsewhere(record):
        whole = range(swarm.plan.layout.replicas)
        wanted = whole if request.replica is None else [request.replica]
        swarm.backend.fetch_logs(swarm.handle, wanted, follow=request.follow)

    def logs() -> Sequence[Log]:
        return _logs_of(paths, request)

    if not request.follow and not any(log.path.exists() for log in logs()):
        raise _no_log(f"of {record.name}", paths.logs, _replicas(paths))
    ended = _until_over(store, record) if request.follow else None
    return LogReader(logs, request.last_lines, ended).lines()


def job_log(
    ref: str | JobHandle, *, last_lines: int, follow: bool = False, store: SwarmStore | None = None
) -> Iterator[str]:
    """The last lines of a job's log; with `follow` also new lines, until the job has ended.

    Raises:
        JobNotFound: there is no such job.
        StateError: the job has written no log yet (without `follow`).
    """
    store = store or SwarmStore.open()
    record = store.job(ref.job_id if isinstance(ref, JobHandle) else ref)
    path = JobPaths(Path(record.job_dir)).log
    JobSubmitter(store).fetch_log(record.job_id, follow=follow)
    if not follow and not path.exists():
        raise _no_log(f"The job {record.job_id}", path.parent)
    ended = _until_ended(store, record) if follow else None
    return LogReader(lambda: [Log(path, "")], last_lines, ended).lines()


def _until_over(store: SwarmStore, record: SwarmRecord) -> Callable[[], bool]:
    def over() -> bool:
        """Whether the swarm has ended, or another one has its name."""
        now = store.swarm(record.name)
        return now.tag != record.tag or not now.phase.live

    return over


def _until_ended(store: SwarmStore, record: JobRecord) -> Callable[[], bool]:
    submitter = JobSubmitter(store)
    return lambda: submitter.refresh(store.job(record.job_id)).status.final


def _no_log(whose: str, place: Path, replicas: Sequence[int] = ()) -> StateError:
    wrote = f"Replicas with a log: {', '.join(map(str, replicas))}. " if replicas else ""
    return StateError(f"There is no such log {whose}.", hint=f"{wrote}All logs lie in {place}.")


def _logs_of(paths: SwarmPaths, request: LogRequest) -> list[Log]:
    if request.source == "endpoint":
        return [Log(paths.endpoint_log, "endpoint"), Log(paths.router_log, "router", "router")]
    replicas = _replicas(paths)
    wanted = replicas if request.replica is None else [request.replica]
    several = len(wanted) > 1 or (request.replica is None and request.follow)
    logs = []
    for index in wanted:
        name = f"replica {index}" if several else ""
        if request.source == "watchdog":
            logs.append(Log(paths.watchdog_log(index), name, str(index)))
            continue
        watchdog = f"{name} watchdog".strip()
        logs.append(Log(paths.engine_log(index), name, str(index)))
        logs.append(Log(paths.watchdog_log(index), watchdog, str(index), _reports_state))
    return logs


def _reports_state(line: str) -> bool:
    return _STATE.match(line) is not None


def _replicas(paths: SwarmPaths) -> list[int]:
    """The replicas that have written a log, also those that were stopped since."""
    folders = paths.replica_logs(0).parent.glob("*")
    return sorted(int(folder.name) for folder in folders if folder.name.isdecimal())
