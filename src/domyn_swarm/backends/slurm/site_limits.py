"""Whether a swarm's requests can ever run at a site: they are compared with the site's limits."""

from __future__ import annotations

import math
import os
import pwd
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from domyn_swarm.backends.checks import Check, failed, ok, warning
from domyn_swarm.backends.slurm.commands import Slurm
from domyn_swarm.backends.slurm.layout import replicas_per_task, slurm_config
from domyn_swarm.backends.slurm.limits import (
    ACCOUNT_FIELDS,
    ASSOCIATION_FIELDS,
    QOS_FIELDS,
    Finding,
    Limits,
    Request,
    account_limits,
    association_limits,
    findings,
    findings_together,
    goes_first,
    left_by,
    partition_findings,
    partition_limits,
    qos_limits,
)
from domyn_swarm.config.units import memory_gb, time_limit_s
from domyn_swarm.planning.plan import DeploymentPlan

Row = dict[str, str]
SACCTMGR = ("sacctmgr", "--noheader", "--parsable2", "show")


def user_name() -> str:
    """The name of the user that runs this process, whatever $LOGNAME and $USER say."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container without an entry for it
        return str(os.getuid())


def limit_checks(plan: DeploymentPlan, slurm: Slurm) -> Iterator[Check]:
    """A check for each limit that the swarm exceeds; a passed one if it exceeds none."""
    seen: set[str] = set()
    for one in _findings(plan, slurm):
        if one.words not in seen:
            yield (failed if one.never else warning)("limits", one.words, one.fix)
        seen.add(one.words)
    if not seen:
        yield ok("limits", "neither the partition nor the QoS nor the account prevents it")


class _Side(NamedTuple):
    """One kind of the swarm's jobs, and its partition, account and QoS."""

    request: Request
    partition: str
    qos: str | None


def _findings(plan: DeploymentPlan, slurm: Slurm) -> Iterator[Finding]:
    config, settings = slurm_config(plan), site_settings(slurm)
    whole = config.packing == "auto" and slurm.gives_whole_nodes(config.partition)
    replica, endpoint = requests(plan, replicas_per_task(plan, whole_nodes=whole))
    yield from _of_array(replica.most, settings.get("MaxArraySize", ""))
    own = config.endpoint
    yield from _of_whole_nodes(slurm, own.partition or config.partition)
    account = config.account or _default_account(slurm)
    associations: Sequence[Row] = ()
    enforced = "limits" in settings.get("AccountingStorageEnforce", "")
    if enforced:
        cluster = settings.get("ClusterName", "").lower()
        associations = _associations(slurm, cluster, account, config.partition)
    default_qos = next((row["DefaultQOS"] or None for row in associations), None)
    sides = (
        _Side(replica, config.partition, config.qos or default_qos),
        _Side(endpoint, own.partition or config.partition, own.qos or config.qos or default_qos),
    )
    together: list[tuple[Limits, list[Request]]] = []
    for side in sides:
        limits = _limits(slurm, side, associations) if enforced else []
        over = any(one.over_partition for one in limits)
        timed = replace(side.request, wall_s=0.0) if over else side.request
        yield from _of_partition(slurm, side._replace(request=timed), account)
        for one in limits:
            yield from findings(side.request, one)
            known = next((asked for limits, asked in together if limits == one), None)
            if known is None:
                together.append((one, [side.request]))
            else:
                known.append(side.request)
    for one, asked in together:
        yield from findings_together(asked, one)


def _limits(slurm: Slurm, side: _Side, associations: Sequence[Row]) -> list[Limits]:
    """All limits that apply to one kind of jobs: those of its partition's QoS and of its own, which
    take precedence, of the user's association, and of the accounts above it.
    """
    turns: list[tuple[Row | None, str | None]] = [(_qos(slurm, side.qos or "normal"), None)]
    if "," not in side.partition:  # else Slurm chooses a partition, and its QoS
        name = goes_first(_partition(slurm, side.partition))
        own = None if name is None else _qos(slurm, name)
        of_job = turns[0][0]
        last = of_job is not None and "OverPartQOS" in of_job["Flags"]
        turns.insert(1 if last else 0, (own, side.partition))
    found: list[Limits] = []
    first: list[Row] = []
    for row, partition in turns:
        if row is not None:
            found.append(qos_limits(left_by(first, row), partition))
            first.append(row)
    for row in associations:
        left = left_by(first, row)
        found.append(account_limits(left) if "ParentName" in row else association_limits(left))
    return found


def _of_array(tasks: int, most: str) -> Iterator[Finding]:
    if most.isdecimal() and tasks > int(most):
        yield Finding(
            never=True,
            words=f"the replicas are an array of {tasks} tasks, and the site's MaxArraySize is "
            f"{most}",
            fix=f"Lower replicas to {most} at most; further ones are another swarm.",
        )


def _of_whole_nodes(slurm: Slurm, partition: str) -> Iterator[Finding]:
    """A finding if the endpoint would take a whole node for itself."""
    if slurm.gives_whole_nodes(partition):
        yield Finding(
            never=False,
            words=f"the endpoint takes a whole node of {partition}, which gives no less",
            fix="Set backend.endpoint.partition to one whose nodes are shared.",
        )


