"""One cluster for the whole session; a test that uses `slurm` submits to it."""

from __future__ import annotations

import getpass
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm.cluster import SlurmCluster, missing_programs


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[SlurmCluster]:
    """Four nodes with four GPUs each, without accounting."""
    missing = missing_programs()
    if missing:
        why = f"Slurm is not installed ({', '.join(missing)}): `make slurm-packages` does it"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(f"NO SLURM TESTS: {why}")
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # sockets' paths must be short
    cluster = SlurmCluster(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def slurm(slurm_cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmCluster]:
    """The cluster, as this process' own; its jobs of one test do not outlive it."""
    for name in ("SLURM_CONF", "PATH", "HWLOC_COMPONENTS"):
        monkeypatch.setenv(name, slurm_cluster.env[name])
    yield slurm_cluster
    slurm_cluster.run("scancel", "--quiet", "--user", getpass.getuser())
