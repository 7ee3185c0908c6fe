"""What a job costs in GPU-hours, in virtual time, and what its swarm's folder says of that."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from domyn_swarm.backends.endpoint.view import CollectorView
from domyn_swarm.batch.outcomes.tally import Tally
from domyn_swarm.errors import EXIT_BUDGET_SPENT, JobError
from domyn_swarm.jobs.gpu_hours import Budget, GpuHours, Held, gpu_hours_of
from domyn_swarm.jobs.worker_spec import JobSpec
from domyn_swarm.model import (
    ExitRecord,
    JobProgress,
    JobStatus,
    ReplicaReport,
    ReplicaState,
    TimeLeft,
    utc_now,
)
from domyn_swarm.paths import JobPaths, SwarmPaths, write_private
from virtual_time import VirtualClock

TAG = "demo.t1"


def counted(held: list[Held | None], seconds_each: float, spent: float = 0.0) -> GpuHours:
    """A count over spans in each of which the swarm holds something else."""
    clock, answers = VirtualClock(), iter(held)
    now: list[Held | None] = [None]
    hours = GpuHours(lambda: now[0], spent, clock)
    for one in answers:
        now[0] = one
        hours.count()
        for _ in range(round(seconds_each)):
            clock.sleep(1.0)
            hours.count()
    return hours


@pytest.mark.parametrize(
    ("held", "hours"),
    [
        ([Held(8, 1)], 8.0),
        ([Held(8, 2)], 4.0),  # two jobs share it
        ([Held(8, 1), Held(8, 4)], 10.0),
        ([Held(0, 1)], 0.0),
        ([Held(16, 1), Held(0, 1)], 16.0),  # its replicas went back into the queue
        ([None], 0.0),
    ],
)
def test_a_job_costs_its_share_of_the_gpus_that_are_up(
    held: list[Held | None], hours: float
) -> None:
    assert counted(held, 3600.0).spent == pytest.approx(hours, rel=0.002)


def test_jobs_that_share_a_swarm_cost_together_what_it_holds() -> None:
    shares = [Held(12, jobs).hours(3600.0) * jobs for jobs in (1, 2, 3, 5)]
    assert shares == pytest.approx([12.0] * 4)


def test_what_earlier_runs_have_cost_counts() -> None:
    assert counted([Held(2, 1)], 1800.0, spent=3.5).spent == pytest.approx(4.5, rel=0.002)


def test_what_cannot_be_read_for_a_moment_is_taken_to_be_as_it_was() -> None:
    clock = VirtualClock()
    answers: Iterator[Held | None] = iter([Held(4, 1)])
    hours = GpuHours(lambda: next(answers, None), clock=clock)
    for _ in range(3601):
        hours.count()
        clock.sleep(1.0)
    assert hours.spent == pytest.approx(4.0)


# -- the budget ------------------------------------------------------------------------------------


def test_a_budget_ends_a_job_at_its_hours_and_says_what_is_left() -> None:
    hours = counted([Held(4, 1)], 1800.0)
    tally = Tally(rows_total=100, rows_answered=40)
    assert Budget(1.99, hours).spent
    assert not Budget(2.01, hours).spent
    assert not Budget(None, hours).spent
    said = Budget(2.0, hours).over("j-1", tally)
    assert "Its budget of 2 GPU-hours (--max-gpu-hours) is used up; 60 of 100 rows are left" in str(
        said
    )
    assert "job resume j-1 --max-gpu-hours H" in str(said)
    assert hours.left(TimeLeft(900.0, 600.0, 1800.0)) == "about 1 GPU-hours (0.667-2)"
    assert hours.left(None) is None


def test_a_budget_that_nobody_can_count_is_refused() -> None:
    Budget(None, None).check_counted()
    with pytest.raises(JobError, match="cannot be read"):
        Budget(1.0, None).check_counted()
    with pytest.raises(JobError, match="cannot be read"):
        Budget(1.0, GpuHours(lambda: None)).check_counted()


def test_a_job_that_has_used_up_its_budget_has_timed_out() -> None:
    now = utc_now()
    ended = ExitRecord(code=EXIT_BUDGET_SPENT, signal=None, started_at=now, ended_at=now)
    assert ended.status is JobStatus.TIMED_OUT
    assert ended.status.exit_code == 6


# -- a swarm's folder ------------------------------------------------------------------------------


def spec_at(swarm: SwarmPaths, job_id: str) -> JobSpec:
    return JobSpec(
        job_id=job_id,
        name="j",
        job="m:J",
        input="in",
        output="out",
        model="m",
        endpoint_file=str(swarm.endpoint),
        serving={"tag": TAG},
        checkpoint_root="kept",
        min_version="0",
    )


def progress(state: str, *, age_s: float = 0.0, gpu_hours: float | None = None) -> str:
    at = utc_now() - timedelta(seconds=age_s)
    return JobProgress.model_validate(
        {"state": state, "updated_at": at, "gpu_hours": gpu_hours}
    ).model_dump_json()


@pytest.fixture
def swarm(tmp_path: Path) -> SwarmPaths:
    """Four replicas of two GPUs."""
    paths = SwarmPaths(tmp_path)
    write_private(paths.plan, json.dumps({"layout": {"gpus_per_replica": 2, "replicas": 4}}))
    return paths


def held_at(swarm: SwarmPaths) -> Held | None:
    own = swarm.job("20261201-000000-aaaaaa")
    hours = gpu_hours_of(spec_at(swarm, own.root.name), own)
    assert hours is not None
    hours.count()
    return hours.held


def reported(swarm: SwarmPaths, *states: ReplicaState, tag: str = TAG) -> None:
    swarm.replicas.parent.mkdir(parents=True, exist_ok=True)
    reports = tuple(
        ReplicaReport(replica=at, state=state, incarnation="i", sequence=1)
        for at, state in enumerate(states)
    )
    view = CollectorView(replicas=reports, taken_at=utc_now(), stale_after_s=10, tag=tag)
    write_private(swarm.replicas, view.model_dump_json())


def test_before_a_replica_has_reported_all_count(swarm: SwarmPaths) -> None:
    assert held_at(swarm) == Held(8, 1)


@pytest.mark.parametrize(("least", "gpus"), [(0, 0), (1, 2)])
def test_what_an_elastic_swarm_does_not_hold_costs_nothing(
    swarm: SwarmPaths, least: int, gpus: int
) -> None:
    layout = {"gpus_per_replica": 2, "replicas": 4}  # at most
    write_private(swarm.plan, json.dumps({"layout": layout, "elastic": {"least": least}}))
    assert held_at(swarm) == Held(gpus, 1)
    reported(swarm)  # asleep: a job that wakes it holds nothing yet
    assert held_at(swarm) == Held(gpus, 1)
    reported(swarm, ReplicaState.STARTING, ReplicaState.READY)
    assert held_at(swarm) == Held(4, 1)


def test_replicas_count_that_hold_their_gpus(swarm: SwarmPaths) -> None:
    reported(
        swarm,
        *(ReplicaState.READY, ReplicaState.STARTING, ReplicaState.DRAINING),
        *(ReplicaState.PENDING, ReplicaState.EXITED, ReplicaState.FAILED),
    )
    assert held_at(swarm) == Held(6, 1)


def test_what_another_swarm_of_the_name_left_does_not_count(swarm: SwarmPaths) -> None:
    reported(swarm, ReplicaState.READY, tag="demo.before")
    assert held_at(swarm) == Held(8, 1)  # as before any replica has reported
    reported(swarm, ReplicaState.READY)
    assert held_at(swarm) == Held(2, 1)


def test_jobs_count_that_are_at_work(swarm: SwarmPaths) -> None:
    for at, told in enumerate(
        [
            progress("running"),
            progress("paused"),
            progress("ended"),
            progress("starting"),
            progress("running", age_s=600.0),  # it was killed
        ]
    ):
        paths = swarm.job(f"20261201-00000{at}-bbbbbb")
        paths.root.mkdir(parents=True)
        write_private(paths.progress, told)
    assert held_at(swarm) == Held(8, 3)


def test_a_run_goes_on_with_what_the_one_before_it_has_cost(swarm: SwarmPaths) -> None:
    own = swarm.job("20261201-000000-aaaaaa")
    own.root.mkdir(parents=True)
    write_private(own.progress, progress("running", gpu_hours=7.25))
    hours = gpu_hours_of(spec_at(swarm, own.root.name), own)
    assert hours is not None
    assert hours.spent == 7.25


def test_a_swarm_without_a_readable_plan_is_not_known(swarm: SwarmPaths, tmp_path: Path) -> None:
    swarm.plan.unlink()
    assert held_at(swarm) is None
    foreign = spec_at(swarm, "j").model_copy(update={"endpoint_file": None})
    assert gpu_hours_of(foreign, JobPaths(tmp_path)) is None
