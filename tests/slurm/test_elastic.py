"""Elastic swarms on the real cluster: the endpoint's job submits replicas and gives them back."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from clients import ask
from domyn_swarm.backends.endpoint.elastic_state import ElasticState
from domyn_swarm.errors import StateError
from domyn_swarm.model import JobStatus, SwarmPhase
from domyn_swarm.services.jobs import JobService
from domyn_swarm.services.swarms import SwarmService
from patience import limit_s, scaled
from slurm.cluster import SlurmCluster
from slurm.swarms import (
    ENDPOINT,
    Up,
    all_answered,
    down,
    ended,
    endpoint_job,
    jobs_of,
    program,
    ready,
    request,
    submit_held,
    swarm_paths,
    until,
)


def asleep(slurm: SlurmCluster) -> bool:
    """Whether nothing of the swarm but its endpoint runs or waits, and `status` says so."""
    return len(jobs_of(slurm)) == 1 and SwarmService().status("demo").asleep


def state() -> ElasticState:
    return ElasticState.model_validate_json(swarm_paths().elastic.read_text("utf-8"))


def test_it_wakes_grows_falls_asleep_and_survives_the_death_of_who_decides(
    up: Up, slurm: SlurmCluster, tmp_path: Path
) -> None:
    service = up(
        replicas={"min": 0, "max": 3, "keep_s": scaled(2), "hold_s": limit_s()},
        engine_options={"latency_s": 0.1, "slots": 8},
    )
    seen = service.status("demo")
    assert (seen.phase, seen.observed, seen.asleep) == (SwarmPhase.READY, "ready", True)
    assert (seen.replicas, seen.replicas_min, seen.replicas_max) == ((), 0, 3)
    assert jobs_of(slurm) == {endpoint_job(slurm): "RUNNING"}
    with pytest.raises(StateError, match="is elastic: it runs 0 to 3 replicas"):
        service.scale("demo", 2)

    # A job wakes as many as its rows fill; who decides is killed meanwhile, and goes on.
    job = submit_held(tmp_path / "held")
    until(lambda: ready() == 3)
    before = state()
    decider = program(ENDPOINT, endpoint_job(slurm))
    decider.send_signal(signal.SIGKILL)
    until(lambda: program(ENDPOINT, endpoint_job(slurm)).pid != decider.pid)
    job.goes_on()
    assert set(state().wanted) <= set(before.wanted)
    done = job.release()
    assert done.status is JobStatus.SUCCEEDED
    assert all_answered(job.folder, job.rows)
    until(lambda: asleep(slurm))
    assert state().wanted == ()

    # A client's request is held until it is answered; a second job finds it awake, or wakes it.
    ask()
    assert ready() == 1
    again = ended(JobService().submit(request(tmp_path / "again", 60)))
    assert again.status is JobStatus.SUCCEEDED
    assert again.rows_failed == 0
    until(lambda: asleep(slurm))
    down()
    assert jobs_of(slurm) == {}


def test_the_least_is_always_there_and_the_rest_comes_and_goes(
    up: Up, slurm: SlurmCluster, tmp_path: Path
) -> None:
    service = up(
        replicas={"min": 1, "max": 2, "keep_s": scaled(2)},
        engine_options={"latency_s": 0.1, "slots": 8},
    )
    assert ready() == 1
    job = submit_held(tmp_path / "held")
    until(lambda: ready() == 2)
    assert service.status("demo").replicas_wanted == 2
    job.release()
    until(lambda: len(jobs_of(slurm)) == 2)
    assert ready() == 1
    assert service.status("demo").asleep is False
    plan = json.loads(swarm_paths().plan.read_text("utf-8"))
    assert (plan["layout"]["replicas"], plan["elastic"]["least"]) == (2, 1)
