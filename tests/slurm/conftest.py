"""A scripted Slurm in virtual time, and a swarm on it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from domyn_swarm.paths import SwarmPaths
from slurm.scripted import ScriptedCluster
from slurm.scripted_swarm import Launch, ScriptedSwarm
from virtual_time import FilingClock


@pytest.fixture
def clock(tmp_path: Path) -> FilingClock:
    return FilingClock(SwarmPaths.of(tmp_path, "demo").endpoint.parent)


@pytest.fixture
def scripted(clock: FilingClock) -> ScriptedCluster:
    return ScriptedCluster(clock)


@pytest.fixture
def launch(scripted: ScriptedCluster, tmp_path: Path) -> Launch:
    """Launches a swarm that runs when this returns; its keys are those of the backend section."""

    def launched(
        *, replicas: int | Mapping[str, int] = 2, gpus_per_replica: int = 1, **backend: object
    ):
        return ScriptedSwarm(scripted, tmp_path, replicas, gpus_per_replica, backend)

    return launched


@pytest.fixture
def swarm(launch: Launch) -> ScriptedSwarm:
    return launch()
