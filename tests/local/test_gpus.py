"""GPUs of one machine: each is one replica's, of whichever swarm, for as long as that lives."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from domyn_swarm import watchdog
from domyn_swarm.backends.gpus import HeldGpus, held_gpus
from domyn_swarm.backends.local import processes
from domyn_swarm.errors import PlatformError
from domyn_swarm.model import ProcessId
from domyn_swarm.paths import SwarmPaths
from domyn_swarm.state import SwarmStore
from domyn_swarm.swarm.lifecycle import SwarmLifecycle
from local_swarms import launch_of
from patience import limit_s, until

VARIABLE = "CUDA_VISIBLE_DEVICES"


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks of its own, and no GPU that it says it has."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(watchdog.tempfile, "tempdir", None)
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")


def has_gpus(folder: Path, count: int) -> None:
    """A machine whose driver lists so many."""
    (folder / "bin").mkdir()
    program = folder / "bin" / "nvidia-smi"
    lines = "".join(f"echo 'GPU {number}: a GPU (UUID: GPU-{number})'\n" for number in range(count))
    program.write_text(f"#!/bin/sh\n{lines}")
    program.chmod(0o755)


@contextlib.contextmanager
def held(count: int, replica: int, swarm: str) -> Iterator[HeldGpus]:
    with held_gpus(count, [replica], swarm) as found:
        yield found[replica]


def taken(count: int = 1) -> str:
    with held(count, 0, "s") as gpus:
        return gpus.env[VARIABLE]


def test_gpus_that_are_held_are_nobody_elses() -> None:
    with held(0, 0, "s") as none:
        assert none == ({}, ())
    with held(2, 0, "s") as first, held(1, 1, "s") as second:
        assert (first.env[VARIABLE], second.env[VARIABLE]) == ("0,1", "2")
        assert taken(3) == "3,4,5"
    assert taken() == "0"


def test_those_that_the_caller_left_visible_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "4, GPU-a,MIG-b/1/0")
    with held(1, 0, "s") as first, held(2, 0, "t") as second:
        assert (first.env[VARIABLE], second.env[VARIABLE]) == ("4", "GPU-a,MIG-b/1/0")
        with pytest.raises(PlatformError, match="0 of 3 are free") as raised, held(1, 0, "u"):
            pass
        assert "4: s replica 0; GPU-a: t replica 0" in raised.value.message
    with pytest.raises(PlatformError, match="leaves 3 for it"), held(4, 0, "s"):
        pass
    monkeypatch.setenv(VARIABLE, "")  # nothing may be seen
    with pytest.raises(PlatformError, match="leaves 0 for it"), held(1, 0, "s"):
        pass
    monkeypatch.setenv(VARIABLE, "4")
    assert taken() == "4"  # what failed holds nothing


def test_a_machine_says_how_many_it_has(tmp_path: Path) -> None:
    has_gpus(tmp_path, 2)
    with (
        held(1, 0, "s"),
        pytest.raises(PlatformError, match="1 of 2 are free"),
        held(2, 0, "t"),
    ):
        pass


def test_two_swarms_at_once_never_keep_each_other_from_what_would_do_for_one(
    tmp_path: Path,
) -> None:
    has_gpus(tmp_path, 4)
    meet = threading.Barrier(2)

    def launch(name: str) -> int:
        meet.wait(limit_s())
        try:
            with held_gpus(1, range(4), name) as found:
                return len(found)
        except PlatformError:
            return 0

    with ThreadPoolExecutor(2) as pool:
        for _ in range(20):
            assert max(pool.map(launch, ("one", "two"))) == 4


@pytest.fixture
def started() -> Iterator[list[ProcessId]]:
    processes_: list[ProcessId] = []
    yield processes_
    processes.send(processes_, signal.SIGKILL)
    assert processes.gone(lambda: processes_, within_s=limit_s())


def _has(process: ProcessId, variable: str) -> bool:
    """In its environment, which is its starter's until it has become the program."""
    return variable.encode() in Path(f"/proc/{process.pid}/environ").read_bytes()


def test_a_lock_lives_and_dies_with_the_process_that_was_given_it(
    tmp_path: Path, started: list[ProcessId]
) -> None:
    """Four at once, as those of a pool: none inherits the lock of another."""

    def start(number: int) -> str:
        with held(1, 0, f"swarm-{number}") as gpus:
            argv = ["/bin/sleep", "1000"]
            started.append(processes.spawn(argv, gpus.env, tmp_path / f"{number}.log", gpus.files))
            return gpus.env[VARIABLE]

    with ThreadPoolExecutor(4) as pool:
        found = dict(zip(pool.map(start, range(4)), range(4), strict=True))
    assert sorted(found) == ["0", "1", "2", "3"]
    assert taken() == "4"
    [victim] = until(lambda: [one for one in started if _has(one, "DEVICES=2")])
    processes.send([victim], signal.SIGKILL)
    until(lambda: taken() == "2")
    with held(1, 0, "t"):
        assert taken() == "4"


def test_each_swarm_of_a_machine_gets_gpus_of_its_own_and_one_without_is_refused(
    swarm_home: Path, tmp_path: Path
) -> None:
    has_gpus(tmp_path, 2)
    store = SwarmStore.open()
    lifecycle = SwarmLifecycle(store)
    try:
        lifecycle.up(launch_of("one", gpus_per_replica=1))
        lifecycle.up(launch_of("two", gpus_per_replica=1))
        for number, name in enumerate(("one", "two")):
            log = SwarmPaths.of(swarm_home, name).engine_log(0).read_text()
            assert log.count(f"{VARIABLE}={number}\n") == 1
        with pytest.raises(PlatformError, match="0 of 2 are free") as raised:
            lifecycle.up(launch_of("three", gpus_per_replica=1))
        assert "0: one replica 0; 1: two replica 0" in raised.value.message
        lifecycle.down("one")
        assert taken() == "0"
    finally:
        for record in store.swarms():
            lifecycle.down(record.name)
    assert taken(2) == "0,1"


def test_locks_of_killed_programs_are_free(tmp_path: Path) -> None:
    program = (
        "import sys, time; from domyn_swarm.backends.gpus import held_gpus\n"
        "with held_gpus(1, [0], 's'):\n print('held', flush=True); time.sleep(1000)"
    )
    holder = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert taken() == "1"
    finally:
        holder.kill()
        holder.communicate()
    assert taken() == "0"
