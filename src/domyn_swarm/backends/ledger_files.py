"""The records of a swarm's programs about their replicas' time, read and combined into allocations.

Each watchdog appends to a file of its own replica, in the swarm's folder: a line when it begins,
one for each change, one a minute; the file's modification time is its last sign of life. On Slurm
each task appends when its allocation began and ended. So the ledger is complete whatever process
was killed, including the collector.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from domyn_swarm.backends import gpu_time
from domyn_swarm.backends.gpu_time import Allocation, Note, Watch

_FILE = re.compile(r"^(replica|task)-(\d+)\.jsonl$")
_GRAIN_S = 1.0  # a watchdog's begin is exact to a tick, its task's to a second
_SAME_RUN_S = 60.0  # difference of a start's time between task and scheduler


class TaskRun(NamedTuple):
    """One allocation of a Slurm task, with the replicas in it."""

    job: str  # the task's id, `17_0`
    began: float
    ended: float | None
    replicas: tuple[int, ...]


class PlatformTimes(NamedTuple):
    """A scheduler's times of jobs, by their ids."""

    runs: Mapping[str, Sequence[tuple[float, float | None]]]  # begin, end; None: it still runs
    live: frozenset[str] | None = None  # running jobs; None: it could not be asked


NOTHING = PlatformTimes({})


class Written(NamedTuple):
    """All files of a swarm's ledger."""

    watches: Mapping[int, tuple[Watch, ...]]  # by replica, ordered by time
    gpus: Mapping[int, int]  # by replica
    tasks: Sequence[TaskRun]  # ordered by time; empty if no scheduler starts replicas


def read(folder: Path, *, notes: bool = True) -> Written:
    """Read the records of a swarm's programs; truncated lines are left out. Without `notes` only
    the parts from which allocations are built are read.
    """
    watches: dict[int, tuple[Watch, ...]] = {}
    gpus: dict[int, int] = {}
    tasks: list[TaskRun] = []
    try:
        files = [*folder.iterdir()]
    except OSError:
        files = []
    for file in files:
        known = _FILE.match(file.name)
        if known is None:
            continue
        number = int(known[2])
        if known[1] == "task":
            tasks.extend(_tasks(file))
        else:
            watches[number], gpus[number] = _watches(file, notes=notes)
    return Written(watches, gpus, sorted(tasks, key=lambda one: one.began))


def size_bytes(folder: Path) -> int:
    """The size of the files in bytes."""
    try:
        return sum(one.stat().st_size for one in os.scandir(folder))
    except OSError:
        return 0


class _Line(msgspec.Struct):
    """A watchdog's line: the first one has `began`, all others have `at`."""

    inc: str
    began: float | None = None
    before: float | None = None  # last sign of life of the previous watchdog
    gpus: int = 0
    beat: float = 5.0
    at: float = 0.0
    state: str = ""
    phase: str = ""
    busy: bool | None = None
    joules: float | None = None
    joules_at: float = 0.0


class _Process:
    """A watchdog while its lines are read."""

    def __init__(self, first: _Line, began: float) -> None:
        self.first, self.began, self.alive_until = first, began, began
        self.notes: list[Note] = []

    def watch(self) -> Watch:
        """Everything read of it."""
        notes = tuple(self.notes)
        return Watch(self.first.inc, self.began, self.alive_until, notes, self.first.beat)


def _watches(path: Path, *, notes: bool) -> tuple[tuple[Watch, ...], int]:
    """Without `notes`, only the last line of each watchdog is read, which is fast."""
    found: dict[str, _Process] = {}
    last: _Process | None = None
    try:
        alive = path.stat().st_mtime
        lines = _watch_lines(path.read_bytes(), notes=notes)
    except OSError:
        return (), 0
    for line in lines:
        if line.began is not None:
            if last is not None and line.before is not None:
                last.alive_until = max(last.alive_until, min(line.before, line.began))
            last = found[line.inc] = _Process(line, line.began)
        elif (own := found.get(line.inc)) is not None:
            own.notes.append(
                Note(line.at, line.state, line.phase, line.busy, line.joules, line.joules_at)
            )
            own.alive_until = max(own.alive_until, line.at)
    if last is not None:
        last.alive_until = max(last.alive_until, alive)
    return tuple(one.watch() for one in found.values()), 0 if last is None else last.first.gpus


