"""Whatever dies, and whenever: nothing runs unrecorded, and the record says what is true."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from domyn_swarm.backends.endpoint.view import CollectorView, read_view
from domyn_swarm.backends.local.local_compute import LocalCompute
from domyn_swarm.backends.local.local_serving import LocalServing
from domyn_swarm.backends.local.processes import JOB, TAG, alive, carrying
from domyn_swarm.backends.protocols import ComputeSpec
from domyn_swarm.errors import LaunchError, ReplicaFailed, StateError, SwarmNotFound
from domyn_swarm.model import JobStatus, ReplicaReport, ReplicaState, SwarmPhase, utc_now
from domyn_swarm.paths import SwarmPaths, write_private
from domyn_swarm.services.jobs import JobService
from domyn_swarm.services.swarms import SwarmService
from domyn_swarm.state import JobRecord, SwarmRecord, SwarmStore
from domyn_swarm.swarm.factory import rehydrate
from domyn_swarm.swarm.launch import prepare
from domyn_swarm.swarm.lifecycle import SwarmLifecycle
from domyn_swarm.swarm.readiness import is_stale
from domyn_swarm.swarm.reconcile import reconcile
from local_swarms import config, launch_of
from patience import limit_s, until

UP = """
import sys
sys.path.insert(0, {tests!r})
from domyn_swarm.state import SwarmStore
from domyn_swarm.swarm.lifecycle import SwarmLifecycle
from local_swarms import launch_of
SwarmLifecycle(SwarmStore.open()).up(launch_of(**{keys!r}))
"""
# `up` with a long moment between its record and its first process: it clears the last one's files.
HELD_UP = """
import pathlib, shutil, time
rmtree = shutil.rmtree

def held(folder, **options):
    while not pathlib.Path({go!r}).exists():
        time.sleep(0.01)
    rmtree(folder, **options)

shutil.rmtree = held
"""
WITH_BLOCK = """
import sys
sys.path.insert(0, {tests!r})
from domyn_swarm import DomynLLMSwarm
from local_swarms import config
with DomynLLMSwarm(config(**{keys!r})):
    print("inside", flush=True)
