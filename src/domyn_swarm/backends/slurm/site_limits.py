"""Whether what a swarm asks for can ever run at a site: its requests against the site's limits."""

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
    ASSOCIATION_FIELDS,
    QOS_FIELDS,
    Finding,
    Limits,
    Request,
    association_limits,
    findings,
    findings_together,
    partition_findings,
    partition_limits,
    qos_limits,
)
from domyn_swarm.config.backends import memory_gb, time_limit_s
from domyn_swarm.planning.plan import DeploymentPlan

SACCTMGR = ("sacctmgr", "--noheader", "--parsable2", "show")


def user_name() -> str:
    """The user as whom this process runs, whatever $LOGNAME and $USER say."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container without an entry for it
        return str(os.getuid())


def limit_checks(plan: DeploymentPlan, slurm: Slurm) -> Iterator[Check]:
    """A check for each limit that the swarm meets; one that all is well where it meets none."""
    seen: set[str] = set()
    for one in _findings(plan, slurm):
        if one.words not in seen:
            yield (failed if one.never else warning)("limits", one.words, one.fix)
        seen.add(one.words)
    if not seen:
        yield ok("limits", "none of the partition, the QoS or the account is in the way")


class _Side(NamedTuple):
    """One kind of the swarm's jobs, and where it goes."""

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
    association, default_qos, qos = None, None, {}
    if "limits" in settings.get("AccountingStorageEnforce", ""):
        association, default_qos = _association(slurm, account, config.partition)
        names = {config.qos or default_qos, own.qos or config.qos or default_qos}
        qos = {name: found for name in names if (found := _qos(slurm, name)) is not None}
    sides = (
        _Side(replica, config.partition, config.qos or default_qos),
        _Side(endpoint, own.partition or config.partition, own.qos or config.qos or default_qos),
    )
    for side in sides:
        over = side.qos in qos and qos[side.qos].over_partition
        timed = replace(side.request, wall_s=0.0) if over else side.request
        yield from _of_partition(slurm, side._replace(request=timed), account)
        for limits in (qos.get(side.qos), association):
            yield from findings(side.request, limits) if limits else ()
    for name, limits in qos.items():
        yield from findings_together([one.request for one in sides if one.qos == name], limits)
    if association is not None:
        yield from findings_together((replica, endpoint), association)


def _of_array(tasks: int, most: str) -> Iterator[Finding]:
    if most.isdecimal() and tasks > int(most):
        yield Finding(
            never=True,
            words=f"the replicas are an array of {tasks} tasks, and the site's MaxArraySize is "
            f"{most}",
            fix=f"Lower replicas to {most} at most; further ones are another swarm.",
        )


def _of_whole_nodes(slurm: Slurm, partition: str) -> Iterator[Finding]:
    """Of the endpoint, which would take one for itself."""
    if slurm.gives_whole_nodes(partition):
        yield Finding(
            never=False,
            words=f"the endpoint takes a whole node of {partition}, which gives no less",
            fix="Set backend.endpoint.partition to one whose nodes are shared.",
        )


def requests(plan: DeploymentPlan, per_task: int) -> tuple[Request, Request]:
    """What the swarm's two kinds of jobs ask for: a task of the replicas, and the endpoint."""
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
        wall_s=time_limit_s(config.time_limit),
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
        wall_s=time_limit_s(own.wall_time or config.time_limit),
    )
    return replica, endpoint


def _of_partition(slurm: Slurm, side: _Side, account: str | None) -> Iterator[Finding]:
    """What each of the partitions has against it, if none of them takes it."""
    found: list[list[Finding]] = []
    for one in side.partition.split(","):
        shown = "".join(slurm.lines("scontrol", "--oneliner", "show", "partition", one)[:1])
        against = [*partition_findings(shown, account, side.qos)]
        found.append([*against, *findings(side.request, partition_limits(shown))])
    if all(found):
        yield from found[0]


def site_settings(slurm: Slurm) -> dict[str, str]:
    """What the site has configured, by the names of `scontrol show config`."""
    pairs = (line.partition("=") for line in slurm.lines("scontrol", "show", "config"))
    return {name.strip(): value.strip() for name, _, value in pairs}


def _default_account(slurm: Slurm) -> str | None:
    rows = slurm.lines(*SACCTMGR, "user", user_name(), "format=DefaultAccount")
    return next((row.strip() for row in rows if row.strip()), None)


def _association(
    slurm: Slurm, account: str | None, partition: str
) -> tuple[Limits | None, str | None]:
    """The limits of the user's own association, and its default QoS."""
    asked = [f"user={user_name()}", *([f"account={account}"] if account else [])]
    rows = _rows(slurm, "associations", ASSOCIATION_FIELDS, *asked)
    mine = [row for row in rows if row["Partition"] in ("", partition)]
    if not mine:
        return None, None
    row = max(
        mine, key=lambda one: bool(one["Partition"])
    )  # that of the partition, if there is one
    return association_limits(row), row["DefaultQOS"] or None


def _qos(slurm: Slurm, name: str | None) -> Limits | None:
    """The limits of a QoS; where none is chosen Slurm takes `normal`."""
    rows = _rows(slurm, "qos", QOS_FIELDS, f"name={name or 'normal'}")
    return next((qos_limits(row) for row in rows), None)


def _rows(slurm: Slurm, what: str, fields: Sequence[str], *which: str) -> list[dict[str, str]]:
    lines = slurm.lines(*SACCTMGR, what, *which, f"format={','.join(fields)}")
    return [dict(zip(fields, line.split("|"), strict=False)) for line in lines if "|" in line]
