"""Swarms that grow, shrink, and end themselves."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clients import ask
from domyn_swarm.backends.local import processes
from domyn_swarm.backends.local.local_serving import LocalServing
from domyn_swarm.errors import (
    ConfigError,
    PlatformError,
    PlatformUnavailable,
    StateError,
    SwarmExists,
)
from domyn_swarm.model import JobStatus, SwarmPhase
from domyn_swarm.paths import SwarmPaths
from domyn_swarm.services.jobs import JobService
from domyn_swarm.services.requests import JobRequest
from domyn_swarm.services.swarms import SwarmService
from domyn_swarm.state import SwarmStore
from domyn_swarm.swarm import factory
from domyn_swarm.swarm.lifecycle import SwarmLifecycle
from local_swarms import launch_of
from patience import limit_s, scaled, until


def phase(name: str = "demo") -> SwarmPhase:
    return SwarmService().status(name).phase


def submit(folder: Path, rows: int, **changes: object) -> JobRequest:
    path = folder / "in.parquet"
    pq.write_table(pa.table({"prompt": [f"p{number}" for number in range(rows)]}), path)
    fields = {
        "swarm": "demo",
        "input": str(path),
        "input_columns": ("prompt",),
        "output": str(folder / "out.parquet"),
        **changes,
    }
    return JobRequest.model_validate(fields)


def test_a_swarm_that_nobody_uses_ends_itself_though_it_is_looked_at_and_says_why(
    lifecycle: SwarmLifecycle,
) -> None:
    idle_s = scaled(4)
    latency_s = 1.5 * idle_s
    options = {"latency_s": latency_s}
    lifecycle.up(launch_of(idle_timeout_s=idle_s, engine_options=options), timeout_s=limit_s())
    ask()  # takes longer than the idle time: a request in flight keeps it
    until(lambda: phase() is SwarmPhase.STOPPED, every_s=0.5)  # status asks the endpoint
    assert f"nobody has used it for {idle_s:g} s" in SwarmService().status("demo").detail


def test_it_ends_after_its_job(lifecycle: SwarmLifecycle, tmp_path: Path) -> None:
    lifecycle.up(launch_of(engine_options={"latency_s": 0.05}), timeout_s=limit_s())
    jobs = JobService()
    handle = jobs.submit(submit(tmp_path, 200, down_after=True))
    assert jobs.wait(handle, timeout_s=limit_s()).status is JobStatus.SUCCEEDED
    assert phase() is SwarmPhase.READY
    until(lambda: phase() is SwarmPhase.STOPPED, every_s=0.5)
    assert "the jobs that it was kept for are over" in SwarmService().status("demo").detail


def test_down_after_needs_a_swarm(tmp_path: Path) -> None:
    asked = submit(tmp_path, 1, swarm=None, endpoint="http://127.0.0.1:1", model="m")
    with pytest.raises(ConfigError, match="no swarm to shut down"):
        JobService().submit(asked.model_copy(update={"down_after": True}))
    assert JobService().list() == []


def test_scaling_under_a_job_fails_no_request(lifecycle: SwarmLifecycle, tmp_path: Path) -> None:
    lifecycle.up(
        launch_of(replicas=3, min_ready=3, engine_options={"latency_s": 0.1}), timeout_s=limit_s()
    )
    jobs, swarms = JobService(), SwarmService()
    handle = jobs.submit(submit(tmp_path, 2500, max_concurrency=16))
    until(lambda: jobs.status(handle).rows_done > 50)
    assert swarms.scale("demo", 1).replicas_wanted == 1
    until(lambda: swarms.status("demo").replicas_ready == 1)
    with pytest.raises(StateError, match="have not ended yet"):
        swarms.scale("demo", 4)
    until(lambda: _scaled(4))
    until(lambda: swarms.status("demo").replicas_ready == 4)
    ended = jobs.wait(handle, timeout_s=limit_s())
    assert ended.status is JobStatus.SUCCEEDED
    assert ended.account is not None
    assert (ended.account.requests, ended.account.retries) == (2500, 0)
    seen = swarms.status("demo")
    assert (seen.replicas_wanted, seen.observed) == (4, "ready")
    plan = json.loads((Path(seen.swarm_dir) / "plan.json").read_text())
    assert plan["layout"]["replicas"] == 4


def test_scaling_that_breaks_off_leaves_all_as_it_was(lifecycle: SwarmLifecycle) -> None:
    lifecycle.up(launch_of(), timeout_s=limit_s())
    swarms = SwarmService()
    paths = SwarmPaths(Path(swarms.status("demo").swarm_dir))
    in_the_way = paths.replica_logs(2)
    in_the_way.write_text("no folder")

    def told() -> tuple[int, int, int]:
        plan = json.loads(paths.plan.read_text())["layout"]["replicas"]
        endpoint = json.loads(paths.endpoint_spec.read_text())["replicas"]
        return swarms.status("demo").replicas_wanted, plan, endpoint

    def running() -> set[str]:
        found = processes.carrying(processes.TAG, SwarmStore.open().swarm("demo").tag)
        parts = {environment.get(processes.PART, "") for environment in found.values()}
        return {part for part in parts if part.startswith("replica")}

    with pytest.raises(PlatformError, match="Not a directory"):
        swarms.scale("demo", 4)
    assert told() == (1, 1, 1)
    until(lambda: running() == {"replica-0"})  # the one that had begun is ended
    in_the_way.unlink()
    assert swarms.scale("demo", 4).replicas_wanted == 4
    assert told() == (4, 4, 4)
    until(lambda: swarms.status("demo").replicas_ready == 4)


def _scaled(replicas: int) -> bool:
    try:
        SwarmService().scale("demo", replicas)
    except StateError:
        return False
    return True


def test_what_is_not_up_cannot_be_scaled(lifecycle: SwarmLifecycle) -> None:
    lifecycle.up(launch_of(), timeout_s=limit_s())
    lifecycle.down("demo")
    with pytest.raises(StateError, match="is stopped and cannot be scaled"):
        SwarmService().scale("demo", 2)


def test_a_swarm_that_is_down_is_no_target_of_prometheus_even_if_its_endpoint_was_killed(
    lifecycle: SwarmLifecycle, tmp_path: Path
) -> None:
    (tmp_path / "textfile").mkdir()
    swarm = lifecycle.up(
        launch_of(metrics={"textfile_dir": tmp_path / "textfile"}), timeout_s=limit_s()
    )
    [target] = swarm.paths.scrape_targets.iterdir()
    until(lambda: list((tmp_path / "textfile").glob("*.prom")))
    address = json.loads(swarm.paths.endpoint.read_text())
    psutil.Process(address["process"]["pid"]).kill()
    assert target.exists()
    lifecycle.down("demo")
    assert not target.exists()
    assert list((tmp_path / "textfile").iterdir()) == []


def test_a_down_that_breaks_off_is_told_until_one_ends_well(
    lifecycle: SwarmLifecycle, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Away(LocalServing):
        def delete(self, *_: object, **__: object) -> None:
            raise PlatformUnavailable("the controller does not answer")

    lifecycle.up(launch_of(), timeout_s=limit_s())
    with monkeypatch.context() as patch:
        patch.setattr(factory, "serving_backend", lambda _platform: Away())
        with pytest.raises(PlatformUnavailable):
            lifecycle.down("demo")
    seen = SwarmService().status("demo")
    assert seen.phase is SwarmPhase.STOPPING
    assert "the controller does not answer" in seen.detail
    assert "Run `domyn-swarm down demo`" in seen.detail
    assert seen.observed == "ready"  # it serves yet
    with pytest.raises(StateError, match="is stopping"):
        SwarmService().scale("demo", 2)
    lifecycle.down("demo")
    seen = SwarmService().status("demo")
    assert (seen.phase, seen.detail) == (SwarmPhase.STOPPED, "`domyn-swarm down` stopped it")


def test_what_was_written_off_and_runs_is_in_the_way_of_the_next_of_its_name(
    lifecycle: SwarmLifecycle,
) -> None:
    first = lifecycle.up(launch_of(), timeout_s=limit_s())
    SwarmStore.open().set_stopped(first.record.tag, "forgotten: it was on another host")
    with pytest.raises(SwarmExists, match="recorded as stopped, but parts of it still run"):
        lifecycle.up(launch_of(), timeout_s=limit_s())
    lifecycle.down("demo")
    assert processes.carrying(processes.TAG, first.record.tag) == {}
    lifecycle.up(launch_of(), timeout_s=limit_s())
