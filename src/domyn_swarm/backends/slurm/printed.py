"""Parsers of what Slurm's commands print, in versions 20.11 to 26.05. Pure: text in, values out.

The output of each version is recorded in the tests, and every function here is run over it.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import NamedTuple

from domyn_swarm.backends.slurm.slurm_states import OwnEnd

# Of `sbatch --parsable`; a site's wrapper may print more around it.
_SUBMITTED = re.compile(r"^[ \t]*(\d+)(?:;([\w.-]+))?[ \t\r]*$", re.MULTILINE)
_CLUSTER_NAME = re.compile(r"^ClusterName\s*=\s*(\S+)", re.MULTILINE)
_JOB_STATE = re.compile(r"\bJobState=(\S+)")
_RESTARTS = re.compile(r"\bRestarts=(\d+)")
_NODE_ADDRESS = re.compile(r"\bNodeAddr=(\S+)")
_ERROR = re.compile(r"^[\w.-]+: error: (.*)$")
_WARNING = re.compile(r"^[\w.-]+: [Ww]arning: (.*)$")  # 22.05 and older write both
_PROGRAM = re.compile(r"^(?:sbatch|srun|scontrol|squeue|sacct|scancel): (?:error: )?")
_NOTHING = "it printed nothing"
_MOST_LINES = 3  # of a message in no known form
_START = re.compile(r"Job \d+ to start at ")
# From 26.05 on `OverSubscribe=EXCLUSIVE` of slurm.conf is shown as `Exclusive=NODE`, and
# `ExclusiveTopo` as `Exclusive=TOPO`. `Exclusive=USER` excludes other users, not the user's own
# jobs.
_WHOLE_NODES = re.compile(
    r"\b(?:OverSubscribe=EXCLUSIVE|Exclusive=(?:NODE|TOPO)|ExclusiveTopo=YES)\b"
)
_NO_PARTITION = re.compile(r"^Partition \S+ not found$", re.MULTILINE)
_THERE = re.compile(r"(?:idle|mixed|allocated|completing)[~#%$@+^-]*$")
# What slurmstepd writes to a job's output. From 26.05 on its name is not in front of it: then the
# rest must match Slurm's own messages, since programs write lines of that form too.
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
    """The job id that `sbatch --parsable` prints, and the cluster or nothing: the last line of that
    form, whatever else is printed around it. None: there is no such line.
    """
    found = _SUBMITTED.findall(text)
    return found[-1] if found else None


def refusal(errors: str, output: str = "") -> str:
    """Why a command refused, in one line: every line with `error:` (a site's job filter prints its
    messages so) and the last line; without such lines, the last lines that were printed.
    """
    lines = _lines(errors) or _lines(output)
    reported = [found[1] for line in lines if (found := _ERROR.match(line))]
    chosen = [*reported, *(lines[-1:] if reported else lines[-_MOST_LINES:])]
    return "; ".join(dict.fromkeys(_PROGRAM.sub("", line) for line in chosen)) or _NOTHING


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def start_of(errors: str) -> str:
    """When and where a job could start, from `sbatch --test-only`, in Slurm's words."""
    lines = _lines(errors)
    said = next((line for line in lines if _START.search(line)), lines[-1] if lines else _NOTHING)
    return _PROGRAM.sub("", said)


def start_time(said: str) -> str | None:
    """The time in the result of `start_of`, as Slurm writes it; None: the job would not start."""
    found = _START.search(said)
    return said[found.end() :].split(maxsplit=1)[0] if found and said[found.end() :] else None


def warnings(errors: str) -> tuple[str, ...]:
    """The warnings of a command that succeeded, without repetitions."""
    found = (_WARNING.match(line) for line in _lines(errors))
    return tuple(dict.fromkeys(one[1] for one in found if one))


def cluster_name(config: str) -> str | None:
    """The cluster's name in `scontrol show config`, in lower case; None: it is not there."""
    named = _CLUSTER_NAME.search(config)
    return named[1].lower() if named else None


def settings(config: str) -> dict[str, str]:
    """The settings that `scontrol show config` prints, by name."""
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


def has_no_partition(shown: str) -> bool:
    """Whether `scontrol show partition NAME` says that there is none of that name: on its standard
    output, with an exit code of 1.
    """
    return _NO_PARTITION.search(shown) is not None


def node_address(node: str) -> str | None:
    """The address at which the scheduler reaches a node, from `scontrol --oneliner show node`."""
    shown = _NODE_ADDRESS.search(node)
    return shown[1] if shown else None


