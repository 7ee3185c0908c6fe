"""Compares what a swarm asks for with the limits of partitions, QoS and accounts. Pure.

`sbatch --test-only` checks few of these limits; a job beyond one is accepted and waits for ever.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from domyn_swarm.config.units import time_limit_s
from domyn_swarm.errors import quantity

QOS_FIELDS = (
    *("Name", "MaxTRES", "MaxTRESPerNode", "MinTRES", "MaxTRESPU", "GrpTRES", "MaxWall"),
    *("MaxJobsPU", "GrpJobs", "MaxSubmitPU", "GrpSubmit", "Flags"),
    *("MaxTRESPA", "MaxJobsPA", "MaxSubmitPA", "MaxTRESMins", "GrpTRESRunMins"),
)
ASSOCIATION_FIELDS = (
    *("Account", "Partition", "DefaultQOS", "MaxTRES", "MaxTRESPerNode", "GrpTRES", "MaxWall"),
    *("MaxJobs", "GrpJobs", "MaxSubmit", "GrpSubmit", "MaxTRESMins", "GrpTRESRunMins"),
)
ACCOUNT_FIELDS = ("Account", "ParentName", "GrpTRES", "GrpJobs", "GrpSubmit", "GrpTRESRunMins")
_TRES = (
    *("MaxTRES", "MaxTRESPerNode", "MinTRES", "MaxTRESPU", "MaxTRESPA", "GrpTRES"),
    *("MaxTRESMins", "GrpTRESRunMins"),
)
_SAME = {"MaxJobs": "MaxJobsPU", "MaxSubmit": "MaxSubmitPU"}  # an association's name: a QoS's name
_NO_LIMITS = ("Name", "Account", "ParentName", "Partition", "DefaultQOS", "Flags")
_FACTOR = {"K": 1 / 1024, "M": 1.0, "G": 1024.0, "T": 1024.0**2, "": 1.0}
_UNLIMITED = ("", "UNLIMITED", "INFINITE", "NONE", "-1")


@dataclass(frozen=True)
class Request:
    """The resources that one job asks for. `most`: how many such jobs there will be; `least`: the
    number without which the swarm does not serve.
    """

    what: str  # in messages: a replica, the endpoint
    tres: Mapping[str, float]  # cpu, mem (MB), node, gres/gpu
    keys: Mapping[str, str]  # keys of the configuration, by the resource they set, or `wall`
    wall_s: float
    most: int = 1
    least: int = 1


@dataclass(frozen=True)
class Limits:
    """The limits of one QoS, account or partition; unlimited resources are left out."""

    name: str  # in messages: "the QoS x"
    key: str = "backend.qos"  # the key of the configuration that chooses another
    job: Mapping[str, float] = field(default_factory=dict)
    node: Mapping[str, float] = field(default_factory=dict)
    least: Mapping[str, float] = field(default_factory=dict)
    shared: Sequence[Mapping[str, float]] = ()  # of all jobs of the user, or of the account
    minutes: Sequence[Mapping[str, float]] = ()  # resources times minutes: what no job may exceed
    wall_s: float | None = None
    jobs: float | None = None  # running at a time
    submitted: float | None = None
    over_partition: bool = False  # the QoS overrides the partition's longest time


@dataclass(frozen=True)
class Finding:
    """The effect of a limit on a swarm: it can `never` serve, or only a part of it runs."""

    never: bool
    words: str
    fix: str


def tres(text: str) -> dict[str, float]:
    """The values of Slurm's list of resources, such as `cpu=4,gres/gpu=2,mem=8G`; memory in MB."""
    found = {}
    for name, number, unit in re.findall(r"([\w/:.-]+)=([\d.]+)([KMGT]?)", text):
        found[name] = float(number) * (_FACTOR[unit] if name == "mem" else 1.0)
    return found


def left_by(first: Sequence[Mapping[str, str]], row: Mapping[str, str]) -> dict[str, str]:
    """The limits of a line that still apply after those in `first`. Slurm takes each limit from the
    first of these that defines it: the partition's QoS, the job's QoS, the associations.
    """
    left = dict(row)
    for name in row.keys() - {*_NO_LIMITS}:
        above = [one.get(_SAME.get(name, name)) or one.get(name, "") for one in first]
        if name in _TRES:
            known = tres(",".join(above))
            parts = [one for one in row[name].split(",") if one.partition("=")[0] not in known]
            left[name] = ",".join(parts)
        elif any(above):
            left[name] = ""
    return left


def goes_first(partition: str) -> str | None:
    """The QoS of a partition itself, from a line of `scontrol show partition`; None: it has
    none.
    """
    found = re.search(r"\bQoS=(\S+)", partition)
    return None if found is None or found[1] in ("N/A", "(null)") else found[1]


