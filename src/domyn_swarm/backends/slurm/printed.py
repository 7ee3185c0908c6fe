"""What Slurm's commands print, in versions from 20.11 to 26.05. Pure: text in, values out.

What each version printed is recorded in the tests, and every function here is run over it.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import NamedTuple

# Of `sbatch --parsable`; a site's wrapper may print more around it.
_SUBMITTED = re.compile(r"^[ \t]*(\d+)(?:;([\w.-]+))?[ \t\r]*$", re.MULTILINE)
_CLUSTER_NAME = re.compile(r"^ClusterName\s*=\s*(\S+)", re.MULTILINE)
_NODE_ADDRESS = re.compile(r"\bNodeAddr=(\S+)")
_ERROR = re.compile(r"^[\w.-]+: error: (.*)$")
_WARNING = re.compile(r"^[\w.-]+: warning: (.*)$")
_PROGRAM = re.compile(r"^(?:sbatch|srun|scontrol|squeue|sacct|scancel): (?:error: )?")
_NOTHING = "it printed nothing"
_MOST_LINES = 3  # of a message in no known form
_START = re.compile(r"Job \d+ to start at ")
# From 26.05 on `OverSubscribe=EXCLUSIVE` of slurm.conf is shown as `Exclusive=NODE`, and
# `ExclusiveTopo` as `Exclusive=TOPO`. `Exclusive=USER` keeps other users out, not one's own jobs.
_WHOLE_NODES = re.compile(
    r"\b(?:OverSubscribe=EXCLUSIVE|Exclusive=(?:NODE|TOPO)|ExclusiveTopo=YES)\b"
)
_THERE = re.compile(r"(?:idle|mixed|allocated|completing)[~#%$@+^-]*$")
# What slurmstepd writes to a job's output. From 26.05 on its name is not in front of it: then the
# rest must be Slurm's own words, since programs write lines of that form too.
_MEMORY_KILL = re.compile(
    r"^slurmstepd\S*: error: .*(?:oom.kill|\bexceeded (?:\w+ )?memory limit).*$"
    r"|^\[[\d:.T-]{19,}\] error: (?:Detected \d+ oom.kill event"
    r"|(?:Step|Job)Id=\S+ exceeded (?:\w+ )?memory limit).*$"
    r"|^srun: error: .*\b(?:out.of.memory|oom.kill).*$",  # of a step
    re.IGNORECASE | re.MULTILINE,
)
_CANCELLED = re.compile(
    r"^(?:slurmstepd\S*: |\[[\d:.T-]{19,}\] )error: \*\*\* (?:JOB|STEP) .*$", re.MULTILINE
)


def submitted(text: str) -> tuple[str, str] | None:
    """The id of the job that `sbatch --parsable` reports, and the cluster or nothing: the last
    line that is one, whatever else is printed around it. None: there is no such line.
    """
    found = _SUBMITTED.findall(text)
    return found[-1] if found else None


def refusal(errors: str, output: str = "") -> str:
    """Why a command refused, in one line: every line that says `error:`, by which sites' filters
    speak, and the last line; without any such line, what a site's wrapper printed instead.
    """
    lines = _lines(errors) or _lines(output)
    reported = [found[1] for line in lines if (found := _ERROR.match(line))]
    chosen = [*reported, *(lines[-1:] if reported else lines[-_MOST_LINES:])]
    return "; ".join(dict.fromkeys(_PROGRAM.sub("", line) for line in chosen)) or _NOTHING


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def start_of(errors: str) -> str:
    """When and where a job could start, of `sbatch --test-only`, in Slurm's words."""
    lines = _lines(errors)
    said = next((line for line in lines if _START.search(line)), lines[-1] if lines else _NOTHING)
    return _PROGRAM.sub("", said)


def start_time(said: str) -> str | None:
    """The time in what `start_of` returns, as Slurm writes it; None: it would not start."""
    found = _START.search(said)
    return said[found.end() :].split(maxsplit=1)[0] if found and said[found.end() :] else None


def warnings(errors: str) -> tuple[str, ...]:
    """What a command that did what it was told warned of, each once."""
    found = (_WARNING.match(line) for line in _lines(errors))
    return tuple(dict.fromkeys(one[1] for one in found if one))


def cluster_name(config: str) -> str | None:
    """The name in `scontrol show config`, in small letters."""
    named = _CLUSTER_NAME.search(config)
    return named[1].lower() if named else None