def requests(plan: DeploymentPlan, per_task: int) -> tuple[Request, Request]:
    """The requests of the swarm's two kinds of jobs: a task of the replicas, and the endpoint."""
    config, layout = slurm_config(plan), plan.layout
    nodes, own = layout.nodes_per_replica, config.endpoint
    gpus = layout.gpus_per_node if per_task > 1 else layout.tensor_parallel * nodes
    resources = plan.resources
    tres = {"node": float(nodes), "gres/gpu": float(gpus if resources.gpus else 0)}
    if per_task == 1 and resources.cpus is not None:
        tres["cpu"] = float(resources.cpus * nodes)
    if per_task == 1 and resources.memory_gb is not None:
        tres["mem"] = resources.memory_gb * 1024 * nodes
    replica = Request(
        what="a replica" if per_task == 1 else f"a node of {per_task} replicas",
        tres=tres,
        keys={
            "node": "gpus_per_replica",
            "gres/gpu": "gpus_per_replica",
            "cpu": "cpus_per_task",
            "mem": "memory_gb",
            "wall": "backend.time_limit",
        },
        wall_s=time_limit_s(config.longest_limit),
        most=math.ceil(layout.replicas / per_task),
        least=math.ceil(plan.min_ready / per_task),
    )
    endpoint = Request(
        what="the endpoint",
        tres={
            "node": 1.0,
            "gres/gpu": 0.0,
            "cpu": float(own.cpus_per_task),
            **({} if own.mem is None else {"mem": memory_gb(own.mem) * 1024}),
        },
        keys={
            "cpu": "backend.endpoint.cpus_per_task",
            "mem": "backend.endpoint.mem",
            "wall": "backend.endpoint.wall_time" if own.wall_time else "backend.time_limit",
        },
        wall_s=time_limit_s(own.wall_time or config.longest_limit),
    )
    return replica, endpoint


def _of_partition(slurm: Slurm, side: _Side, account: str | None) -> Iterator[Finding]:
    """The partitions' reasons against a kind of jobs, if no partition accepts it. If there are
    several and one of them only lets it wait, that decides; otherwise the reasons of each.
    """
    found: list[list[Finding]] = []
    for one in side.partition.split(","):
        shown = _partition(slurm, one)
        against = [*partition_findings(shown, account, side.qos)]
        found.append([*against, *findings(side.request, partition_limits(shown))])
    if not all(found):
        return
    waits = [one for one in found if not any(finding.never for finding in one)]
    if len(found) == 1 or waits:
        yield from [*waits, *found][0]
        return
    worst = [next(finding for finding in one if finding.never) for one in found]
    words = "; ".join(dict.fromkeys(one.words for one in worst))
    yield replace(worst[0], words=f"none of {side.partition} accepts it: {words}")


def _partition(slurm: Slurm, name: str) -> str:
    return "".join(slurm.lines("scontrol", "--oneliner", "show", "partition", name)[:1])


def site_settings(slurm: Slurm) -> dict[str, str]:
    """The site's configuration, by the names of `scontrol show config`."""
    pairs = (line.partition("=") for line in slurm.lines("scontrol", "show", "config"))
    return {name.strip(): value.strip() for name, _, value in pairs}


def _default_account(slurm: Slurm) -> str | None:
    rows = slurm.lines(*SACCTMGR, "user", user_name(), "format=DefaultAccount")
    return next((row.strip() for row in rows if row.strip()), None)


def _associations(slurm: Slurm, cluster: str, account: str | None, partition: str) -> list[Row]:
    """The user's association, that of the partition if there is one, then the accounts above it, up
    to the root; nothing if accounting does not show them.
    """
    of_cluster = [f"cluster={cluster}"] if cluster else []
    asked = [*of_cluster, f"user={user_name()}", *([f"account={account}"] if account else [])]
    rows = _rows(slurm, "associations", ASSOCIATION_FIELDS, *asked)
    mine = [row for row in rows if row["Partition"] in ("", partition)]
    if not mine:
        return []
    found = [max(mine, key=lambda one: bool(one["Partition"]))]
    name, above = found[0]["Account"], set[str]()
    while name and name not in above:
        above.add(name)
        asked = [*of_cluster, f"account={name}", "user="]
        rows = _rows(slurm, "associations", ACCOUNT_FIELDS, *asked)
        found += rows[:1]
        name = rows[0]["ParentName"] if rows else ""
    return found


def _qos(slurm: Slurm, name: str) -> Row | None:
    """The limits of a QoS."""
    return next(iter(_rows(slurm, "qos", QOS_FIELDS, f"name={name}")), None)


def _rows(slurm: Slurm, what: str, fields: Sequence[str], *which: str) -> list[Row]:
    lines = slurm.lines(*SACCTMGR, what, *which, f"format={','.join(fields)}")
    return [dict(zip(fields, line.split("|"), strict=False)) for line in lines if "|" in line]