def qos_limits(row: Mapping[str, str], of_partition: str | None = None) -> Limits:
    """The limits in a line of `sacctmgr show qos` with `QOS_FIELDS`. `of_partition`: the partition
    whose own QoS it is.
    """
    mine = f"the QoS {row['Name']}"
    return Limits(
        name=mine if of_partition is None else f"{mine} of the partition {of_partition}",
        key="backend.qos" if of_partition is None else "backend.partition",
        job=tres(row["MaxTRES"]),
        node=tres(row["MaxTRESPerNode"]),
        least=tres(row["MinTRES"]),
        shared=(tres(row["MaxTRESPU"]), tres(row["MaxTRESPA"]), tres(row["GrpTRES"])),
        minutes=_minutes_of(row),
        wall_s=_seconds(row["MaxWall"]),
        jobs=_least(row["MaxJobsPU"], row["MaxJobsPA"], row["GrpJobs"]),
        submitted=_least(row["MaxSubmitPU"], row["MaxSubmitPA"], row["GrpSubmit"]),
        over_partition="PartitionTimeLimit" in row["Flags"],
    )


def association_limits(row: Mapping[str, str]) -> Limits:
    """The limits in a line of `sacctmgr show associations` with `ASSOCIATION_FIELDS`."""
    return Limits(
        name=f"your account {row['Account']}",
        key="backend.account",
        job=tres(row["MaxTRES"]),
        node=tres(row["MaxTRESPerNode"]),
        shared=(tres(row["GrpTRES"]),),
        minutes=_minutes_of(row),
        wall_s=_seconds(row["MaxWall"]),
        jobs=_least(row["MaxJobs"], row["GrpJobs"]),
        submitted=_least(row["MaxSubmit"], row["GrpSubmit"]),
    )


def account_limits(row: Mapping[str, str]) -> Limits:
    """The limits that all running jobs of an account and of the accounts below it share, from a
    line of `sacctmgr show associations` with `ACCOUNT_FIELDS`. Its other limits are in the lines of
    its users.
    """
    return Limits(
        name=f"the account {row['Account']}",
        key="backend.account",
        shared=(tres(row["GrpTRES"]),),
        minutes=_minutes_of(row),
        jobs=_least(row["GrpJobs"]),
        submitted=_least(row["GrpSubmit"]),
    )


def _minutes_of(row: Mapping[str, str]) -> tuple[Mapping[str, float], ...]:
    """Of a job, and of all that run: the second counts what is left of their time limits, so that a
    job beyond it never runs, and several do one after the other.
    """
    return tres(row.get("MaxTRESMins", "")), tres(row["GrpTRESRunMins"])


def _seconds(text: str) -> float | None:
    try:
        return None if text.upper() in _UNLIMITED else time_limit_s(text)
    except ValueError:
        return None


def _least(*texts: str) -> float | None:
    known = [float(text) for text in texts if text.isdecimal()]
    return min(known, default=None)


def findings(request: Request, limits: Limits) -> Iterator[Finding]:
    """The effects of limits on jobs of one kind, each job by itself."""
    nodes = request.tres.get("node", 1.0)
    for name, wanted in request.tres.items():
        asked, key = _amount(name, wanted), request.keys.get(name, "")
        known = [one[name] for one in (limits.job, *limits.shared) if name in one]
        if name in limits.node and name != "node":
            known.append(limits.node[name] * nodes)
        if wanted > min(known, default=math.inf):
            yield _never(request, limits, asked, _amount(name, min(known)), key)
        if wanted < limits.least.get(name, 0.0):
            yield Finding(
                never=True,
                words=f"{request.what} asks for {asked}, less than {limits.name} demands "
                f"({_amount(name, limits.least[name])})",
                fix=f"Raise {key}, or choose another QoS for it."
                if key
                else "Choose another QoS for it: backend.endpoint.qos.",
            )
    yield from _of_minutes(request, limits)
    if limits.wall_s is not None and request.wall_s > limits.wall_s:
        asked = "no time limit" if request.wall_s == math.inf else _minutes(request.wall_s)
        yield _never(request, limits, asked, _minutes(limits.wall_s), request.keys["wall"])


def _of_minutes(request: Request, limits: Limits) -> Iterator[Finding]:
    """What limits do to one job whose resources are reckoned for as long as it may run."""
    for name in sorted({name for one in limits.minutes for name in one}):
        most = min(one[name] for one in limits.minutes if name in one)
        wanted = request.tres.get(name, 0.0)
        if wanted and wanted * request.wall_s / 60.0 > most:
            asked = f"{_amount(name, wanted)} for "
            asked += "no limited time" if request.wall_s == math.inf else _minutes(request.wall_s)
            unit = _UNITS.get(name, name).removesuffix("s")
            yield _never(request, limits, asked, f"{most:g} {unit}-minutes", request.keys["wall"])


