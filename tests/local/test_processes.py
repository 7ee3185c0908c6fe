"""Processes of this machine: known for certain, ended for certain, strangers never touched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from domyn_swarm.backends.gpus import visible_gpus
from domyn_swarm.backends.local import processes
from domyn_swarm.backends.local.local_compute import LocalCompute
from domyn_swarm.backends.local.local_platform import LocalPlatform
from domyn_swarm.backends.local.local_serving import LocalServing
from domyn_swarm.backends.protocols import PlatformPart, ServingHandle
from domyn_swarm.errors import CommandMissing, PlatformError, PlatformUnavailable
from domyn_swarm.model import ExitRecord, JobHandle, JobStatus, Location, ProcessId, utc_now
from domyn_swarm.paths import SwarmPaths
from domyn_swarm.probing import Phase
from domyn_swarm.process_identity import identify, this_host
from patience import limit_s, until

WAITS = "import signal; signal.pause()"


@pytest.fixture
def tag(tmp_path: Path) -> Iterator[str]:
    chosen = f"test.{tmp_path}"
    yield chosen
    LocalServing().delete(ServingHandle(platform="local", tag=chosen, swarm_dir=str(tmp_path)))
    assert processes.carrying(processes.TAG, chosen) == {}


def start(folder: Path, program: str, env: dict[str, str]) -> ProcessId:
    return processes.spawn([sys.executable, "-c", program], env, folder / "log")


def test_a_later_process_with_the_same_pid_is_a_stranger(tmp_path: Path, tag: str) -> None:
    process = start(tmp_path, WAITS, {processes.TAG: tag})
    earlier = process.model_copy(update={"started_at": process.started_at - 100})
    assert processes.alive(process)
    assert not processes.alive(earlier)
    processes.send([earlier], signal.SIGKILL)
    assert processes.end(lambda: [earlier], grace_s=1)
    assert processes.alive(process)


def test_what_a_process_carries_shows_as_soon_as_it_is_started(tmp_path: Path, tag: str) -> None:
    for _ in range(200):  # most are asked while the kernel still puts their environment there
        process = processes.spawn(["/bin/sleep", "1000"], {processes.TAG: tag}, tmp_path / "log")
        assert [*processes.carrying(processes.TAG, tag)] == [process]
        processes.send([process], signal.SIGKILL)
        until(lambda process=process: not processes.alive(process))


def test_who_got_the_number_of_an_earlier_process_is_known_as_itself(
    tmp_path: Path, tag: str
) -> None:
    process = first = start(tmp_path, WAITS, {processes.TAG: tag})
    assert [*processes.carrying(processes.TAG, tag)] == [first]
    for _ in range(100):  # somebody else may get the number
        processes.send([process], signal.SIGKILL)
        until(lambda process=process: not processes.alive(process))
        try:
            Path("/proc/sys/kernel/ns_last_pid").write_text(str(first.pid - 1))
        except OSError as error:
            pytest.skip(f"who is to choose the next process' number must be root: {error}")
        process = start(tmp_path, WAITS, {processes.TAG: tag})
        if process.pid == first.pid:
            break
    assert process.pid == first.pid
    assert [*processes.carrying(processes.TAG, tag)] == [process]
    assert processes.in_sessions([process.pid]) == [process]
    assert processes.end(lambda: processes.carrying(processes.TAG, tag), grace_s=limit_s())
    assert not processes.alive(process)


def test_an_ended_child_is_reaped_and_somebody_elses_is_left_to_them(
    tmp_path: Path, tag: str
) -> None:
    process = start(tmp_path, "", {processes.TAG: tag})
    until(lambda: not processes.alive(process))
    until(lambda: not psutil.pid_exists(process.pid))
    theirs = subprocess.Popen([sys.executable, "-c", "raise SystemExit(5)"])
    until(lambda: psutil.Process(theirs.pid).status() == psutil.STATUS_ZOMBIE)
    assert not processes.alive(ProcessId(pid=theirs.pid, started_at=1.0))
    assert theirs.wait() == 5  # its exit code is still there for who started it


def test_what_is_spawned_is_alone_in_its_session_and_private(tmp_path: Path, tag: str) -> None:
    said = "import os, stat; print(os.getsid(0) == os.getpid(), os.read(0, 1)); print('x')"
    log = tmp_path / "deep" / "log"
    process = processes.spawn([sys.executable, "-c", said], {processes.TAG: tag}, log)
    until(lambda: not processes.alive(process))
    assert log.read_text() == "True b''\nx\n"
    assert log.stat().st_mode & 0o777 == 0o600
    with pytest.raises(CommandMissing, match="no program /nowhere"):
        processes.spawn(["/nowhere"], {}, log)


def test_who_starts_a_swarm_from_within_a_job_does_not_mark_it_as_the_job(
    tmp_path: Path, tag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(processes.JOB, "outer-job")
    monkeypatch.setenv(processes.TAG, "outer-tag")
    env = {processes.TAG: tag, processes.PART: "replica-0"}
    process = start(tmp_path, WAITS, env)
    until(lambda: processes.carrying(processes.TAG, tag))
    assert processes.carrying(processes.JOB, "outer-job") == {}
    [found] = LocalServing().find(ServingHandle(platform="local", tag=tag, swarm_dir=""))
    assert [part.process for part in found.parts] == [process]


def test_a_process_that_hides_its_environment_is_ended_with_its_session(
    tmp_path: Path, tag: str
) -> None:
    env = {processes.TAG: tag, processes.PART: "endpoint-0"}
    script = "env -i sleep infinity & echo $!; wait"
    leader = processes.spawn(["/bin/sh", "-c", script], env, tmp_path / "log")
    until(lambda: (tmp_path / "log").read_text().strip())
    hidden = identify(int((tmp_path / "log").read_text()))
    until(lambda: psutil.Process(hidden.pid).name() == "sleep")
    assert hidden not in processes.carrying(processes.TAG, tag)
    LocalServing().delete(ServingHandle(platform="local", tag=tag, swarm_dir=str(tmp_path)))
    assert not processes.alive(leader)
    assert not processes.alive(hidden)


def test_what_lost_its_leader_is_found_and_ended(tmp_path: Path, tag: str) -> None:
    env = {processes.TAG: tag, processes.PART: "replica-0"}
    leader = processes.spawn(["/bin/sh", "-c", "sleep infinity & wait"], env, tmp_path / "log")
    until(lambda: psutil.Process(leader.pid).children())
    os.kill(leader.pid, signal.SIGKILL)
    until(lambda: not processes.alive(leader))
    backend = LocalServing()
    handle = ServingHandle(platform="local", tag=tag, swarm_dir=str(tmp_path))
    assert [found.parts for found in backend.find(handle)] == [()]
    backend.delete(handle)
    assert backend.find(handle) == []


def test_each_replica_has_its_own_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus(0, 3) == {}
    assert visible_gpus(2, 1) == {"CUDA_VISIBLE_DEVICES": "2,3"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-a,6")
    assert visible_gpus(1, 1) == {"CUDA_VISIBLE_DEVICES": "GPU-a"}
    with pytest.raises(PlatformError, match="leaves 1 for it"):
        visible_gpus(2, 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # nothing may be seen
    with pytest.raises(PlatformError, match="leaves 0 for it"):
        visible_gpus(1, 0)


def test_what_runs_on_another_host_is_neither_over_nor_ended_from_here(tmp_path: Path) -> None:
    far = Location(kind="host", name="far", boot_id="another", pid_namespace=1)
    gone = ProcessId(pid=2**22 - 7, started_at=1.0)  # no process here has that number
    part = PlatformPart(kind="endpoint", platform_id=str(gone.pid), process=gone)
    handle = ServingHandle(
        platform="local", tag="t", swarm_dir=str(tmp_path), parts=(part,), location=far
    )
    seen = LocalServing().probe(handle)
    assert (seen.phase, "the host far" in seen.detail) == (Phase.UNKNOWN, True)
    with pytest.raises(PlatformUnavailable, match="the host far"):
        LocalServing().delete(handle)
    here = handle.model_copy(update={"location": this_host()})
    assert LocalServing().probe(here).phase is Phase.STOPPED

    job = JobHandle(
        job_id="j",
        swarm=None,
        platform="local",
        platform_id=str(gone.pid),
        process=gone,
        location=far,
        job_dir=str(tmp_path),
        log_path=str(tmp_path / "log"),
        exit_path=str(tmp_path / "exit.json"),
        submitted_at=utc_now(),
    )
    with pytest.raises(PlatformUnavailable, match="the host far"):
        LocalCompute().probe(job)
    assert LocalCompute().probe_all([job]) == {}
    assert LocalPlatform(SwarmPaths(tmp_path), "t").job_over(job) is False
    here_job = job.model_copy(update={"location": this_host()})
    assert LocalCompute().probe(here_job) is JobStatus.FAILED
    now = utc_now()
    exit_record = ExitRecord(code=0, started_at=now, ended_at=now)
    (tmp_path / "exit.json").write_text(exit_record.model_dump_json())
    assert LocalCompute().probe(job) is JobStatus.SUCCEEDED
