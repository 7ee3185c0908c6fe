"""A site whose prolog fails: Slurm puts what it could not start back into the queue, held."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from domyn_swarm.errors import LaunchError
from slurm.cluster import CLIENT_VARIABLES, SlurmCluster
from slurm.fixtures import need_programs
from slurm.swarms import bring_up, config, jobs_of


@pytest.fixture
def failing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmCluster]:
    need_programs()
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    cluster = SlurmCluster(folder, nodes=2, settings="Prolog=/bin/false")
    try:
        cluster.start()
        for name in CLIENT_VARIABLES:
            monkeypatch.setenv(name, cluster.env[name])
        monkeypatch.setenv("DOMYN_SWARM_HOME", str(tmp_path / "home"))
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


def test_what_slurm_cannot_start_ends_up_and_names_the_way_out(failing: SlurmCluster) -> None:
    with pytest.raises(LaunchError) as told:
        bring_up(config())
    assert "launch failed requeued held" in told.value.message.replace("_", " ")
    assert "prolog" in told.value.message
    assert "`scontrol release " in told.value.message
    assert jobs_of(failing) == {}