def findings_together(requests: Iterable[Request], limits: Limits) -> Iterator[Finding]:
    """The effects of limits on all jobs of a swarm together."""
    asked = [*requests]
    jobs = sum(one.most for one in asked)
    least = sum(one.least for one in asked)
    if limits.submitted is not None and jobs > limits.submitted:
        queued = quantity(int(limits.submitted), "job")
        yield Finding(
            never=True,
            words=f"{limits.name} lets you have {queued} in the queue, and the "
            f"swarm is {jobs}: the endpoint and one for each replica",
            fix=f"Lower replicas, or choose another {limits.key}.",
        )
    if limits.jobs is not None and jobs > limits.jobs:
        running = "1 job running" if limits.jobs == 1 else f"{limits.jobs:g} running"
        yield _together(f"{running} at a time", limits, least > limits.jobs)
    for shared in limits.shared:
        for name, most in shared.items():
            wanted = sum(one.tres.get(name, 0.0) * one.most for one in asked)
            needed = sum(one.tres.get(name, 0.0) * one.least for one in asked)
            if wanted > most and all(one.tres.get(name, 0.0) <= most for one in asked):
                yield _together(f"{_amount(name, most)} at a time", limits, needed > most)


def _together(most: str, limits: Limits, never: bool) -> Finding:
    served = "the endpoint and min_ready replicas are more" if never else "the others wait"
    return Finding(
        never=never,
        words=f"{limits.name} lets your jobs have {most}: {served}",
        fix="Lower min_ready and replicas, or give the endpoint another QoS: backend.endpoint.qos."
        if never
        else f"Lower replicas, or choose another {limits.key}.",
    )


def _never(request: Request, limits: Limits, wanted: str, most: str, key: str) -> Finding:
    return Finding(
        never=True,
        words=f"{request.what} asks for {wanted}, and {limits.name} gives a job {most} at most",
        fix=f"Lower {key or 'what it asks for'}, or choose another {limits.key}.",
    )


_UNITS = {"cpu": "CPUs", "mem": "MB of memory", "node": "nodes", "gres/gpu": "GPUs"}


def _amount(name: str, value: float) -> str:
    word = _UNITS.get(name, name)
    return f"{value:g} {word.removesuffix('s') if value == 1 else word}"


def _minutes(seconds: float) -> str:
    return "1 minute" if seconds == 60 else f"{seconds / 60:g} minutes"


# -- partitions --------------------------------------------------------------------------------


def partition_findings(shown: str, account: str | None, qos: str | None) -> Iterator[Finding]:
    """The reasons in a line of `scontrol show partition` against jobs of an account and a QoS.
    `account` or `qos` None: the user's default, which is not known.
    """
    facts = dict(re.findall(r"(\w+)=(\S+)", shown))
    name = facts.get("PartitionName", "?")
    for what, wanted, allow, deny in (
        ("account", account, facts.get("AllowAccounts"), facts.get("DenyAccounts")),
        ("qos", qos, facts.get("AllowQos"), facts.get("DenyQos")),
    ):
        if wanted is None:
            continue
        allowed = allow is None or allow == "ALL" or wanted in allow.split(",")
        if not allowed or wanted in (deny or "").split(","):
            yield Finding(
                never=True,
                words=f"the partition {name} does not take the {what} {wanted}"
                + (f", but {allow}" if not allowed else ""),
                fix=f"Choose another backend.{what} or backend.partition.",
            )
    state = facts.get("State", "UP")
    if state != "UP":
        closed = state in ("INACTIVE", "DRAIN")
        yield Finding(
            never=closed,
            words=f"the partition {name} is {state}: "
            + ("it takes no jobs" if closed else "jobs wait until it is UP"),
            fix="Ask your administrators, or choose another backend.partition.",
        )


def partition_limits(shown: str) -> Limits:
    """The longest time, the most nodes and the most memory of a node that a job may have, from a
    line of `scontrol show partition`. Of `MaxMemPerCPU` Slurm makes more CPUs.
    """
    facts = dict(re.findall(r"(\w+)=(\S+)", shown))
    nodes, memory = facts.get("MaxNodes", ""), facts.get("MaxMemPerNode", "")
    return Limits(
        name=f"the partition {facts.get('PartitionName', '?')}",
        key="backend.partition",
        job={"node": float(nodes)} if nodes.isdecimal() else {},
        node={"mem": float(memory)} if memory.isdecimal() else {},
        wall_s=_seconds(facts.get("MaxTime", "")),
    )
