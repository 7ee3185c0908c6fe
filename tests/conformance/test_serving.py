"""Every serving backend runs these cases; a gap is declared with its reason, and must be one."""

from __future__ import annotations

import inspect
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from domyn_swarm import engines
from domyn_swarm.backends.lepton.lepton_serving import LeptonServing
from domyn_swarm.backends.local.local_serving import LocalServing
from domyn_swarm.backends.protocols import PartRecorder, PlatformPart, ServingBackend, ServingHandle
from domyn_swarm.backends.slurm.slurm_serving import SlurmServing
from domyn_swarm.config import DomynLLMSwarmConfig
from domyn_swarm.errors import PlatformError
from domyn_swarm.model import Reach, ReplicaState
from domyn_swarm.paths import SwarmPaths, write_private
from domyn_swarm.planning.builder import PlanBuilder
from domyn_swarm.planning.plan import DeploymentContext, DeploymentPlan, lay_out
from domyn_swarm.probing import Phase, endpoint_probe
from lepton.fixtures import SECTION
from patience import limit_s, until


@dataclass(frozen=True)
class BackendUnderTest:
    """How to make one, its section of a configuration, and what it cannot do (case → reason)."""

    name: str
    make: Callable[[], ServingBackend]
    section: Mapping[str, Any]
    gaps: Mapping[str, str] = field(default_factory=dict)


BACKENDS = [
    BackendUnderTest("local", LocalServing, {"type": "local"}),
    BackendUnderTest(
        "slurm",
        SlurmServing,
        {
            "type": "slurm",
            "partition": "main",
            "container": "none",
            "endpoint": {"mem": "1000M", "cpus_per_task": 1},
        },
    ),
    BackendUnderTest("lepton", LeptonServing, SECTION),
    BackendUnderTest("lepton-new-api", LeptonServing, SECTION),
]


@dataclass
class Deployment:
    """A plan with its context, launched at most once."""

    backend: ServingBackend
    plan: DeploymentPlan
    context: DeploymentContext
    paths: SwarmPaths
    recorded: list[PlatformPart] = field(default_factory=list)

    def up(self) -> ServingHandle:
        return self.launched(self.record)

    def launched(self, record: PartRecorder) -> ServingHandle:
        scripts = self.backend.scripts(self.plan, self.context)
        return self.backend.launch(self.plan, self.context, scripts, record)

    def record(self, *parts: PlatformPart) -> None:
        self.recorded += parts

    @property
    def anything(self) -> ServingHandle:
        """A handle that knows the tag alone."""
        return ServingHandle(
            platform=self.plan.backend, tag=self.context.tag, swarm_dir=str(self.paths.root)
        )


@pytest.fixture(params=BACKENDS, ids=lambda one: one.name)
def under_test(request: pytest.FixtureRequest) -> BackendUnderTest:
    found: BackendUnderTest = request.param
    if found.name == "slurm":
        request.getfixturevalue("slurm")
    if found.name.startswith("lepton"):
        request.getfixturevalue("lepton").new_api = found.name == "lepton-new-api"
    case = request.node.originalname.removeprefix("test_")
    if case in found.gaps:
        request.applymarker(pytest.mark.xfail(strict=True, reason=found.gaps[case]))
    return found


@pytest.fixture
def deploy(under_test: BackendUnderTest, swarm_home: Path) -> Iterator[Callable[..., Deployment]]:
    made: list[Deployment] = []

    def make(name: str = "demo", **keys: Any) -> Deployment:
        fields = {
            "model": "m",
            "engine": "sim",
            "backend": dict(under_test.section),
            "watchdog": {"probe_interval": 1, "kill_grace_seconds": 3},
            **keys,
        }
        config = DomynLLMSwarmConfig.model_validate(fields)
        plan = PlanBuilder(config, name).build()
        paths = SwarmPaths.of(plan.home_directory, name)
        for key in (paths.api_key, paths.collector_key):
            write_private(key, secrets.token_urlsafe(16))
        write_private(paths.plan, plan.model_dump_json())
        context = DeploymentContext(
            tag=f"{name}.{secrets.token_hex(4)}",
            serving_spec=engines.get("sim").serving_spec(plan),
            timeout_s=limit_s(),
            interpreter=sys.executable,
        )
        made.append(Deployment(under_test.make(), plan, context, paths))
        return made[-1]

    yield make
    for deployment in made:
        deployment.backend.delete(deployment.anything)
        assert deployment.backend.find(deployment.anything) == []


def ready_replicas(deployment: Deployment) -> int:
    view = deployment.backend.view(deployment.anything)
    reports = view.replicas if view else ()
    return sum(report.state is ReplicaState.READY for report in reports)


def submission(part: PlatformPart) -> str:
    """What was started at once: a process, or all tasks of an array."""
    return part.platform_id.partition("_")[0]


