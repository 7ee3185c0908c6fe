"""Swarms from Python: the facade, what a crash left, failures with their cause, logs."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from domyn_swarm import DomynLLMSwarm
from domyn_swarm.backends.endpoint.view import read_address, read_view
from domyn_swarm.backends.local.processes import TAG, carrying
from domyn_swarm.engines.sim_openai import sim_reply
from domyn_swarm.errors import (
    ConfigError,
    JobError,
    NotReady,
    ReplicaFailed,
    StateError,
    SwarmExists,
)
from domyn_swarm.jobs import ChatCompletionJob
from domyn_swarm.model import JobStatus, ReplicaState, SwarmPhase
from domyn_swarm.paths import SwarmPaths
from domyn_swarm.probing import Phase, endpoint_probe
from domyn_swarm.services.jobs import JobService
from domyn_swarm.services.merged_logs import swarm_logs
from domyn_swarm.services.requests import JobRequest, LogRequest, UpRequest
from domyn_swarm.services.swarms import SwarmService
from domyn_swarm.state import SwarmStore
from domyn_swarm.swarm.launch import prepare
from domyn_swarm.swarm.lifecycle import SwarmLifecycle
from endpoint.bench import ENGINE
from local_swarms import config, launch_of
from patience import scaled, until


def write_rows(path: Path, count: int) -> None:
    pq.write_table(pa.table({"prompt": [f"p{number}" for number in range(count)]}), path)


def test_a_swarm_is_up_from_up_to_down(lifecycle: SwarmLifecycle, tmp_path: Path) -> None:
    file = tmp_path / "swarm.yaml"
    file.write_text("name: demo\nmodel: m\nengine: sim\nbackend: local\n")
    swarm = DomynLLMSwarm(config())
    with pytest.raises(StateError, match="is not up"):
        swarm.snapshot()
    assert swarm.up() is swarm
    parts = lifecycle.attach("demo").handle.parts
    DomynLLMSwarm(config()).up()  # as in a cell that is run again: nothing is started twice
    assert lifecycle.attach("demo").handle.parts == parts
    with pytest.raises(SwarmExists, match="port is"):
        DomynLLMSwarm(config(port=9000)).up()
    assert str(swarm.snapshot()) == "<swarm 'demo': 1 of 1 replicas ready, ready: 1 replica runs>"
    assert str(swarm.usage()).endswith(">")
    assert "replica-hours held: " in str(swarm.usage())
    with pytest.raises(StateError, match="was attached to"):
        DomynLLMSwarm.attach(str(file)).up()
    swarm.down()
    assert lifecycle.attach("demo").record.phase is SwarmPhase.STOPPED
    assert swarm.up().snapshot().replicas_ready == 1
    swarm.down()


def test_a_swarm_for_a_with_block(
    lifecycle: SwarmLifecycle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(tmp_path / "in.parquet", 20)
    with DomynLLMSwarm(config(replicas=2, min_ready=2)) as swarm:
        assert swarm.snapshot().replicas_ready == 2
        handle = swarm.submit_job(
            ChatCompletionJob(output_columns=["answer"], max_tokens=3),
            input_path=tmp_path / "in.parquet",
            output_path=tmp_path / "out.parquet",
            input_columns=["prompt"],
        )
        again = DomynLLMSwarm.attach("demo")
        assert (again.name, again.model) == ("demo", "m")
        [job] = again.snapshot().jobs
        assert (job.job_id, job.status, job.rows_done) == (handle.job_id, JobStatus.SUCCEEDED, 20)
        table = swarm.results(handle.job_id, arrow=True)
        so_far = swarm.results(handle.job_id, partial=True, arrow=True)
        assert so_far["answer"] == table["answer"]
        assert list(swarm.results(handle.job_id)["answer"]) == table["answer"].to_pylist()
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "pandas", None)  # as if it were not installed
            with pytest.raises(ConfigError, match="need pandas"):
                swarm.results(handle.job_id)
        with pytest.raises(JobError, match="cannot be written"):
            swarm.submit_job(
                ChatCompletionJob(temperature=1),
                input_path=tmp_path / "in.parquet",
                output_path="/proc/nowhere/out.parquet",
                input_columns=["prompt"],
            )
    answers = pq.read_table(tmp_path / "out.parquet")["answer"].to_pylist()
    assert answers == [sim_reply(f"p{number}", 3) for number in range(20)]
    assert SwarmStore.open().swarm("demo").phase is SwarmPhase.STOPPED


def test_a_swarm_outside_its_block_says_so() -> None:
    with pytest.raises(StateError, match="is not up"):
        DomynLLMSwarm(config()).snapshot()


def test_the_cause_is_told_and_nothing_is_left(lifecycle: SwarmLifecycle) -> None:
    with pytest.raises(ReplicaFailed) as caught:
        lifecycle.up(
            launch_of(
                replicas=2,
                engine_options={"fail_start": "as told"},
                watchdog={"max_restarts": 0, "probe_interval": 1},
            )
        )
    assert "the simulator is configured to fail" in caught.value.message
    assert "engine.log" in caught.value.hint
    record = SwarmStore.open().swarm("demo")
    assert record.phase is SwarmPhase.STOPPED
    assert carrying(TAG, record.tag) == {}


def test_a_swarm_that_takes_too_long_is_not_ready(lifecycle: SwarmLifecycle) -> None:
    slow = config(engine_options={"start_s": 60}, wait_endpoint_s=2)
    with pytest.raises(NotReady, match="was not ready in time"):
        lifecycle.up(prepare(slow))
    assert SwarmStore.open().swarm("demo").phase is SwarmPhase.STOPPED


def test_up_waits_for_a_replica_that_loads(lifecycle: SwarmLifecycle, tmp_path: Path) -> None:
    """As long as its watchdog does: see there."""
    loads = tmp_path / "prints"
    loads.write_text("1")
    argv = ["{python}", str(ENGINE), "{host}", "{port}", str(tmp_path)]
    options = {"argv": argv, "key_env": "ENGINE_KEY"}
    wait_s = scaled(10)  # by then it has been reported that it loads
    end = threading.Timer(1.5 * wait_s, lambda: loads.write_text(""))
    end.start()
    made = config(engine="command", engine_options=options, wait_endpoint_s=wait_s)
    lifecycle.up(prepare(made))
    end.join()
    assert SwarmService().status("demo").replicas[0].restarts == 0


def test_a_live_name_is_refused_and_a_dead_one_is_not(lifecycle: SwarmLifecycle) -> None:
    swarm = lifecycle.up(launch_of())
    with pytest.raises(SwarmExists, match="domyn-swarm down demo"):
        lifecycle.up(launch_of())
    for process in carrying(TAG, swarm.record.tag):  # as when the machine went down
        os.kill(process.pid, signal.SIGKILL)
    until(lambda: not carrying(TAG, swarm.record.tag))
    until(lambda: SwarmService().list() == [])  # one that is being killed counts until it is gone
    assert lifecycle.up(launch_of()).record.tag != swarm.record.tag


def test_parts_that_were_never_recorded_are_adopted(lifecycle: SwarmLifecycle) -> None:
    swarm = lifecycle.up(launch_of(replicas=2), wait=False)
    store = SwarmStore.open()
    fresh = store.swarm("demo").model_copy(update={"parts": (), "name": "lost", "tag": "lost.1"})
    store.create_swarm(fresh)  # as if `up` had been killed before it could record anything
    assert lifecycle.attach("demo").handle.parts == swarm.handle.parts
    # The other one has no process with its tag, and nobody launches it: it is stopped.
    assert lifecycle.attach("lost").record.phase is SwarmPhase.STOPPED


def test_min_ready_of_n_serves_and_late_ones_join(lifecycle: SwarmLifecycle) -> None:
    options = {"crash_after_requests": None}
    swarm = lifecycle.up(launch_of(replicas=3, min_ready=1, engine_options=options))
    until(lambda: SwarmService().status("demo").replicas_ready == 3)
    snapshot = SwarmService().status(None)
    assert (snapshot.phase, snapshot.observed) == (SwarmPhase.READY, "ready")
    assert swarm.plan.min_ready == 1


def test_a_killed_engine_comes_back(lifecycle: SwarmLifecycle) -> None:
    swarm = lifecycle.up(launch_of())

    def report() -> Any:
        view = read_view(swarm.paths)
        return view.replicas[0] if view else None

    os.kill(report().engine_pid, signal.SIGKILL)
    until(lambda: report().restarts == 1 and report().state is ReplicaState.READY)


def test_the_user_may_bring_the_key(
    lifecycle: SwarmLifecycle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOMYN_SWARM_API_TOKEN", "my-own-key")
    swarm = lifecycle.up(launch_of())
    assert swarm.paths.api_key.read_text() == "my-own-key"
    address = read_address(swarm.paths)
    assert address is not None
    assert endpoint_probe(address.url, "my-own-key")().phase is Phase.READY


def test_several_live_swarms_must_be_named(lifecycle: SwarmLifecycle) -> None:
    with pytest.raises(StateError, match="No swarm is live"):
        SwarmService().status(None)
    lifecycle.up(launch_of("one"), wait=False)
    lifecycle.up(launch_of("two"), wait=False)
    with pytest.raises(StateError, match="2 swarms are live: one, two"):
        SwarmService().status(None)
    assert [seen.name for seen in SwarmService().list()] == ["one", "two"]
    results = SwarmService().down((), all_swarms=True)
    assert [(one.name, one.stopped) for one in results] == [("one", True), ("two", True)]


def test_logs_are_read_and_followed(
    lifecycle: SwarmLifecycle, swarm_home: Path, tmp_path: Path
) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("name: demo\nmodel: m\nengine: sim\nreplicas: 2\nbackend: local\n")
    service = SwarmService()
    request = UpRequest(config=path, overrides=("watchdog.probe_interval=1",))
    assert service.up(service.prepare(request)).ready
    until(lambda: service.status("demo").replicas_ready == 2)
    lines = list(swarm_logs(LogRequest(name="demo")))
    assert any(line.startswith("[replica 0] simulating m") for line in lines)
    assert any(line.startswith("[replica 1] simulating m") for line in lines)
    assert list(swarm_logs(LogRequest(name="demo", replica=0, last_lines=1)))
    following = swarm_logs(LogRequest(name="demo", replica=0, last_lines=0, follow=True))
    log = SwarmPaths.of(swarm_home, "demo").engine_log(0)
    with log.open("a") as file:
        file.write("half a ")
        file.flush()
        file.write("line\n")
    assert next(following) == "half a line"
    with pytest.raises(StateError, match="There is no such log of demo"):
        swarm_logs(LogRequest(name="demo", replica=7))
    with pytest.raises(StateError, match="no job 'nope'"):
        swarm_logs(LogRequest(name="demo", source="job", job_id="nope"))


def test_a_job_on_an_endpoint_that_is_not_ours(
    bench: Any, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.write(5)
    monkeypatch.setenv("DOMYN_SWARM_API_TOKEN", "the-key")
    service = JobService()
    handle = service.submit(
        JobRequest(
            endpoint=f"{server.url}/v1",
            model="m",
            input=str(bench.folder / "in.parquet"),
            output=str(bench.folder / "out.parquet"),
            input_columns=("prompt",),
            external_id="mine",
        )
    )
    assert service.wait("mine").status is JobStatus.SUCCEEDED
    assert service.status(handle).rows_done == 5
    assert "the-key" not in (Path(handle.job_dir) / "job.json").read_text()
    assert (Path(handle.job_dir) / "api_key").stat().st_mode & 0o777 == 0o600
