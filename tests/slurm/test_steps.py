"""Steps in an allocation that was requeued: their numbers are given again."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

import psutil
import pytest

from conformance.test_compute import (
    DRAINS,
    SHARED_TAG,
    log,
    make_spec,
    start_endpoint,
)
from domyn_swarm.backends.slurm.commands import Slurm
from domyn_swarm.backends.slurm.queue import job_name
from domyn_swarm.backends.slurm.slurm_compute import SlurmCompute
from domyn_swarm.errors import PlatformUnavailable
from domyn_swarm.model import JobHandle, JobStatus
from domyn_swarm.paths import SwarmPaths
from process_list import running
from slurm.cluster import SlurmCluster, slurm_version
from slurm.swarms import came_back, until


def started(compute: SlurmCompute, folder: Path) -> JobHandle:
    spec = make_spec(folder, DRAINS).model_copy(update={"tag": SHARED_TAG})
    handle = compute.submit(spec)
    until(lambda: "on" in log(compute, handle))
    return handle


def kill_wrapper(handle: JobHandle) -> None:
    """So that nothing is written of the job's end."""
    for process in running():
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            if "domyn_swarm.backends.exit_wrapper" in words and handle.exit_path in words:
                process.kill()


def test_no_step_begins_in_an_allocation_that_is_about_to_end(
    slurm: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint, compute = start_endpoint(slurm), SlurmCompute()
    spec = make_spec(tmp_path, DRAINS).model_copy(update={"tag": SHARED_TAG})
    leaves = SwarmPaths(Path(spec.job_dir).parents[1]).endpoint_leaves
    leaves.parent.mkdir(parents=True)
    leaves.write_text(endpoint)
    with pytest.raises(PlatformUnavailable, match="has reached its time limit") as refused:
        compute.submit(spec)
    assert "--placement job" in refused.value.hint
    leaves.write_text("0")  # the one before
    compute.check(spec)
    real = shutil.which("srun")
    srun = tmp_path / "srun"  # by the time that a step is asked for, the endpoint is leaving
    srun.write_text(f'#!/bin/sh\nprintf %s {endpoint} > "{leaves}"\nexec {real} "$@"\n')
    srun.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(PlatformUnavailable, match="has reached its time limit"):
        compute.submit(spec)
    until(lambda: job_name(spec.job_id) not in [one.comment for one in Slurm().steps().values()])


def test_a_step_is_not_taken_for_another_of_its_number(slurm: SlurmCluster, tmp_path: Path) -> None:
    endpoint, compute = start_endpoint(slurm), SlurmCompute()
    first = started(compute, tmp_path)
    kill_wrapper(first)
    until(lambda: "drained" in log(compute, first))
    slurm.run("scontrol", "requeue", endpoint)
    until(lambda: came_back(slurm, endpoint))
    second = started(compute, tmp_path)
    assert first.platform_id == second.platform_id
    assert first.step == second.step or slurm_version() < (21, 0)  # 20.11 goes on counting
    assert compute.probe(first) is JobStatus.FAILED
    compute.cancel(first)
    assert compute.probe(second) is JobStatus.RUNNING
    compute.cancel(second)
    assert compute.probe(second) is JobStatus.CANCELLED
