"""Compares a swarm's resource requests with the limits of its site: whether they can ever run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from domyn_swarm.backends.checks import Check, failed, ok, warning
from domyn_swarm.backends.slurm.allowance import (
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
from domyn_swarm.backends.slurm.script_contents import replicas_per_task, slurm_config
from domyn_swarm.backends.slurm.site_answers import Row, SiteAnswers
from domyn_swarm.config.units import memory_gb, time_limit_s
from domyn_swarm.errors import PlatformError
from domyn_swarm.planning.plan import DeploymentPlan


def limit_checks(plan: DeploymentPlan, site: SiteAnswers) -> Iterator[Check]:
    """A check for each limit that the swarm exceeds; a passed one if it exceeds none."""
    seen: set[str] = set()
    for one in _findings(plan, site):
        if one.words not in seen:
            yield (failed if one.never else warning)("limits", one.words, one.fix)
        seen.add(one.words)
    if not seen:
        yield ok("limits", "neither the partition nor the QoS nor the account prevents it")


def never_kept(plan: DeploymentPlan, site: SiteAnswers) -> str | None:
    """The first limit of the site that the plan can never keep, with its remedy. None: there is no
    such limit, or Slurm cannot be asked.
    """
    try:
        found = [one for one in limit_checks(plan, site) if one.status == "failed"]
    except PlatformError:
        return None
    return f"{found[0].detail}. {found[0].fix}" if found else None


class _Side(NamedTuple):
    """One kind of the swarm's jobs, and its partition, account and QoS."""

    request: Request
    partition: str
    qos: str | None


def _findings(plan: DeploymentPlan, site: SiteAnswers) -> Iterator[Finding]:
    config = slurm_config(plan)
    whole = config.packing == "auto" and site.gives_whole_nodes(config.partition)
    replica, endpoint = requests(plan, replicas_per_task(plan, whole_nodes=whole))
    yield from _of_array(replica.most, site.settings.get("MaxArraySize", ""))
    own = config.endpoint
    yield from _of_whole_nodes(site, own.partition or config.partition)
    account = config.account or site.default_account()
    enforced = "limits" in site.settings.get("AccountingStorageEnforce", "")
    associations = site.associations(account, config.partition) if enforced else []
    default_qos = next((row["DefaultQOS"] or None for row in associations), None)
    sides = (
        _Side(replica, config.partition, config.qos or default_qos),
        _Side(endpoint, own.partition or config.partition, own.qos or config.qos or default_qos),
    )
    together: list[tuple[Limits, list[Request]]] = []
    for side in sides:
        limits = _limits(site, side, associations) if enforced else []
        over = any(one.over_partition for one in limits)
        timed = replace(side.request, wall_s=0.0) if over else side.request
        yield from _of_partition(site, side._replace(request=timed), account)
        for one in limits:
            yield from findings(side.request, one)
            known = next((asked for limits, asked in together if limits == one), None)
            if known is None:
                together.append((one, [side.request]))
            else:
                known.append(side.request)
    for one, asked in together:
        yield from findings_together(asked, one)


def _limits(site: SiteAnswers, side: _Side, associations: Sequence[Row]) -> list[Limits]:
    """All limits that apply to one kind of jobs, in the order of their precedence: of its
    partition's QoS and its own QoS, of the user's association, of the accounts above that.
    """
    turns: list[tuple[Row | None, str | None]] = [(site.qos(side.qos or "normal"), None)]
    if "," not in side.partition:  # else Slurm chooses a partition, and its QoS
        name = goes_first(site.partition(side.partition))
        own = None if name is None else site.qos(name)
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
            fix=f"Lower replicas to {most} at most; run further ones in another swarm.",
        )


def _of_whole_nodes(site: SiteAnswers, partition: str) -> Iterator[Finding]:
    """A finding if the endpoint would take a whole node for itself."""
    if site.gives_whole_nodes(partition):
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


def _of_partition(site: SiteAnswers, side: _Side, account: str | None) -> Iterator[Finding]:
    """The partitions' reasons against one kind of jobs, if no partition accepts it. If one of
    several partitions only makes it wait, the reasons are that partition's; otherwise those of all.
    """
    found: list[list[Finding]] = []
    for one in side.partition.split(","):
        shown = site.partition(one)
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
