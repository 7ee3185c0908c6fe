"""Kills for memory by the kernel: it kills a process, and Slurm says so at the end of its step."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from domyn_swarm.errors import LaunchError
from domyn_swarm.model import JobStatus
from domyn_swarm.planning.plan import JobResources
from domyn_swarm.services.jobs import JobService
from slurm.cgroups import CgroupCluster
from slurm.cluster import CLIENT_VARIABLES, SlurmCluster
from slurm.fixtures import need_programs
from slurm.swarms import bring_up, config, down, ended, jobs_of, request
from slurm.test_jobs import FAILING


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmCluster]:
    need_programs()
    if why := CgroupCluster.refusal():
        pytest.skip(f"NO TESTS OF CONTROL GROUPS: {why}")
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    cluster = CgroupCluster(folder, nodes=1)
    try:
        cluster.start()
        for name in CLIENT_VARIABLES:
            monkeypatch.setenv(name, cluster.env[name])
        monkeypatch.setenv("DOMYN_SWARM_HOME", str(tmp_path / "home"))
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


def test_jobs_and_replicas_that_the_kernel_kills_for_their_memory_say_so(
    slurm: SlurmCluster, tmp_path: Path
) -> None:
    bring_up(config(replicas=1))
    try:
        jobs, greedy = JobService(), {"job_source": FAILING, "job_kwargs": {"how": "memory"}}
        for name, detached in (("job", True), ("step", False)):
            resources = JobResources(detached=detached)
            asked = request(tmp_path / name, 20, job="source:Ends", resources=resources, **greedy)
            assert ended(jobs.submit(asked)).status is JobStatus.OUT_OF_MEMORY, name
    finally:
        down()

    takes_all = "import time; kept = b'x' * 900_000_000; time.sleep(600)"
    with pytest.raises(LaunchError, match="by SIGKILL for its memory: raise memory_gb"):
        bring_up(
            config(
                engine="command",
                replicas=1,
                gpus_per_replica=0,
                memory_gb=0.5,
                engine_options={"argv": ["{python}", "-c", takes_all, "{port}"]},
                watchdog={"probe_interval": 1, "kill_grace_seconds": 3, "max_restarts": 1},
            )
        )
    assert jobs_of(slurm) == {}