"""


def start(program: str, go: Path | None = None, **keys: object) -> subprocess.Popen[str]:
    filled = program.format(tests=str(Path(__file__).parents[1]), keys=keys, go=str(go))
    return subprocess.Popen(
        [sys.executable, "-c", filled], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def record(name: str = "demo") -> SwarmRecord | None:
    try:
        return SwarmStore.open().swarm(name)
    except SwarmNotFound:
        return None


def parts_recorded(count: int) -> Callable[[SwarmPaths], bool]:
    def seen(_paths: SwarmPaths) -> bool:
        found = record()
        return found is not None and len(found.parts) >= count

    return seen


MOMENTS: dict[str, Callable[[SwarmPaths], bool]] = {
    "folder": lambda paths: paths.root.exists(),
    "record": lambda _paths: record() is not None,
    "first part": parts_recorded(1),
    "second replica": lambda paths: paths.watchdog_spec(1).exists(),
    "all parts": parts_recorded(4),
    "endpoint": lambda paths: paths.endpoint.exists(),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_up_killed_at_a_moment_leaves_nothing_unrecorded(
    lifecycle: SwarmLifecycle, swarm_home: Path, moment: str
) -> None:
    paths = SwarmPaths.of(swarm_home, "demo")
    up = start(UP, replicas=3, min_ready=3)
    until(lambda: MOMENTS[moment](paths), every_s=0.0)
    up.kill()
    up.communicate()
    found = record()
    if found is None:
        assert moment == "folder"  # killed before the record: then before any side effect
        return
    running = [part for one in LocalServing().find(rehydrate(found).handle) for part in one.parts]
    listed = SwarmService().list()
    assert [one.name for one in listed] == (["demo"] if running else [])
    after = record()
    assert after is not None
    assert {part["platform_id"] for part in after.parts} >= {part.platform_id for part in running}
    [result] = SwarmService().down(["demo"])
    assert result.stopped
    assert carrying(TAG, found.tag) == {}
    assert not (swarm_home / "swarms" / "demo" / "serving" / "endpoint.json").exists()


def test_a_killed_up_is_no_obstacle_to_the_next(lifecycle: SwarmLifecycle) -> None:
    up = start(UP)
    found = until(record, every_s=0.0)
    up.kill()
    up.communicate()
    lifecycle.down("demo")
    again = lifecycle.up(launch_of())
    assert again.record.tag != found.tag
    assert list(again.paths.root.glob("launcher-*")) == []


def test_nobody_writes_off_a_swarm_that_is_being_launched(
    lifecycle: SwarmLifecycle, tmp_path: Path
) -> None:
    """Somebody asks from the first moment on, when there is a record and no process yet."""
    store, go = SwarmStore.open(), tmp_path / "go"
    up = start(HELD_UP + UP, go)
    found: list[SwarmRecord] = until(store.swarms)
    for _ in range(5):
        assert found[0].parts == ()
        found = [reconcile(store, found[0])]
        assert found[0].phase.live
    go.touch()
    while up.poll() is None and len(found[0].parts) < 2:
        found = [reconcile(store, found[0])]
        assert found[0].phase.live
        found = store.swarms()
    _, stderr = up.communicate(timeout=limit_s())
    assert up.returncode == 0, stderr
    assert store.swarm("demo").phase is SwarmPhase.READY


@pytest.mark.parametrize("parts", [1, 4])
def test_down_while_up_is_at_work(lifecycle: SwarmLifecycle, parts: int) -> None:
    ended: list[BaseException] = []

    def up() -> None:
        launch = launch_of(replicas=3, engine_options={"start_s": 60})
        try:
            SwarmLifecycle(SwarmStore.open()).up(launch)
        except LaunchError as error:
            ended.append(error)

    launching = threading.Thread(target=up)
    launching.start()
    until(lambda: parts_recorded(parts)(SwarmPaths(Path())), every_s=0.0)
    assert SwarmService().down(["demo"])[0].stopped
    launching.join(limit_s())
    assert ["was stopped while it was coming up" in str(error) for error in ended] == [True]
    found = record()
    assert found is not None
    assert found.phase is SwarmPhase.STOPPED
    assert carrying(TAG, found.tag) == {}


def test_an_interrupted_with_block_stops_what_it_started(lifecycle: SwarmLifecycle) -> None:
    block = start(WITH_BLOCK, engine_options={"start_s": 60})
    until(lambda: parts_recorded(2)(SwarmPaths(Path())))
    block.send_signal(signal.SIGINT)
    stdout, stderr = block.communicate(timeout=limit_s())
    assert stdout == ""
    assert stderr.strip().splitlines()[-1].startswith("Interrupted: the swarm was not up yet")
    found = record()
    assert found is not None
    assert found.phase is SwarmPhase.STOPPED
    assert carrying(TAG, found.tag) == {}


def test_a_replica_whose_watchdog_dies_is_not_waited_for(lifecycle: SwarmLifecycle) -> None:
    def kill_one() -> None:
        found = until(lambda: parts_recorded(3)(SwarmPaths(Path())) and record())
        os.kill(found.parts[2]["process"]["pid"], signal.SIGKILL)

    killing = threading.Thread(target=kill_one)
    killing.start()
    slow = config(replicas=2, min_ready=2, engine_options={"start_s": 600})
    with pytest.raises(ReplicaFailed, match="replica 1: its watchdog has ended") as caught:
        lifecycle.up(prepare(slow))
    killing.join()
    assert "replicas/1/watchdog.log" in caught.value.hint


def test_what_a_dead_collector_saw_last_does_not_stay_fresh(swarm_home: Path) -> None:
    paths = SwarmPaths.of(swarm_home, "demo")
    then = utc_now() - timedelta(minutes=10)
    report = ReplicaReport(
        replica=0, state=ReplicaState.READY, incarnation="i", sequence=1, reported_at=then
    )
    view = CollectorView(replicas=(report,), taken_at=then, stale_after_s=30)
    assert not is_stale(view, report)
    write_private(paths.replicas, view.model_dump_json())
    seen = read_view(paths)
    assert seen is not None
    assert is_stale(seen, seen.replicas[0])


def test_a_swarm_that_died_without_a_word_has_no_endpoint(lifecycle: SwarmLifecycle) -> None:
    with_parts = lifecycle.up(launch_of("dead"))
    killed = list(carrying(TAG, with_parts.record.tag))
    for process in killed:
        os.kill(process.pid, signal.SIGKILL)
    until(lambda: not carrying(TAG, with_parts.record.tag))
    until(lambda: not any(map(alive, killed)))  # one that ends loses its environment first
    with pytest.raises(StateError, match="dead is stopped and has no endpoint"):
        SwarmService().endpoint("dead")


def test_two_swarms_come_up_side_by_side(lifecycle: SwarmLifecycle) -> None:
    ups = [start(UP, name=name, replicas=2, min_ready=2) for name in ("one", "two")]
    for up in ups:
        _, stderr = up.communicate(timeout=limit_s())
        assert up.returncode == 0, stderr
    one, two = (SwarmService().status(name) for name in ("one", "two"))
    assert (one.replicas_ready, two.replicas_ready) == (2, 2)
    assert one.endpoint != two.endpoint
    assert {replica.url for replica in one.replicas}.isdisjoint(r.url for r in two.replicas)
    SwarmService().down(["one"])
    assert SwarmService().status(None).replicas_ready == 2  # the other one does not notice


def pending_job(folder: Path, age_s: float) -> JobRecord:
    job_dir = folder / "job-1"
    job_dir.mkdir()
    return JobRecord(
        job_id="job-1",
        name="x",
        swarm=None,
        platform="local",
        status=JobStatus.PENDING,
        job_dir=str(job_dir),
        input="in",
        output="out",
        submitted_at=utc_now() - timedelta(seconds=age_s),
    )


def test_a_job_whose_submitter_died_is_followed_and_cancelled(tmp_path: Path) -> None:
    known = pending_job(tmp_path, age_s=90)
    spec = ComputeSpec(
        job_id=known.job_id,
        swarm=None,
        tag=None,
        argv=(sys.executable, "-c", "import time; time.sleep(60)"),
        cwd=str(tmp_path),
        job_dir=known.job_dir,
    )
    SwarmStore.open().create_job(known)
    LocalCompute().submit(spec)  # and nobody records the handle
    service = JobService()
    assert service.status("job-1").status is JobStatus.RUNNING
    assert service.wait("job-1", timeout_s=0.2).status is JobStatus.RUNNING
    assert service.cancel("job-1").status is JobStatus.CANCELLED
    assert carrying(JOB, "job-1") == {}


@pytest.mark.parametrize(("age_s", "status"), [(1.0, JobStatus.PENDING), (90.0, JobStatus.FAILED)])
def test_a_job_that_was_never_started_is_lost_after_a_while(
    tmp_path: Path, age_s: float, status: JobStatus
) -> None:
    SwarmStore.open().create_job(pending_job(tmp_path, age_s))
    began = time.process_time()
    assert JobService().wait("job-1", timeout_s=1.0).status is status
    assert time.process_time() - began < 0.7  # it waits, it does not spin
