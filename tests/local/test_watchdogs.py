"""Watchdogs of this machine that are killed, and those that have no endpoint any more."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from domyn_swarm.backends.endpoint.view import read_address, read_view
from domyn_swarm.backends.gpus import held_gpus
from domyn_swarm.backends.local.processes import PART, TAG, carrying
from domyn_swarm.backends.local.watchdogs import KilledWatchdogs
from domyn_swarm.errors import PlatformError
from domyn_swarm.model import ReplicaReport, ReplicaState, utc_now
from domyn_swarm.paths import write_private
from domyn_swarm.services.swarms import SwarmService
from domyn_swarm.state import SwarmStore
from domyn_swarm.swarm.factory import LiveSwarm
from domyn_swarm.swarm.lifecycle import SwarmLifecycle
from domyn_swarm.swarm.snapshot import SwarmSnapshot
from local_swarms import launch_of
from patience import limit_s, until
from virtual_time import VirtualClock


@pytest.fixture
def lifecycle(swarm_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SwarmLifecycle]:
    mine = [f"GPU-{secrets.token_hex(4)}" for _ in range(2)]  # nobody else has locks of them
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(mine))
    store = SwarmStore.open()
    made = SwarmLifecycle(store)
    yield made
    for record in store.swarms():
        made.down(record.name)


def report(swarm: LiveSwarm, replica: int) -> ReplicaReport:
    view = read_view(swarm.paths)
    assert view is not None
    return view.replicas[replica]


def of_replica(swarm: LiveSwarm, replica: int) -> list[int]:
    """Everything that runs of it."""
    found = carrying(TAG, swarm.record.tag)
    return [one.pid for one, env in found.items() if env.get(PART) == f"replica-{replica}"]


def test_a_killed_watchdog_has_a_successor_and_without_an_endpoint_replicas_end(
    lifecycle: SwarmLifecycle,
) -> None:
    swarm = lifecycle.up(launch_of(replicas=2, min_ready=2, gpus_per_replica=1))
    told = json.loads(swarm.paths.watchdog_spec(1).read_text())
    write_private(swarm.paths.watchdog_spec(1), json.dumps({**told, "orphaned_seconds": 1.0}))
    until(lambda: report(swarm, 1).state is ReplicaState.READY)
    engine, killed = report(swarm, 1).engine_pid, report(swarm, 1).watchdog_pid
    assert engine is not None
    assert killed is not None
    env = {**os.environ, TAG: swarm.record.tag, PART: "replica-1"}
    with subprocess.Popen(["/bin/sleep", "1000"], env=env) as worker:  # one that the engine started
        for child in psutil.Process(killed).children():  # the guard too
            child.kill()
        os.kill(killed, signal.SIGKILL)
        seen: list[SwarmSnapshot] = []

        def shown() -> bool:
            seen.append(SwarmService().status("demo"))
            return seen[-1].replicas[1].state is ReplicaState.FAILED

        until(shown)
        assert (seen[-1].replicas_ready, seen[-1].replicas[1].stale) == (1, False)
        said = (
            "its watchdog has ended (a killed watchdog is started again); `domyn-swarm scale demo"
        )
        assert said in str(seen[-1].replicas[1].reason)
        assert worker.wait(limit_s()) == -signal.SIGKILL
    until(lambda: SwarmService().status("demo").replicas_ready == 2)
    assert engine not in of_replica(swarm, 1)
    assert report(swarm, 1).watchdog_pid not in (None, killed)
    with pytest.raises(PlatformError, match="0 of 2 are free"), held_gpus(1, [0], "another"):
        pass  # the successor holds the GPU that the killed one had

    address = read_address(swarm.paths)
    assert address is not None
    assert address.process is not None
    os.kill(address.process.pid, signal.SIGKILL)
    until(lambda: of_replica(swarm, 1) == [])
    with held_gpus(1, [0], "another"):
        pass
    assert SwarmService().status("demo").observed == "failed"


def test_a_watchdog_that_dies_again_and_again_stays_away_until_it_is_asked_for(
    lifecycle: SwarmLifecycle,
) -> None:
    """As its endpoint program looks, but at a pace that takes no minutes."""
    swarm = lifecycle.up(launch_of())
    address, view = read_address(swarm.paths), read_view(swarm.paths)
    assert address is not None
    assert address.process is not None
    assert view is not None
    os.kill(address.process.pid, signal.SIGKILL)  # it would start one, too
    clock = VirtualClock()
    looks = KilledWatchdogs(swarm.paths, swarm.record.tag, clock)

    def kill_and_look() -> bool:
        """Whether there is another one then."""
        for pid in of_replica(swarm, 0):
            os.kill(pid, signal.SIGKILL)
        until(lambda: of_replica(swarm, 0) == [])
        for _ in range(2):
            write_private(
                swarm.paths.replicas,
                view.model_copy(update={"taken_at": utc_now()}).model_dump_json(),
            )
            looks.start_again([0])
        return of_replica(swarm, 0) != []

    assert [kill_and_look() for _ in range(5)] == [True, True, True, False, False]
    clock.sleep(3600.0)
    assert kill_and_look()
