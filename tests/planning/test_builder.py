"""Plans: exactly the replicas asked for, on any nodes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from domyn_swarm.config import DomynLLMSwarmConfig
from domyn_swarm.errors import ConfigError
from domyn_swarm.planning.builder import PlanBuilder
from domyn_swarm.planning.plan import DeploymentPlan, lay_out


def build(**keys: Any) -> DeploymentPlan:
    config = DomynLLMSwarmConfig.model_validate({"model": "m", "backend": "local", **keys})
    return PlanBuilder(config, "demo").build()


@given(st.integers(1, 200), st.integers(0, 16), st.integers(0, 16))
def test_exactly_the_replicas_asked_for(replicas: int, per_replica: int, per_node: int) -> None:
    try:
        layout = lay_out(replicas, per_replica, per_node)
    except ConfigError:
        assert per_replica > per_node
        assert per_node == 0 or per_replica % per_node
        return
    assert layout.replicas == replicas
    assert layout.tensor_parallel * layout.pipeline_parallel == max(1, per_replica)
    if layout.nodes_per_replica == 1:
        assert layout.replicas_per_node * per_replica <= per_node
        assert (layout.nodes - 1) * layout.replicas_per_node < replicas
        assert layout.nodes * layout.replicas_per_node >= replicas
    else:
        assert layout.nodes == replicas * layout.nodes_per_replica
        assert layout.nodes_per_replica * per_node == per_replica


@pytest.mark.parametrize(
    ("keys", "gpus"),
    [
        ({"engine": "vllm"}, 1),
        ({"engine": "sglang"}, 1),
        ({"engine": "llamacpp"}, 0),
        ({"engine": "llamacpp", "gpus_per_replica": 2}, 2),
        ({"engine": "vllm", "gpus_per_replica": 0}, 0),
    ],
)
def test_gpus_follow_the_engine_unless_told(keys: dict[str, Any], gpus: int) -> None:
    plan = build(**keys)
    assert (plan.resources.gpus, plan.layout.gpus_per_replica) == (gpus, gpus)


@pytest.mark.parametrize(
    ("args", "parsed"),
    [
        ("--a 'b c' --d=$HOME", ("--a", "b c", "--d=$HOME")),
        (["--a", "b c", '{"x": {"y": 1}}', 3], ("--a", "b c", '{"x": {"y": 1}}', "3")),
        ("", ()),
    ],
)
def test_arguments_arrive_as_they_are(args: Any, parsed: tuple[str, ...]) -> None:
    assert build(args=args).args == parsed


def test_a_plan_survives_the_disk_and_is_the_same_for_the_same_configuration() -> None:
    plan = build(replicas=5, env={"A": "1"}, watchdog={"progress_timeout": 9})
    assert DeploymentPlan.model_validate_json(plan.model_dump_json()) == plan
    assert build(replicas=5, env={"A": "1"}, watchdog={"progress_timeout": 9}) == plan


def test_the_users_environment_wins_over_the_platforms() -> None:
    backend = {"type": "slurm", "partition": "p", "env": {"A": "platform", "B": "2"}}
    assert build(backend=backend, env={"A": "user"}).env == {"A": "user", "B": "2"}


@pytest.mark.parametrize(
    ("gpus_per_replica", "requires_ray", "ray", "expected"),
    [
        (8, True, {}, 8),  # of all nodes, not of one
        (8, False, {"enabled": True}, 8),
        (8, True, {"expected_tp": 6}, 6),
        (8, False, {}, None),
        (4, True, {"enabled": True}, None),  # on one node there is nothing to hold together
    ],
)
def test_the_watchdog_expects_the_gpus_of_all_nodes_where_ray_holds_them_together(
    gpus_per_replica: int, requires_ray: bool, ray: dict[str, Any], expected: int | None
) -> None:
    backend = {"type": "slurm", "partition": "p", "requires_ray": requires_ray}
    sizes = {"gpus_per_replica": gpus_per_replica, "gpus_per_node": 4}
    found = build(backend=backend, watchdog={"ray": ray}, **sizes).watchdog.ray
    assert (found and found.gpus) == expected


@given(st.sampled_from(["vllm", "sim"]), st.none() | st.integers(0, 40), st.integers(0, 16))
def test_a_valid_configuration_always_has_a_layout(
    engine: str, per_replica: int | None, per_node: int
) -> None:
    gpus = (1 if engine == "vllm" else 0) if per_replica is None else per_replica
    backend = {"type": "slurm", "partition": "p"}
    keys = {"engine": engine, "gpus_per_replica": per_replica, "gpus_per_node": per_node}
    keys["backend"] = backend
    try:
        layout = lay_out(1, gpus, per_node)
    except ConfigError:
        with pytest.raises(ValidationError, match="gpus_per_replica"):
            build(**keys)
    else:
        assert build(**keys).layout == layout