def own_end(job: str) -> OwnEnd:
    """What Slurm does with a job that it is ending, from `scontrol --oneliner show job`."""
    state, restarts = _JOB_STATE.search(job), _RESTARTS.search(job)
    return OwnEnd(
        state=state[1] if state else "",
        preempted=re.search(r"\bPreemptTime=\d", job) is not None,
        restarts=int(restarts[1]) if restarts else 0,
    )


def nodes_away(listing: str) -> int:
    """How many nodes accept no jobs now, from `sinfo --noheader --Node --format "%N %T"`."""
    states = dict(line.split()[:2] for line in listing.splitlines() if " " in line)
    return sum(not _THERE.match(state) for state in states.values())


def end_by_slurm(log: str) -> str | None:
    """The line of a job's output that says why Slurm ended it: memory, time limit, preemption or a
    cancel. None: there is none.
    """
    cancelled = _CANCELLED.findall(log)
    return memory_kill(log) or (cancelled[-1] if cancelled else None)


def cancelled(log: str, job: str) -> bool:
    """Whether Slurm reports in a job's output, or `srun` in a step's, that it was cancelled, and no
    other cause. From 26.05 on the message names the signal as well.
    """
    said = rf"error: \*\*\* (?:JOB|STEP) {re.escape(job)}\b.* CANCELLED AT \S+"
    return re.search(rf"{said}(?: DUE to SIGNAL [\w ]+)? \*\*\*", log) is not None


def memory_kill(log: str) -> str | None:
    """The line by which Slurm reports in a job's output, or `srun` in a step's, that a process was
    killed for its memory.
    """
    line = _MEMORY_KILL.search(log)
    return line[0] if line else None


_ID_WIDTH, _PATH_WIDTH = 40, 4096
OUTPUTS_FORMAT = f"JobArrayID:{_ID_WIDTH},StdOut:{_PATH_WIDTH}"


def outputs(text: str) -> dict[str, str]:
    """The output files of jobs and tasks, by id, from `squeue` with `OUTPUTS_FORMAT`."""
    lines = text.splitlines()
    return {line[:_ID_WIDTH].strip(): line[_ID_WIDTH:].strip() for line in lines}


RUNS_FORMAT = "JobID,Start,End,JobName%200"


def runs(text: str, name: str) -> dict[str, list[tuple[float, float | None]]]:
    """Start and end of the allocations of jobs whose names match the expression `name`, by job id,
    in seconds since the epoch; end None: still running. Parses `sacct --duplicates` with
    `RUNS_FORMAT` and times as `%s`; jobs that have not started are left out.
    """
    found: dict[str, list[tuple[float, float | None]]] = {}
    for line in text.splitlines():
        job, start, end, named = ([*line.split("|", 3), "", "", ""])[:4]
        if start.isdecimal() and re.fullmatch(name, named.strip()):
            until = float(end) if end.isdecimal() else None
            found.setdefault(job, []).append((float(start), until))
    return found


class PastJob(NamedTuple):
    """A job that has started. Times and durations in seconds."""

    waited_s: float
    lasted_s: float
    state: str  # PREEMPTED, TIMEOUT, …


HISTORY = "sacct -X -P -o Submit,Start,ElapsedRaw,State"
"""The command whose output `history` parses."""


def history(text: str) -> tuple[PastJob, ...]:
    """Jobs as `HISTORY` prints them; those that have not started are left out.

    Raises:
        ValueError: a column is missing, or a line is not a job; the message says which.
    """
    lines = _lines(text)
    names = lines[0].split("|") if lines else []
    missing = [one for one in ("Submit", "Start", "ElapsedRaw", "State") if one not in names]
    if missing:
        raise ValueError(f"line 1 names no column {', '.join(missing)}; make it with `{HISTORY}`")
    found = []
    for number, line in enumerate(lines[1:], 2):
        fields = dict(zip(names, line.split("|"), strict=False))
        if not fields.get("Start", "")[:1].isdecimal():  # Unknown, None
            continue
        try:
            submitted, started = (
                datetime.fromisoformat(fields[one]) for one in ("Submit", "Start")
            )
            waited_s = max(0.0, (started - submitted).total_seconds())
            found.append(PastJob(waited_s, float(fields["ElapsedRaw"]), fields["State"].split()[0]))
        except (KeyError, ValueError, IndexError):
            raise ValueError(f"line {number} is no job: {line[:80]!r}") from None
    return tuple(found)
