"""Several commands, one swarm: nothing is started twice, whoever is killed."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from domyn_swarm.backends.local.processes import TAG, carrying
from domyn_swarm.errors import LaunchError, NotReady, SwarmExists, WaitTimedOut
from domyn_swarm.model import SwarmPhase
from domyn_swarm.probing import Observation
from domyn_swarm.services.swarms import SwarmService
from domyn_swarm.state import SwarmRecord, SwarmStore
from domyn_swarm.swarm.joining import SwarmJoining, Waiting
from domyn_swarm.swarm.lifecycle import SwarmLifecycle
from local_swarms import launch_of
from patience import limit_s, scaled, until

UP = """
import sys
sys.path.insert(0, {tests!r})
from domyn_swarm.state import SwarmStore
from domyn_swarm.swarm.joining import SwarmJoining, Waiting
from local_swarms import launch_of
outcome = SwarmJoining(SwarmStore.open()).up(launch_of(**{keys!r}), Waiting())
print(outcome.launched, outcome.swarm.record.tag)
"""
# `up` that stands still where some parts are recorded and others are to be started.
HELD_UP = """
import time
from domyn_swarm.state import SwarmStore
attach_parts = SwarmStore.attach_parts

def held(store, tag, parts):
    attach_parts(store, tag, parts)
    time.sleep(10_000)

