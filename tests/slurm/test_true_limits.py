"""True time limits, minutes long: `make test-slow`. The same code is tested in seconds elsewhere,
by signals sent by hand; here Slurm itself warns, and ends what does not listen.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from domyn_swarm.model import JobStatus
from domyn_swarm.planning.plan import JobResources
from domyn_swarm.services.jobs import JobService
from patience import limit_s, scaled
from slurm.cluster import SlurmCluster
from slurm.swarms import (
    Up,
    all_answered,
    endpoint_job,
    jobs_of,
    ready,
    request,
    restarts,
    task,
    until,
)

MOST_S = scaled(800)  # Slurm's own minutes, and what runs meanwhile
pytestmark = [pytest.mark.slow, pytest.mark.timeout(MOST_S + limit_s())]

# Slurm looks every half minute: the warning may come that much earlier than asked.
LIMITS = {"time_limit": "00:02:00", "drain_before_end_s": 30}
ENDPOINT = {"mem": "1000M", "cpus_per_task": 1, "wall_time": "00:03:00"}


def test_replicas_and_endpoint_reach_their_limits_under_a_job(
    up: Up, slurm: SlurmCluster, tmp_path: Path
) -> None:
    service = up(min_ready=2, backend={**LIMITS, "endpoint": ENDPOINT})
    replicas = [task(slurm, index) for index in range(2)]
    endpoint = next(one for one in jobs_of(slurm) if "_" not in one)
    jobs = JobService()
    rows = 40_000  # five minutes
    patient = JobResources(detached=True, time_limit_s=1200)
    handle = jobs.submit(request(tmp_path, rows, resources=patient))
    began = time.monotonic()
    ended = jobs.wait(handle, timeout_s=MOST_S)
    print(f"the job took {time.monotonic() - began:.0f} s: {ended.account}")
    restarted = [restarts(slurm, one) for one in [*replicas, endpoint]]
    print(f"restarts of the replicas and of the endpoint: {restarted}")
    assert ended.status is JobStatus.SUCCEEDED
    assert ended.account is not None
    assert all_answered(tmp_path, rows)
    assert min(restarted) >= 1
    assert ended.account.rows_failed == 0
    until(lambda: ready() == 2)
    assert service.status("demo").observed == "ready"


def test_replicas_end_after_their_endpoint_was_cancelled(up: Up, slurm: SlurmCluster) -> None:
    service = up(min_ready=2)
    slurm.run("scancel", endpoint_job(slurm))
    until(lambda: service.status("demo").observed == "failed")
    began = time.monotonic()
    assert len(jobs_of(slurm)) == 2  # they wait for somebody to bring it back
    while jobs_of(slurm):
        assert time.monotonic() - began < MOST_S
        time.sleep(1.0)
    print(f"the replicas ended after {time.monotonic() - began:.0f} s")
    assert [one.state for one in service.status("demo").replicas] != ["ready", "ready"]


def test_a_job_reaches_its_own_limit_and_goes_on(
    up: Up, slurm: SlurmCluster, tmp_path: Path
) -> None:
    up(min_ready=2)
    jobs = JobService()
    asked = JobResources(detached=True, time_limit_s=120, continues=False)
    handle = jobs.submit(request(tmp_path, 30_000, resources=asked))
    said: list[str | None] = []
    ended = jobs.wait(handle, timeout_s=MOST_S, on_progress=lambda seen: said.append(seen.message))
    assert ended.status is JobStatus.TIMED_OUT
    assert "its time limit of 2 min (--time)" in str(ended.message)
    assert any("too slow to be done when its time is up" in str(one) for one in said)
    done = ended.rows_done
    again = jobs.wait(jobs.resume(handle), timeout_s=MOST_S)
    while again.status is JobStatus.TIMED_OUT:
        again = jobs.wait(jobs.resume(again.job_id), timeout_s=MOST_S)
    assert again.status is JobStatus.SUCCEEDED
    assert again.account is not None
    print(f"{done} rows in the first run; {again.account}")
    assert again.account.requests <= 30_000 + again.account.runs * 16
    assert all_answered(tmp_path, 30_000)


def test_a_job_reaches_its_own_limit_again_and_again_and_needs_no_hands(
    up: Up, slurm: SlurmCluster, tmp_path: Path
) -> None:
    up(min_ready=2)
    jobs = JobService()
    asked = JobResources(detached=True, time_limit_s=120)
    handle = jobs.submit(request(tmp_path, 30_000, resources=asked))
    ended = jobs.wait(handle, timeout_s=MOST_S)
    assert ended.status is JobStatus.SUCCEEDED
    assert ended.runs is not None
    assert ended.runs >= 2
    assert ended.account is not None
    print(f"{ended.account}")
    assert ended.account.requests <= 30_000 + ended.runs * 16
    assert all_answered(tmp_path, 30_000)
