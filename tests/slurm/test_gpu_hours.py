"""What a job takes and costs on the real cluster: when Slurm would start more replicas, and the end
of a job whose budget of GPU-hours is used up.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

import pytest

from domyn_swarm.model import JobHandle, JobStatus
from domyn_swarm.planning.plan import JobResources
from domyn_swarm.services.jobs import JobService
from domyn_swarm.services.requests import JobChanges
from slurm.cluster import SlurmCluster
from slurm.swarms import (
    Standing,
    all_answered,
    ended,
    ready,
    request,
    standing_swarm,
    submit_held,
    until,
)

SECOND_OF_TWO = 2 / 3600  # GPU-hours


@pytest.fixture(scope="module")
def standing_one(
    slurm_cluster: SlurmCluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Standing]:
    with standing_swarm(slurm_cluster, tmp_path_factory.mktemp("standing"), min_ready=2) as one:
        yield one


@pytest.fixture
def standing(
    standing_one: Standing, slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch
) -> Standing:
    monkeypatch.setenv("DOMYN_SWARM_HOME", str(standing_one.home))
    until(lambda: ready() == 2)
    return standing_one


@pytest.mark.parametrize("resources", [JobResources(detached=True), JobResources()])
def test_a_job_ends_at_its_budget_and_goes_on_with_another_one(
    standing: Standing, resources: JobResources
) -> None:
    folder = standing.home / f"budget-{resources.detached}"
    budget = resources.model_copy(update={"max_gpu_hours": 4 * SECOND_OF_TWO})
    job = submit_held(folder, rows=64, resources=budget)
    final = ended(job.handle)
    assert final.status is JobStatus.TIMED_OUT
    assert final.message is not None
    assert "budget of 0.002222 GPU-hours (--max-gpu-hours) is used up" in final.message
    assert "of 64 rows are left" in final.message
    assert final.gpu_hours is not None
    assert final.gpu_hours >= 4 * SECOND_OF_TWO
    kept = final.rows_done
    assert 0 < kept < 64
    (job.folder / "released").touch()
    more = JobChanges(resources=budget.model_copy(update={"max_gpu_hours": 5.0}))
    again = JobService().resume(JobHandle.model_validate(job.handle.model_dump()), changes=more)
    whole = ended(again)
    assert (whole.status, whole.rows_resumed) == (JobStatus.SUCCEEDED, kept)
    assert whole.gpu_hours is not None
    assert all_answered(job.folder, 64)


def test_a_forecast_says_when_slurm_would_start_more_replicas(standing: Standing) -> None:
    asked = request(standing.home / "forecast", 48, max_concurrency=4)
    found = JobService().forecast(asked, print)
    by_replicas = {one.replicas: one for one in found.choices}
    assert found.replicas == 2
    now, twice = by_replicas[2], by_replicas[4]
    assert now.start is None
    assert datetime.fromisoformat(str(twice.start))
    assert now.gpu_hours == pytest.approx(2 * now.duration_s / 3600)
    assert datetime.fromisoformat(str(by_replicas[8].start))
    final = ended(JobService().submit(asked))
    assert (final.status, final.rows_resumed) == (JobStatus.SUCCEEDED, 24)
    assert all_answered(standing.home / "forecast", 48)
