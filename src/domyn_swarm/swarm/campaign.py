"""The assumptions and the result of a rehearsed campaign; `campaign_simulation` runs it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

from domyn_swarm.backends.slurm.script_contents import drain_window_s, slurm_config
from domyn_swarm.backends.slurm.script_files import watchdog_spec
from domyn_swarm.backends.watchdog_spec import build_watchdog_spec
from domyn_swarm.config.units import time_limit_s
from domyn_swarm.errors import ConfigError
from domyn_swarm.model import Record
from domyn_swarm.paths import SwarmPaths
from domyn_swarm.planning.plan import DeploymentContext, DeploymentPlan
from domyn_swarm.record import Meta
from domyn_swarm.watchdog_rules import Spec


class Assumptions(Record):
    """The assumptions about a campaign. Times in seconds; for those that are drawn, these are the
    means.
    """

    rows: Annotated[int, Meta(gt=0)]
    row_s: Annotated[float, Meta(gt=0)] = 20.0  # seconds that a row is in flight
    row_cv: Annotated[float, Meta(ge=0)] = 1.0  # standard deviation divided by the mean; lognormal
    in_flight: Annotated[int, Meta(gt=0)] = 16  # rows in flight at each replica
    replicas: Annotated[int, Meta(gt=0)]
    gpus_per_replica: Annotated[int, Meta(ge=0)] = 1
    limit_s: tuple[float, float] | None = None  # of an allocation: drawn between these
    job_limit_s: Annotated[float, Meta(gt=0)] | None = None  # of one run of the job
    wait_s: tuple[float, ...] = (300.0,)  # in the queue: the mean, or waits to draw from
    start_s: Annotated[float, Meta(ge=0)] = 240.0  # from an allocation to a replica that serves
    preempted_per_h: Annotated[float, Meta(ge=0)] = 0.0  # of each replica's allocation
    job_preempted_per_h: Annotated[float, Meta(ge=0)] = 0.0  # of the job's allocation
    grace_s: Annotated[float, Meta(ge=0)] = 30.0  # from a preemption's signal to the kill
    failures_per_h: Annotated[float, Meta(ge=0)] = 0.0  # of each engine
    stop_after_s: Annotated[float, Meta(gt=0)] | None = None
    max_gpu_hours: Annotated[float, Meta(gt=0)] | None = None
    seed: int = 0


class Rules(NamedTuple):
    """The rules that follow from the swarm's plan."""

    watchdog: Spec
    drain_s: float  # before an allocation's end; 0: it is not warned
    supervised: bool = True  # whether a preempted or expired allocation is requeued


class Forecasted(Record):
    """The job's forecast of its remaining time when half of its rows were settled."""

    expected_s: float
    low_s: float
    high_s: float
    truth_s: float


Ended = Literal["settled", "budget", "stop_after", "fruitless", "no_replica", "never"]
"""`never`: not within ten years, or repeated allocations make no progress."""


class Rehearsed(Record):
    """The course of a campaign. Hours are GPU-hours, or replica-hours if replicas have no GPUs."""

    schema_version: Literal[1] = 1
    ended: Ended
    rows: int
    rows_settled: int
    rows_asked_again: int  # they were in flight when their replica or the job was ended
    by_hand: int  # times that a user had to intervene
    duration_s: float
    used_h: float  # from allocation to its end
    ideal_h: float  # each settled row once, with all slots busy
    efficiency: float  # ideal divided by used
    idle_h: dict[str, float]  # the rest, by cause
    happened: dict[str, int]
    forecast: Forecasted | None  # None: it ended before half of the rows


class Alternative(Record):
    """The same campaign with one setting changed."""

    changed: str
    duration_s: float
    used_h: float
    efficiency: float

    @classmethod
    def of(cls, changed: str, went: Rehearsed) -> Alternative:
        """The result of a campaign."""
        return cls(
            changed=changed,
            duration_s=went.duration_s,
            used_h=went.used_h,
            efficiency=went.efficiency,
        )


def variations(given: Assumptions, rules: Rules) -> Sequence[tuple[str, Assumptions, Rules]]:
    """The same campaign with one setting changed, each with its description."""
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
    """The output of `rehearse`."""

    schema_version: Literal[1] = 1
    assumptions: Assumptions
    result: Rehearsed
    alternatives: tuple[Alternative, ...]
    remarks: tuple[str, ...] = ()  # parts of the configuration that are not rehearsed


def rules_of(plan: DeploymentPlan, ctx: DeploymentContext) -> Rules:
    """The rules by which replicas of a swarm's plan end and start again."""
    paths = SwarmPaths.of(plan.home_directory, plan.name)
    if plan.backend != "slurm":
        spec = build_watchdog_spec(plan, ctx, paths, 0, host="")
        return Rules(Spec(**spec), 0.0)
    config = slurm_config(plan)
    spec = watchdog_spec(plan, ctx, paths, 0, 1)
    return Rules(Spec(**spec), drain_window_s(config, time_limit_s(config.longest_limit)))


_MOST_SLOTS = 2_000_000  # slots: rows are drawn one by one where their replica ends


def refuse_impossible(given: Assumptions, rules: Rules) -> None:
    """Refuse assumptions that are impossible, or take too long to rehearse.

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