def test_a_launched_swarm_serves_and_is_gone_when_deleted(
    deploy: Callable[..., Deployment],
) -> None:
    deployment = deploy(replicas=2)
    handle = deployment.up()
    assert [(part.kind, part.index) for part in handle.parts] == [
        ("endpoint", 0),
        ("replica", 0),
        ("replica", 1),
    ]
    assert tuple(deployment.recorded) == handle.parts
    until(lambda: ready_replicas(deployment) == 2)
    until(lambda: deployment.backend.probe(handle).phase is Phase.READY)
    address = deployment.backend.address(handle)
    assert address is not None
    key = deployment.paths.api_key.read_text()
    until(lambda: endpoint_probe(address.url, key)().phase is Phase.READY)
    parts = deployment.backend.probe_parts(handle)
    assert set(parts) == {part.platform_id for part in handle.parts}
    deployment.backend.delete(handle)
    assert deployment.backend.probe(handle).phase is Phase.STOPPED
    assert deployment.backend.find(deployment.anything) == []
    deployment.backend.delete(handle)  # idempotent


def test_a_swarm_grows_and_shrinks(deploy: Callable[..., Deployment]) -> None:
    deployment = deploy(replicas=2)
    handle = deployment.up()
    until(lambda: ready_replicas(deployment) == 2)

    def scale(replicas: int) -> None:
        layout = lay_out(replicas, 0, 4)
        plan = deployment.plan.model_copy(update={"layout": layout})
        write_private(deployment.paths.plan, plan.model_dump_json())
        backend = deployment.backend
        backend.scale(plan, deployment.context, handle, deployment.record)

    def running() -> set[int]:
        found = deployment.backend.find(deployment.anything)
        return {part.index for one in found for part in one.parts if part.kind == "replica"}

    scale(4)
    scale(4)  # idempotent
    assert running() == {0, 1, 2, 3}
    assert {part.index for part in deployment.recorded if part.kind == "replica"} == {0, 1, 2, 3}
    until(lambda: ready_replicas(deployment) == 4)
    scale(1)
    until(lambda: ready_replicas(deployment) == 1)
    until(lambda: running() == {0})
    view = deployment.backend.view(deployment.anything)
    assert view is not None
    assert [report.replica for report in view.replicas] == [0]


def test_what_was_never_launched_is_stopped(deploy: Callable[..., Deployment]) -> None:
    deployment = deploy()
    assert deployment.backend.find(deployment.anything) == []
    assert deployment.backend.probe(deployment.anything).phase is Phase.STOPPED
    deployment.backend.delete(deployment.anything)


def test_everything_is_found_by_the_tag_alone(deploy: Callable[..., Deployment]) -> None:
    deployment, other = deploy("one", replicas=2), deploy("two")
    handle = deployment.up()
    other_handle = other.up()
    [found] = deployment.backend.find(deployment.anything)
    assert found.parts == handle.parts
    deployment.backend.delete(deployment.anything)
    assert deployment.backend.probe(handle).phase is Phase.STOPPED
    assert other.backend.find(other.anything)[0].parts == other_handle.parts


def test_a_launch_that_breaks_off_leaves_nothing_unrecorded(
    deploy: Callable[..., Deployment],
) -> None:
    deployment = deploy(replicas=3)

    def record(*parts: PlatformPart) -> None:
        deployment.record(*parts)
        if len(deployment.recorded) >= 2:
            raise PlatformError("broken off")

    with pytest.raises(PlatformError, match="broken off"):
        deployment.launched(record)
    [found] = deployment.backend.find(deployment.anything)
    assert [part for part in found.parts if part in deployment.recorded] == deployment.recorded
    assert {submission(part) for part in found.parts} == {
        submission(part) for part in deployment.recorded
    }


def test_a_swarm_outlives_the_process_that_launched_it(
    deploy: Callable[..., Deployment],
) -> None:
    deployment = deploy()
    kind = type(deployment.backend)
    program = f"""
import os, signal
from {kind.__module__} import {kind.__name__}
from domyn_swarm.planning.plan import DeploymentContext
from domyn_swarm.planning.plan import DeploymentPlan
plan = DeploymentPlan.model_validate_json({deployment.plan.model_dump_json()!r})
context = DeploymentContext.model_validate_json({deployment.context.model_dump_json()!r})
backend = {kind.__name__}()
backend.launch(plan, context, backend.scripts(plan, context), lambda *parts: None)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == -9, done.stderr
    until(lambda: ready_replicas(deployment) == 1)


def test_it_knows_what_was_started_where_it_cannot_ask(under_test: BackendUnderTest) -> None:
    backend = under_test.make()
    here = backend.location(under_test.section)
    assert backend.reach(here) is backend.reach(None) is Reach.HERE
    elsewhere = here.model_copy(update={"name": "far", "boot_id": "another"})
    assert backend.reach(elsewhere) is Reach.ELSEWHERE


def test_signatures_are_the_protocols(under_test: BackendUnderTest) -> None:
    for name in (
        "launch",
        "probe",
        "probe_parts",
        "expiries",
        "address",
        "view",
        "fetch_logs",
        "lost",
        "find",
        "delete",
    ):
        theirs = inspect.signature(getattr(ServingBackend, name)).parameters
        ours = inspect.signature(getattr(type(under_test.make()), name)).parameters
        assert [(p.name, p.kind, p.default) for p in ours.values()] == [
            (p.name, p.kind, p.default) for p in theirs.values()
        ]
