"""The protocol of an LLM server program: how to run it, and how to read why it ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from domyn_swarm.model import Record
from domyn_swarm.planning.plan import DeploymentPlan, FailurePattern, ServingSpec


class Diagnosis(Record):
    """Why an engine ended, according to the end of its log."""

    cause: str
    hint: str
    retryable: bool
    line: str  # the line of the log that matched


class Engine(Protocol):
    """One LLM server program."""

    name: str
    failure_patterns: Sequence[FailurePattern]

    def serving_spec(self, plan: DeploymentPlan) -> ServingSpec:
        """The command, environment, readiness path and metric names of one replica.

        Raises:
            ConfigError: the model or an option cannot be served by this engine on this machine.
        """


def diagnose(patterns: Sequence[FailurePattern], log_tail: str) -> Diagnosis | None:
    """The diagnosis by the first of `patterns` that matches the tail of an engine's log, or None.

    It is the watchdog's own rule, applied to an engine that never served.
    """
    from domyn_swarm import watchdog_rules

    known = [pattern.model_dump() for pattern in patterns]
    diagnosis = watchdog_rules.diagnose(known, log_tail, served=False, killed=False)
    if diagnosis is None:
        return None
    return Diagnosis(**{name: diagnosis[name] for name in Diagnosis.field_names()})


_START = ("ray", "start", "--block", "--disable-usage-stats")


def by_ray(plan: DeploymentPlan) -> bool:
    """Whether Ray holds the nodes of a replica together."""
    return plan.layout.nodes_per_replica > 1 and bool(plan.backend_options.get("requires_ray"))


def ray_nodes(plan: DeploymentPlan) -> dict[str, tuple[str, ...]]:
    """The fields of a `ServingSpec` that start a Ray cluster over the nodes of a replica."""
    gpus = f"--num-gpus={plan.layout.tensor_parallel}"
    dashboard = f"--dashboard-port={plan.backend_options['ray_dashboard_port']}"
    first = ("--head", "--node-ip-address={head}", "--port={port}", dashboard)
    return {
        "companion_argv": (*_START, gpus, *first),
        "follower_argv": (*_START, gpus, "--address={head}:{port}"),
    }
