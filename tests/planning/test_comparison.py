"""What differs between two plans, in the words of a configuration."""

from __future__ import annotations

import pytest

from domyn_swarm.config import DomynLLMSwarmConfig
from domyn_swarm.planning.builder import PlanBuilder
from domyn_swarm.planning.plan import DeploymentPlan, differences

KEYS = {
    "model": "m",
    "replicas": 2,
    "gpus_per_replica": 2,
    "args": "--a b",
    "backend": {"type": "slurm", "partition": "gpu"},
}


def plan(**keys: object) -> DeploymentPlan:
    return PlanBuilder(DomynLLMSwarmConfig.model_validate({**KEYS, **keys}), "demo").build()


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({}, {}),
        ({"args": ["--a", "b"]}, {}),  # written otherwise, and the same
        ({"replicas": 4}, {"replicas": ("2", "4")}),
        ({"gpus_per_replica": 4}, {"gpus_per_replica": ("2", "4")}),
        ({"cpus_per_task": 3}, {"cpus_per_task": ("not set", "3")}),
        ({"port": 9000}, {"port": ("8000", "9000")}),
        ({"watchdog": {"max_restarts": 9}}, {"watchdog.max_restarts": ("3", "9")}),
        ({"router": {"policy": "random"}}, {"router.policy": ('"least_load"', '"random"')}),
        ({"env": {"A": "b"}}, {"env.A": ("not set", '"b"')}),
        ({"args": "x" * 99}, {"args": ('["--a", "b"]', '["' + 57 * "x" + "…")}),
        (
            {"backend": {"type": "slurm", "partition": "cpu"}},
            {"backend.partition": ('"gpu"', '"cpu"')},
        ),
    ],
)
def test_what_differs_is_named_as_a_configuration_calls_it(
    changed: dict[str, object], told: dict[str, tuple[str, str]]
) -> None:
    there = DeploymentPlan.model_validate_json(plan().model_dump_json())  # as it is recorded
    assert differences(there, plan(**changed)) == told
