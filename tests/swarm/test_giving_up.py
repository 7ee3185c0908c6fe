"""`up` that fails for whatever reason frees what it started, or says what keeps running; programs
that come to the same end side by side.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from domyn_swarm.backends.local.local_serving import LocalServing
from domyn_swarm.backends.local.processes import TAG, carrying
from domyn_swarm.errors import LaunchError
from domyn_swarm.model import SwarmPhase, utc_now
from domyn_swarm.services.swarms import SwarmService
from domyn_swarm.state import SwarmRecord, SwarmStore
from domyn_swarm.swarm import lifecycle as lifecycle_module
from domyn_swarm.swarm import swarm_folder
from domyn_swarm.swarm.lifecycle import SwarmLifecycle
from domyn_swarm.swarm.reconcile import reconcile
from local_swarms import launch_of

SLOW = {"start_s": 600}


def quota(path: Path, _text: str) -> None:
    raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), str(path))


def stale(_swarm: object) -> Callable[[], object]:
    def look() -> object:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), "/home/x/replicas.json")

    return look


def bug(_swarm: object) -> Callable[[], object]:
    def look() -> object:
        raise ZeroDivisionError("division by zero")

    return look


def stopped_and_gone(name: str = "demo") -> bool:
    record = SwarmStore.open().swarm(name)
    return record.phase is SwarmPhase.STOPPED and carrying(TAG, record.tag) == {}


def test_a_key_that_cannot_be_written_ends_up_in_one_error(
    lifecycle: SwarmLifecycle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(swarm_folder, "write_private_once", quota)
    with pytest.raises(LaunchError, match=r"Disk quota exceeded: .*metrics_key") as caught:
        lifecycle.up(launch_of())
    assert "quota" in caught.value.hint
    assert stopped_and_gone()


def test_a_home_that_cannot_be_written_leaves_no_record(
    lifecycle: SwarmLifecycle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle_module, "claim", lambda path: quota(path, ""))
    with pytest.raises(LaunchError, match="Disk quota exceeded"):
        lifecycle.up(launch_of())
    assert SwarmStore.open().swarms(include_stopped=True) == []


@pytest.mark.parametrize(("look", "raised"), [(stale, LaunchError), (bug, ZeroDivisionError)])
def test_an_error_after_the_launch_frees_what_was_started(
    lifecycle: SwarmLifecycle,
    monkeypatch: pytest.MonkeyPatch,
    look: Callable[[object], Callable[[], object]],
    raised: type[Exception],
) -> None:
    monkeypatch.setattr(lifecycle_module, "readiness", look)
    with pytest.raises(raised) as caught:
        lifecycle.up(launch_of(engine_options=SLOW))
    notes = getattr(caught.value, "__notes__", [])
    assert "demo did not come up" in "".join([str(caught.value), *notes])
    assert stopped_and_gone()


def test_what_cannot_be_freed_is_told_and_can_be_ended(
    lifecycle: SwarmLifecycle, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(lifecycle_module, "readiness", stale)
        patch.setattr(LocalServing, "delete", lambda *_: quota(Path("/home/x"), ""))
        with pytest.raises(LaunchError) as caught:
            lifecycle.up(launch_of(engine_options=SLOW))
    assert "may still run" in caught.value.hint
    assert "domyn-swarm down demo" in caught.value.hint
    record = SwarmStore.open().swarm("demo")
    assert record.phase is SwarmPhase.FAILED
    assert carrying(TAG, record.tag) != {}
    assert SwarmService().down(["demo"])[0].stopped
    assert stopped_and_gone()


# -- several programs at once ----------------------------------------------------------------------


def recorded(home: Path, phase: SwarmPhase) -> SwarmRecord:
    """A swarm of which nothing runs."""
    launch = launch_of(home_directory=home)
    plan, context = launch.plan, launch.context
    now = utc_now()
    record = SwarmRecord(
        name="demo",
        tag=context.tag,
        backend="local",
        phase=phase,
        swarm_dir=str(home / "swarms" / "demo"),
        plan_json=plan.model_dump_json(),
        created_at=now,
        updated_at=now,
    )
    SwarmStore.open().create_swarm(record)
    return record


@pytest.mark.parametrize("moment", ["before", "within"])
def test_down_beside_a_program_that_records_the_end_first(
    swarm_home: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    record = recorded(swarm_home, SwarmPhase.READY)
    store = SwarmStore.open()

    def seen_elsewhere(_store: SwarmStore, found: SwarmRecord) -> SwarmRecord:
        if moment == "before":
            store.set_stopped(record.tag, "seen elsewhere")
        return found

    def deleted(*_: object) -> None:
        store.set_stopped(record.tag, "seen elsewhere")

    monkeypatch.setattr(lifecycle_module, "reconcile", seen_elsewhere)
    monkeypatch.setattr(LocalServing, "delete", deleted)
    [result] = SwarmService().down(["demo"])
    assert (result.stopped, result.error) == (True, None)
    assert store.swarm("demo").detail == "seen elsewhere"


def test_a_swarm_that_is_forgotten_while_somebody_looks_crashes_nobody(swarm_home: Path) -> None:
    store = SwarmStore.open()
    old = recorded(swarm_home, SwarmPhase.LAUNCHING)
    store.set_stopped(old.tag)
    assert store.delete_stopped(old.tag)
    assert reconcile(store, old) == old
