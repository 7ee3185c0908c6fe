"""The ledger of a swarm's GPUs as its programs wrote it: read back, and put together.

Each watchdog appends to a file of its own replica, in the swarm's folder: a line when it begins,
one for each change, one a minute, and the file's time is its last sign of life. On Slurm each task
appends when its allocation began and ended. So the ledger is whole whatever was killed, the
collector included. Which swarms there were is kept outside of their folders (`SwarmEntry`).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

from domyn_swarm.backends import gpu_time
from domyn_swarm.backends.gpu_time import Allocation, Note, Watch
from domyn_swarm.model import Record, utc_now
from domyn_swarm.paths import SwarmPaths, home, private_dir, private_file, write_private

_FILE = re.compile(r"^(replica|task)-(\d+)\.jsonl$")
_SAME_RUN_S = 60.0  # what a task and its scheduler say of one start


class SwarmEntry(Record):
    """A swarm that there is or was: `swarm.json` in its folder of `ledgers_dir`."""

    schema_version: Literal[1] = 1
    tag: str
    name: str
    backend: str
    user: str  # whose processes its programs are
    swarm_dir: str
    model: str
    gpus_per_replica: int
    created_at: datetime


class TaskRun(NamedTuple):
    """One allocation of a task of Slurm's, with the replicas in it."""

    job: str  # the task's id, `17_0`
    began: float
    ended: float | None
    replicas: tuple[int, ...]


class PlatformTimes(NamedTuple):
    """What a scheduler says of jobs by their ids."""

    runs: Mapping[str, Sequence[tuple[float, float | None]]]  # from, to; None: it goes on
    live: frozenset[str] | None = None  # jobs that run; None: it could not be asked


NOTHING = PlatformTimes({})


def ledgers_dir() -> Path:
    """What every swarm's GPUs were used for: outside every swarm, so that it outlives them."""
    return home() / "ledger"


def written_folder(paths: SwarmPaths, tag: str) -> Path:
    """Where the programs of the swarm of this tag write."""
    return paths.root / "ledger" / tag


def entry_folder(tag: str) -> Path:
    """Where the entry of a swarm is, and what is kept of it once it is over."""
    return ledgers_dir() / tag


def enter(entry: SwarmEntry, replicas: int) -> None:
    """Enter a swarm that is about to be launched with so many replicas.

    Raises:
        OSError: it cannot be written.
    """
    folder = private_dir(entry_folder(entry.tag))
    write_private(folder / "swarm.json", entry.model_dump_json(indent=2))
    want(entry.tag, replicas)


def want(tag: str, replicas: int, at: datetime | None = None) -> None:
    """Note that from now on a swarm wants so many replicas; 0: it has ended. A swarm of an earlier
    version has no entry, and gets none.

    Raises:
        OSError: it cannot be written.
    """
    folder = entry_folder(tag)
    if not folder.is_dir():
        return
    line = {"at": (at or utc_now()).timestamp(), "replicas": replicas}
    with private_file(folder / "wanted.jsonl").open("ab") as file:
        file.write(json.dumps(line).encode() + b"\n")


def entries() -> list[SwarmEntry]:
    """Every swarm of this home that was ever entered, the oldest first."""
    found = []
    try:
        folders = list(ledgers_dir().iterdir())
    except OSError:
        return []
    for folder in folders:
        try:
            text = (folder / "swarm.json").read_text("utf-8")
            found.append(SwarmEntry.model_validate_json(text))
        except (OSError, ValueError):
            continue
    return sorted(found, key=lambda one: one.created_at)


def wanted(tag: str, now: float) -> dict[int, list[tuple[float, float]]]:
    """From when until when each replica of a swarm was wanted."""
    found: dict[int, list[tuple[float, float]]] = {}
    lines = list(_lines(entry_folder(tag) / "wanted.jsonl"))
    ends = [*(float(line["at"]) for line in lines[1:]), now]
    for line, end in zip(lines, ends, strict=False):
        begin = float(line["at"])
        for replica in range(int(line["replicas"])):
            spans = found.setdefault(replica, [])
            if spans and spans[-1][1] == begin:
                spans[-1] = (spans[-1][0], end)
            else:
                spans.append((begin, end))
    return found


# -- what the programs wrote ------------------------------------------------------------------


class Written(NamedTuple):
    """All files of a swarm's ledger."""

    watches: Mapping[int, tuple[Watch, ...]]  # of each replica, in the order of time
    gpus: Mapping[int, int]  # of each replica
    tasks: Sequence[TaskRun]  # in the order of time; none where no scheduler starts replicas


def read(folder: Path) -> Written:
    """What a swarm's programs wrote; lines that were cut off are left out."""
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
            watches[number], gpus[number] = _watches(file)
    return Written(watches, gpus, sorted(tasks, key=lambda one: one.began))


def size_bytes(folder: Path) -> int:
    """How much there is to be read."""
    try:
        return sum(one.stat().st_size for one in os.scandir(folder))
    except OSError:
        return 0


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with path.open("rb") as file:
            for text in file:
                try:
                    line = json.loads(text)
                except ValueError:  # its writer was killed
                    continue
                if isinstance(line, dict):
                    yield line
    except OSError:
        return