def settings(config: str) -> dict[str, str]:
    """What `scontrol show config` shows, by its names."""
    pairs = (line.partition("=") for line in config.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def names(what: str, listing: str) -> set[str]:
    """The names in `scontrol --oneliner show partition` (or `node`: `what`)."""
    return set(re.findall(rf"^{what.capitalize()}Name=(\S+)", listing, re.MULTILINE))


def gives_whole_nodes(partition: str) -> bool:
    """Whether jobs of a partition, as `scontrol --oneliner show partition` shows it, share no node
    with others, whatever they ask for.
    """
    return _WHOLE_NODES.search(partition) is not None


def node_address(node: str) -> str | None:
    """Where the scheduler reaches a node, of `scontrol --oneliner show node`."""
    shown = _NODE_ADDRESS.search(node)
    return shown[1] if shown else None


def preempted(job: str) -> bool:
    """Whether a job was, or is being, ended for another one: `scontrol --oneliner show job`."""
    return re.search(r"\bPreemptTime=\d", job) is not None


def nodes_away(listing: str) -> int:
    """How many nodes take no jobs now, of `sinfo --noheader --Node --format "%N %T"`."""
    states = dict(line.split()[:2] for line in listing.splitlines() if " " in line)
    return sum(not _THERE.match(state) for state in states.values())


def end_by_slurm(log: str) -> str | None:
    """The line of a job's output that says why Slurm ended it: for its memory, its time limit,
    another job, or by somebody's order. None: it did not.
    """
    cancelled = _CANCELLED.findall(log)
    return memory_kill(log) or (cancelled[-1] if cancelled else None)


def cancelled(log: str, job: str) -> bool:
    """Whether Slurm says in a job's output, or `srun` in a step's, that somebody cancelled it, and
    no more than that. From 26.05 on it names the signal as well.
    """
    said = rf"error: \*\*\* (?:JOB|STEP) {re.escape(job)}\b.* CANCELLED AT \S+"
    return re.search(rf"{said}(?: DUE to SIGNAL [\w ]+)? \*\*\*", log) is not None


def memory_kill(log: str) -> str | None:
    """The line by which Slurm says in a job's output, or `srun` in a step's, that something of it
    was killed for its memory.
    """
    line = _MEMORY_KILL.search(log)
    return line[0] if line else None


_ID_WIDTH, _PATH_WIDTH = 40, 4096
OUTPUTS_FORMAT = f"JobArrayID:{_ID_WIDTH},StdOut:{_PATH_WIDTH}"


def outputs(text: str) -> dict[str, str]:
    """The files that jobs and tasks print to, by their ids, of `squeue` with `OUTPUTS_FORMAT`."""
    lines = text.splitlines()
    return {line[:_ID_WIDTH].strip(): line[_ID_WIDTH:].strip() for line in lines}


RUNS_FORMAT = "JobID,Start,End,JobName%200"


def runs(text: str, name: str) -> dict[str, list[tuple[float, float | None]]]:
    """From when until when jobs whose name matches an expression had their allocations, by their
    ids, in seconds since the epoch; None: they run. Of `sacct --duplicates` with `RUNS_FORMAT` and
    its times as `%s`; what has not started is left out.
    """
    found: dict[str, list[tuple[float, float | None]]] = {}
    for line in text.splitlines():
        job, start, end, named = ([*line.split("|", 3), "", "", ""])[:4]
        if start.isdecimal() and re.fullmatch(name, named.strip()):
            until = float(end) if end.isdecimal() else None
            found.setdefault(job, []).append((float(start), until))
    return found


class PastJob(NamedTuple):
    """A job that has begun: seconds."""

    waited_s: float
    lasted_s: float
    state: str  # PREEMPTED, TIMEOUT, …


HISTORY = "sacct -X -P -o Submit,Start,ElapsedRaw,State"
"""The command whose output `history` reads, with whatever else it is given."""


def history(text: str) -> tuple[PastJob, ...]:
    """Jobs as `HISTORY` prints them; those that have not begun are left out.

    Raises:
        ValueError: a column is missing, or a line is no job; says which.
    """
    lines = _lines(text)
    names = lines[0].split("|") if lines else []
    missing = [one for one in ("Submit", "Start", "ElapsedRaw", "State") if one not in names]
    if missing:
        raise ValueError(f"line 1 names no column {', '.join(missing)}; make it with `{HISTORY}`")
    found = []
    for number, line in enumerate(lines[1:], 2):
        told = dict(zip(names, line.split("|"), strict=False))
        if not told.get("Start", "")[:1].isdecimal():  # Unknown, None
            continue
        try:
            submitted, started = (datetime.fromisoformat(told[one]) for one in ("Submit", "Start"))
            waited_s = max(0.0, (started - submitted).total_seconds())
            found.append(PastJob(waited_s, float(told["ElapsedRaw"]), told["State"].split()[0]))
        except (KeyError, ValueError, IndexError):
            raise ValueError(f"line {number} is no job: {line[:80]!r}") from None
    return tuple(found)
