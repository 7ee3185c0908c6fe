"""What sites do not take: GRES where there are none, `--mem`."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from domyn_swarm.errors import SubmitRejected
from domyn_swarm.model import JobStatus
from domyn_swarm.services.jobs import JobService
from slurm import swarms
from slurm.cluster import CLIENT_VARIABLES, SlurmCluster
from slurm.fixtures import need_programs
from slurm.swarms import Up, ended, jobs_of, ready, request, swarm_paths


@pytest.fixture(scope="module")
def without_gres() -> Iterator[SlurmCluster]:
    """A cluster that has never heard of GPUs."""
    need_programs()
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    cluster = SlurmCluster(folder, nodes=2, gpus=0)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


def gpu_swarm(**backend: Any) -> dict[str, Any]:
    return {"gpus_per_replica": 2, "gpus_per_node": 4, "min_ready": 2, "backend": backend}


def test_a_site_without_gres(without_gres: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in CLIENT_VARIABLES:
        monkeypatch.setenv(name, without_gres.env[name])
    with pytest.raises(SubmitRejected, match="generic resource") as refused:
        swarms.bring_up(swarms.config(**gpu_swarm()))
    assert "backend.gres" in refused.value.hint
    try:
        swarms.bring_up(swarms.config(**gpu_swarm(gres="none")))
        assert ready() == 2
        assert len(jobs_of(without_gres)) == 2  # nobody else binds GPUs: a node is one task's
        for index, gpus in enumerate(("0,1", "2,3")):
            log = (swarm_paths().replica_logs(index) / "engine.log").read_text()
            assert f"CUDA_VISIBLE_DEVICES={gpus}\n" in log
    finally:
        swarms.down()


REFUSES_MEMORY = """#!/bin/sh
for script; do :; done
if grep -q "^#SBATCH --mem" "$script"; then
    echo "sbatch: error: Please do not use --mem here, see https://docs.example.org/slurm" >&2
    exit 1
fi
exec {real} "$@"
"""


def test_a_site_that_takes_no_memory(
    up: Up, slurm: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sbatch = tmp_path / "bin/sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(REFUSES_MEMORY.format(real=shutil.which("sbatch", path=slurm.env["PATH"])))
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{sbatch.parent}:{slurm.env['PATH']}")
    with pytest.raises(SubmitRejected, match="do not use --mem here") as refused:
        up(**gpu_swarm(packing="node"))
    assert "backend.endpoint.mem" in refused.value.hint
    without = {"mem": None, "endpoint": {"mem": None, "cpus_per_task": 1}}
    up(**gpu_swarm(packing="node", **without))
    assert ready() == 2
    for name, resources in (("step", {}), ("job", {"detached": True})):
        asked = request(tmp_path / name, 20, resources={"detached": False, **resources})
        assert ended(JobService().submit(asked)).status is JobStatus.SUCCEEDED