def _watches(path: Path) -> tuple[tuple[Watch, ...], int]:
    found: dict[str, Watch] = {}
    notes: dict[str, list[Note]] = {}
    gpus, last = 0, None
    for line in _lines(path):
        name = str(line.get("inc"))
        if "began" in line:
            before = line.get("before")
            if last is not None and before is not None:
                found[last] = found[last]._replace(
                    alive_until=max(found[last].alive_until, min(before, line["began"]))
                )
            gpus = int(line.get("gpus", gpus))
            found[name] = Watch(name, line["began"], line["began"], (), line.get("beat", 5.0))
            notes[name], last = [], name
        elif name in found:
            notes[name].append(
                Note(
                    line["at"],
                    line["state"],
                    line.get("phase", ""),
                    line.get("busy"),
                    line.get("joules"),
                    line.get("joules_at", 0.0),
                )
            )
            if line["at"] > found[name].alive_until:
                found[name] = found[name]._replace(alive_until=line["at"])
    if last is not None:
        try:
            alive = path.stat().st_mtime
        except OSError:
            alive = found[last].alive_until
        found[last] = found[last]._replace(alive_until=max(found[last].alive_until, alive))
    return tuple(one._replace(notes=tuple(notes[name])) for name, one in found.items()), gpus


def _tasks(path: Path) -> Iterator[TaskRun]:
    current: TaskRun | None = None
    for line in _lines(path):
        if "began" in line:
            if current is not None:
                yield current
            replicas = tuple(map(int, line["replicas"]))
            current = TaskRun(str(line["job"]), float(line["began"]), None, replicas)
        elif "ended" in line and current is not None:  # the last such line counts
            current = current._replace(ended=float(line["ended"]))
    if current is not None:
        yield current


# -- put together ------------------------------------------------------------------------------


def allocations(
    written: Written, now: float, told: PlatformTimes = NOTHING
) -> dict[int, list[Allocation]]:
    """From when until when each replica had its GPUs, in the order of time.

    The scheduler's word counts before the task's. An allocation whose end nobody told lasted as
    long as its watchdogs gave signs of life.
    """
    found: dict[int, list[Allocation]] = {replica: [] for replica in written.gpus}
    if not written.tasks and not told.runs:
        for replica, watches in written.watches.items():
            found[replica] = [_of_process(one, written.gpus[replica], now) for one in watches]
    for run in _runs(written, told):
        for replica in run.replicas:
            end = _end_of(run, written, now, told)
            gpus = written.gpus.get(replica, max(written.gpus.values(), default=0))
            found.setdefault(replica, []).append(Allocation(run.began, end, gpus, run.job))
    return {replica: _apart(spans) for replica, spans in found.items()}


def _of_process(one: Watch, gpus: int, now: float) -> Allocation:
    return Allocation(one.began, None if one.lives(now) else one.alive_until, gpus)


def _runs(written: Written, told: PlatformTimes) -> Iterator[TaskRun]:
    """Each run of a task once: as the scheduler tells it, where it does."""
    replicas = {one.job: one.replicas for one in written.tasks}
    for run in written.tasks:
        if run.job not in told.runs:
            yield run
    for job, runs in told.runs.items():
        for begin, end in runs:
            own = [one for one in written.tasks if one.job == job]
            near = [one for one in own if abs(one.began - begin) <= _SAME_RUN_S]
            members = near[0].replicas if near else replicas.get(job, ())
            yield TaskRun(job, begin, end, members)


def _end_of(run: TaskRun, written: Written, now: float, told: PlatformTimes) -> float | None:
    if run.ended is not None:
        return run.ended
    if run.job in told.runs or (told.live is not None and run.job in told.live):
        return None
    later = [
        one.began
        for one in written.tasks
        if one.began > run.began and not {*one.replicas}.isdisjoint(run.replicas)
    ]  # of another job, too: a successor
    until = min(later, default=now)
    watches = [one for replica in run.replicas for one in written.watches.get(replica, ())]
    own = [one for one in watches if run.began <= one.began < until]
    if not later and told.live is None and (not own or any(one.lives(now) for one in own)):
        return None
    return max([run.began, *(min(until, one.alive_until) for one in own)])


def _apart(spans: Iterable[Allocation]) -> list[Allocation]:
    """In the order of time, none of which overlaps the one before."""
    found: list[Allocation] = []
    for one in sorted(spans, key=lambda one: one.begin):
        if found:
            last = found[-1]
            if last.end is None or last.end > one.begin:
                found[-1] = last._replace(end=one.begin)
        found.append(one)
    return [one for one in found if one.end is None or one.end > one.begin]


def gpu_seconds(folder: Path, since: float, until: float) -> float:
    """GPU-seconds that a swarm's replicas held between two moments (seconds since the epoch), by
    what its programs wrote: `written_folder`. No scheduler is asked. Blocking.
    """
    own = allocations(read(folder), until)
    return sum(gpu_time.gpu_seconds(spans, since, until) for spans in own.values())
