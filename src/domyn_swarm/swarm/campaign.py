"""What is taken to happen to a campaign, and how it goes: see `campaign_course`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

from domyn_swarm.backends.slurm.folder import watchdog_spec
from domyn_swarm.backends.slurm.layout import drain_window_s, slurm_config
from domyn_swarm.backends.watchdog_spec import build_watchdog_spec
from domyn_swarm.config.units import time_limit_s
from domyn_swarm.errors import ConfigError
from domyn_swarm.model import Record
from domyn_swarm.paths import SwarmPaths
from domyn_swarm.planning.plan import DeploymentContext, DeploymentPlan
from domyn_swarm.record import Meta
from domyn_swarm.watchdog_rules import Spec


class Assumptions(Record):
    """What is taken to happen. Times in seconds; those that are drawn have these means."""

    rows: Annotated[int, Meta(gt=0)]
    row_s: Annotated[float, Meta(gt=0)] = 20.0  # that a row is in flight
    row_cv: Annotated[float, Meta(ge=0)] = 1.0  # deviation of that by its mean; lognormal
    in_flight: Annotated[int, Meta(gt=0)] = 16  # rows at once at each replica
    replicas: Annotated[int, Meta(gt=0)]
    gpus_per_replica: Annotated[int, Meta(ge=0)] = 1
    limit_s: tuple[float, float] | None = None  # of an allocation: drawn between these
    job_limit_s: Annotated[float, Meta(gt=0)] | None = None  # of one run of the job
    wait_s: tuple[float, ...] = (300.0,)  # in the queue: the mean, or waits to draw from
    start_s: Annotated[float, Meta(ge=0)] = 240.0  # from an allocation to a replica that serves
    preempted_per_h: Annotated[float, Meta(ge=0)] = 0.0  # of each replica's allocation
    job_preempted_per_h: Annotated[float, Meta(ge=0)] = 0.0  # of the job's
    grace_s: Annotated[float, Meta(ge=0)] = 30.0  # from a preemption's signal to the kill
    failures_per_h: Annotated[float, Meta(ge=0)] = 0.0  # of each engine
    stop_after_s: Annotated[float, Meta(gt=0)] | None = None
    max_gpu_hours: Annotated[float, Meta(gt=0)] | None = None
    seed: int = 0


class Rules(NamedTuple):
    """What the swarm's plan says."""

    watchdog: Spec
    drain_s: float  # before an allocation's end; 0: it is not warned
    supervised: bool = True  # what was preempted or reached its limit comes back


class Forecasted(Record):
    """What the job would have said of the time left when half of its rows were done."""

    expected_s: float
    low_s: float
    high_s: float
    truth_s: float


Ended = Literal["settled", "budget", "stop_after", "fruitless", "no_replica", "never"]
"""`never`: not within ten years, or allocation after allocation brings it no nearer to its end."""


class Rehearsed(Record):
    """How a campaign went. Hours are of GPUs, or of replicas where those have none."""

    schema_version: Literal[1] = 1
    ended: Ended
    rows: int
    rows_settled: int
    rows_asked_again: int  # they were in flight as their replica or the job was ended
    by_hand: int  # times that somebody had to do something
    duration_s: float
    used_h: float  # from allocation to its end
    ideal_h: float  # each settled row once, at full slots
    efficiency: float  # ideal by used
    idle_h: dict[str, float]  # the rest by cause
    happened: dict[str, int]
    forecast: Forecasted | None  # None: it ended before half


class Alternative(Record):
    """The same campaign with one thing changed."""

    changed: str
    duration_s: float
    used_h: float
    efficiency: float

    @classmethod
    def of(cls, changed: str, went: Rehearsed) -> Alternative:
        """What became of it."""
        return cls(
            changed=changed,
            duration_s=went.duration_s,
            used_h=went.used_h,
            efficiency=went.efficiency,
        )


def variations(given: Assumptions, rules: Rules) -> Sequence[tuple[str, Assumptions, Rules]]:
    """The same with one setting changed, each with its words."""
    tried: list[tuple[str, Assumptions, Rules]] = [
        (f"replicas {count}", given.model_copy(update={"replicas": count}), rules)
        for count in (max(1, given.replicas // 2), 2 * given.replicas)
        if count != given.replicas
    ]
    if given.limit_s is not None:
        low_s, high_s = given.limit_s
        tried += [
            (
                f"time limit {words}",
                given.model_copy(update={"limit_s": (times * low_s, times * high_s)}),
                rules,
            )
            for words, times in (("halved", 0.5), ("doubled", 2.0))
            if times * low_s > rules.drain_s + given.start_s
        ]
    if rules.drain_s:
        longer = rules.watchdog._replace(drain_seconds=2 * rules.watchdog.drain_seconds)
        tried.append(
            (
                "twice the time to drain (drain_before_end_s, kill_grace_seconds)",
                given,
                rules._replace(watchdog=longer, drain_s=2 * rules.drain_s),
            )
        )
    return tried


class CampaignRehearsal(Record):
    """What `rehearse` prints."""

    schema_version: Literal[1] = 1
    assumptions: Assumptions
    result: Rehearsed
    alternatives: tuple[Alternative, ...]
    remarks: tuple[str, ...] = ()  # what of the configuration is not rehearsed as it is


def rules_of(plan: DeploymentPlan, ctx: DeploymentContext) -> Rules:
    """What a swarm's plan says of how its replicas end and start again."""
    paths = SwarmPaths.of(plan.home_directory, plan.name)
    if plan.backend != "slurm":
        told = build_watchdog_spec(plan, ctx, paths, 0, host="")
        return Rules(Spec(**told), 0.0)
    config = slurm_config(plan)
    told = watchdog_spec(plan, ctx, paths, 0, 1)
    return Rules(Spec(**told), drain_window_s(config, time_limit_s(config.time_limit)))


_MOST_SLOTS = 2_000_000  # rows at once: each is drawn where its replica ends


def refuse_impossible(given: Assumptions, rules: Rules) -> None:
    """Refuse what no campaign can be, or none that is rehearsed in a while.

    Raises:
        ConfigError: says which.
    """
    if given.limit_s is not None and given.limit_s[0] <= rules.drain_s + given.start_s:
        raise ConfigError(
            f"A replica with a time limit of {given.limit_s[0]:g} s never serves: it takes "
            f"{given.start_s:g} s to start and drains for {rules.drain_s:g} s.",
            hint="Give it more time, or lower drain_before_end_s.",
        )
    if given.max_gpu_hours is not None and given.gpus_per_replica == 0:
        raise ConfigError(
            "--max-gpu-hours: the swarm's replicas have no GPUs (gpus_per_replica: 0).",
            hint="Take it out, or bound the job with --stop-after TIME.",
        )
    if given.replicas * given.in_flight > _MOST_SLOTS:
        raise ConfigError(
            f"{given.replicas} replicas with {given.in_flight} rows at once each are more than can "
            f"be rehearsed: {_MOST_SLOTS} rows at once.",
            hint="Rehearse a tenth of the replicas, with a tenth of the rows.",
        )