def _watch_lines(content: bytes, *, notes: bool) -> Iterator[_Line]:
    decode = msgspec.json.Decoder(_Line).decode
    texts = content.split(b"\n")
    following = [*texts[1:], b""]
    for text, after in zip(texts, following, strict=True):
        if not (notes or b'"began"' in text or not after or b'"began"' in after):
            continue
        try:
            yield decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError):  # its writer was killed, or it is empty
            continue


class _TaskLine(msgspec.Struct):
    """A task's line: the first one has `began`, the others `ended`."""

    job: str = ""
    began: float | None = None
    ended: float | None = None
    replicas: tuple[int, ...] = ()


def _tasks(path: Path) -> Iterator[TaskRun]:
    current: TaskRun | None = None
    decode = msgspec.json.Decoder(_TaskLine).decode
    try:
        texts = path.read_bytes().split(b"\n")
    except OSError:
        return
    for text in texts:
        try:
            line = decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError):  # its writer was killed, or it is empty
            continue
        if line.began is not None:
            if current is not None:
                yield current
            current = TaskRun(line.job, line.began, None, line.replicas)
        elif line.ended is not None and current is not None:  # the last such line counts
            current = current._replace(ended=line.ended)
    if current is not None:
        yield current


# -- put together ------------------------------------------------------------------------------


def allocations(
    written: Written, now: float, reported: PlatformTimes = NOTHING
) -> dict[int, list[Allocation]]:
    """From when until when each replica had its GPUs, ordered by time.

    The scheduler's times take precedence over the task's. An allocation whose end was not recorded
    lasted as long as its watchdogs gave signs of life.
    """
    found: dict[int, list[Allocation]] = {replica: [] for replica in written.gpus}
    if not written.tasks and not reported.runs:
        for replica, watches in written.watches.items():
            found[replica] = [_of_process(one, written.gpus[replica], now) for one in watches]
    for run in _runs(written, reported):
        for replica in run.replicas:
            end = _end_of(run, written, now, reported)
            gpus = written.gpus.get(replica, max(written.gpus.values(), default=0))
            found.setdefault(replica, []).append(Allocation(run.began, end, gpus, run.job))
    return {replica: _apart(spans) for replica, spans in found.items()}


def _of_process(one: Watch, gpus: int, now: float) -> Allocation:
    return Allocation(one.began, None if one.lives(now) else one.alive_until, gpus)


def _runs(written: Written, reported: PlatformTimes) -> Iterator[TaskRun]:
    """Each run of a task once, with the scheduler's times where it has them."""
    replicas = {one.job: one.replicas for one in written.tasks}
    for run in written.tasks:
        if run.job not in reported.runs:
            yield run
    for job, runs in reported.runs.items():
        for begin, end in runs:
            own = [one for one in written.tasks if one.job == job]
            near = [one for one in own if abs(one.began - begin) <= _SAME_RUN_S]
            members = near[0].replicas if near else replicas.get(job, ())
            gone = reported.live is not None and job not in reported.live
            ended = near[0].ended if end is None and near and gone else end
            yield TaskRun(job, begin, ended, members)


def _end_of(run: TaskRun, written: Written, now: float, reported: PlatformTimes) -> float | None:
    if run.ended is not None:
        return run.ended
    if run.job in (reported.runs if reported.live is None else reported.live):
        return None  # accounting receives an end later than the queue
    later = [
        one.began
        for one in written.tasks
        if one.began > run.began and not {*one.replicas}.isdisjoint(run.replicas)
    ]  # of another job, too: a successor
    until = min(later, default=now)
    watches = [one for replica in run.replicas for one in written.watches.get(replica, ())]
    own = [one for one in watches if run.began - _GRAIN_S <= one.began < until - _GRAIN_S]
    if not later and reported.live is None and (not own or any(one.lives(now) for one in own)):
        return None
    return max([run.began, *(min(until, one.alive_until) for one in own)])


def _apart(spans: Iterable[Allocation]) -> list[Allocation]:
    """Ordered by time, and cut so that none overlaps the one before."""
    found: list[Allocation] = []
    for one in sorted(spans, key=lambda one: one.begin):
        if found:
            last = found[-1]
            if last.end is None or last.end > one.begin:
                found[-1] = last._replace(end=one.begin)
        found.append(one)
    return [one for one in found if one.end is None or one.end > one.begin]


def gpu_seconds(folder: Path, since: float, until: float) -> float:
    """GPU-seconds that a swarm's replicas held between two moments (seconds since the epoch), from
    the files in `ledger.written_folder`. No scheduler is asked. Blocking.
    """
    own = allocations(read(folder, notes=False), until)
    return sum(gpu_time.gpu_seconds(spans, since, until) for spans in own.values())