SwarmStore.attach_parts = held
"""
FAILS = {"fail_start": "as told"}
IMPATIENT = {"max_restarts": 0, "probe_interval": 1}


def start(program: str = UP, **keys: object) -> subprocess.Popen[str]:
    filled = program.format(tests=str(Path(__file__).parents[1]), keys=keys)
    return subprocess.Popen(
        [sys.executable, "-c", filled], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def kill(up: subprocess.Popen[str]) -> None:
    up.kill()
    up.communicate()


def recorded(*, parts: int = 0) -> SwarmRecord:
    """The only swarm, once so many of its parts are recorded."""
    found: list[SwarmRecord] = until(
        lambda: [one for one in SwarmStore.open().swarms() if len(one.parts) >= parts], every_s=0.0
    )
    return found[0]


class InThread:
    """A call under way: what it returned or raised, and what it was told meanwhile."""

    def __init__(self, call: Callable[[Waiting], Any], timeout_s: float | None = None) -> None:
        self.told: list[Observation] = []
        self._ended: list[Any] = []
        waiting = Waiting(on_change=self.told.append, timeout_s=timeout_s)

        def run() -> None:
            try:
                self._ended.append(call(waiting))
            except Exception as error:  # noqa: BLE001 - the test looks at it
                self._ended.append(error)

        self._thread = threading.Thread(target=run)
        self._thread.start()

    def result(self) -> Any:
        self._thread.join(limit_s())
        return self._ended[0]


def up(waiting: Waiting, **keys: object) -> Any:
    return SwarmJoining(SwarmStore.open()).up(launch_of(**keys), waiting)


def wait(waiting: Waiting) -> Any:
    return SwarmJoining(SwarmStore.open()).wait("demo", waiting)


@pytest.mark.usefixtures("lifecycle")
def test_of_several_ups_at_once_one_launches_and_the_others_wait() -> None:
    told = []
    for one in [start(replicas=2, min_ready=2) for _ in range(3)]:
        stdout, stderr = one.communicate(timeout=limit_s())
        assert one.returncode == 0, stderr
        told.append(stdout.split())
    assert Counter(launched for launched, _ in told) == {"True": 1, "False": 2}
    [tag] = {tag for _, tag in told}
    [record] = SwarmStore.open().swarms(include_stopped=True)
    assert record.tag == tag
    assert Counter(part["kind"] for part in record.parts) == {"endpoint": 1, "replica": 2}
    assert SwarmService().status("demo").replicas_ready == 2

    again = up(Waiting(), replicas=2, min_ready=2)  # as it is up
    assert (again.launched, again.swarm.record.tag) == (False, tag)
    changed = {"replicas": 3, "min_ready": 2, "env": {"A": "b"}}
    with pytest.raises(SwarmExists) as caught:
        up(Waiting(), **changed)
    assert 'replicas is 2, not 3; env.A is not set, not "b".' in caught.value.message
    with pytest.raises(SwarmExists, match="replicas is 2, not 1") as caught:
        up(Waiting(), replicas=1)
    assert "domyn-swarm scale demo 1" in caught.value.hint
    assert SwarmStore.open().swarms() == SwarmStore.open().swarms(include_stopped=True)


@pytest.mark.usefixtures("lifecycle")
def test_an_up_that_is_killed_half_way_is_completed_by_the_one_that_waits() -> None:
    first = start(HELD_UP + UP, replicas=2, min_ready=2)
    half = recorded(parts=1)
    with pytest.raises(WaitTimedOut, match="another command is starting it"):
        wait(Waiting(timeout_s=0.1))
    with pytest.raises(NotReady, match="another command is starting it"):
        up(Waiting(timeout_s=0.1), replicas=2, min_ready=2)
    second = InThread(lambda waiting: up(waiting, replicas=2, min_ready=2))
    until(lambda: [one.detail for one in second.told] == ["another command is starting it"])
    kill(first)
    outcome = second.result()
    assert outcome.launched
    assert outcome.swarm.record.tag != half.tag
    assert carrying(TAG, half.tag) == {}
    assert SwarmService().status("demo").replicas_ready == 2


@pytest.mark.usefixtures("lifecycle")
def test_all_that_wait_for_a_swarm_are_told_why_it_failed() -> None:
    first = start(engine_options=FAILS, watchdog=IMPATIENT)
    recorded()
    others = [InThread(lambda waiting: up(waiting, engine_options=FAILS, watchdog=IMPATIENT))]
    others.append(InThread(wait))
    assert "the simulator is configured to fail" in first.communicate(timeout=limit_s())[1]
    for one in others:
        error = one.result()
        assert isinstance(error, LaunchError)
        assert "the simulator is configured to fail" in error.message
    [record] = SwarmStore.open().swarms(include_stopped=True)
    assert record.phase is SwarmPhase.STOPPED
    with pytest.raises(LaunchError, match=r"is stopped: .*is configured to fail"):
        wait(Waiting())


def test_a_swarm_whose_up_was_killed_is_waited_for(lifecycle: SwarmLifecycle) -> None:
    first = start(engine_options={"start_s": scaled(4)})
    record = recorded(parts=2)
    kill(first)
    with pytest.raises(WaitTimedOut, match="not ready in time") as caught:
        wait(Waiting(timeout_s=0.1))
    assert caught.value.exit_code == 124
    assert wait(Waiting()).record.tag == record.tag
    assert wait(Waiting(timeout_s=0.1)).record.phase is SwarmPhase.READY
    lifecycle.down("demo")
    with pytest.raises(LaunchError, match=r"is stopped: .*down"):
        wait(Waiting())


@pytest.mark.usefixtures("lifecycle")
def test_a_swarm_that_nobody_brings_up_any_more_is_freed_by_who_waits() -> None:
    """Its replicas would hold their GPUs for nothing."""
    first = start(engine_options={"start_s": 600}, wait_endpoint_s=scaled(3))
    record = recorded(parts=2)
    kill(first)
    with pytest.raises(LaunchError, match="not ready in time"):
        wait(Waiting())
    assert SwarmStore.open().swarm("demo").phase is SwarmPhase.STOPPED
    assert carrying(TAG, record.tag) == {}


@pytest.mark.usefixtures("lifecycle")
def test_a_swarm_that_was_launched_in_part_is_not_waited_for() -> None:
    first = start(HELD_UP + UP, replicas=2)
    recorded(parts=1)
    kill(first)
    with pytest.raises(LaunchError, match="launched in part") as caught:
        wait(Waiting())
    assert "domyn-swarm down demo" in caught.value.hint
