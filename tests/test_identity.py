"""A process is known for certain, whatever becomes of the clock."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from domyn_swarm.batch.checkpoint.lease import acquire
from domyn_swarm.errors import CheckpointBusy
from domyn_swarm.model import Location, Reach
from domyn_swarm.process_identity import (
    INITIAL_PID_NAMESPACE,
    host_reach,
    identify,
    still_there,
    this_host,
    this_process,
)

MOVED_S = [-3600.0, -1.0, 1.0, 37.0]
SetClock = Callable[[float], None]


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> SetClock:
    """As `/proc/stat` tells after the clock was set: the machine booted at another time."""
    booted = psutil.boot_time()

    def move(seconds: float) -> None:
        monkeypatch.setattr("psutil._psplatform.boot_time", lambda: booted + seconds)

    return move


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"]) as started:
        yield started
        started.kill()


@pytest.mark.parametrize("moved_s", MOVED_S)
def test_a_clock_that_is_set_makes_a_process_no_stranger(
    child: subprocess.Popen[bytes], set_clock: SetClock, moved_s: float
) -> None:
    known, began = identify(child.pid), psutil.Process(child.pid).create_time()
    set_clock(moved_s)
    assert psutil.Process(child.pid).create_time() == pytest.approx(began + moved_s, abs=0.1)
    assert identify(child.pid) == known
    assert still_there(known)


@pytest.mark.parametrize("moved_s", MOVED_S)
def test_a_clock_that_is_set_gives_no_checkpoint_away(
    tmp_path: Path, set_clock: SetClock, moved_s: float
) -> None:
    lease = acquire(tmp_path)
    set_clock(moved_s)
    with pytest.raises(CheckpointBusy):
        acquire(tmp_path)
    lease.release()


def test_another_start_is_another_process_and_none_is_not_there(
    child: subprocess.Popen[bytes],
) -> None:
    known = identify(child.pid)
    assert not still_there(known.model_copy(update={"started_at": known.started_at + 1}))
    assert known != this_process()
    child.kill()
    assert still_there(known)  # a zombie: nobody else gets its number
    child.wait()
    assert not still_there(known)


HERE = Location(
    kind="host",
    name="login1",
    boot_id="b1",
    pid_namespace=INITIAL_PID_NAMESPACE,
    machine_id="installed-once",
)
CONTAINER = HERE.model_copy(update={"pid_namespace": 4026532217})


@pytest.mark.parametrize(
    ("there", "here", "reach"),
    [
        (HERE, HERE, Reach.HERE),
        # A laptop in another network; another name for the same boot and namespace.
        (HERE.model_copy(update={"name": "dhcp-17"}), HERE, Reach.HERE),
        (HERE.model_copy(update={"name": "login2", "boot_id": "b2"}), HERE, Reach.ELSEWHERE),
        # Containers see their own processes only, on one kernel and with one host name.
        (CONTAINER, HERE, Reach.ELSEWHERE),
        (HERE, CONTAINER, Reach.ELSEWHERE),
        (CONTAINER, CONTAINER, Reach.HERE),
        # The same installation under the same name was restarted.
        (HERE.model_copy(update={"boot_id": "b0"}), HERE, Reach.OVER),
        # But a name is no proof: another machine, an image that many run, a container each.
        (HERE.model_copy(update={"boot_id": "b0", "machine_id": "other"}), HERE, Reach.ELSEWHERE),
        (HERE.model_copy(update={"boot_id": "b0", "machine_id": None}), HERE, Reach.ELSEWHERE),
        (HERE.model_copy(update={"boot_id": "b0", "name": "login2"}), HERE, Reach.ELSEWHERE),
        (CONTAINER.model_copy(update={"boot_id": "b0"}), CONTAINER, Reach.ELSEWHERE),
        (CONTAINER.model_copy(update={"boot_id": "b0"}), HERE, Reach.ELSEWHERE),
        # Systems that do not say have their name alone.
        (Location(kind="host", name="mac"), Location(kind="host", name="mac"), Reach.HERE),
        (Location(kind="host", name="mac"), Location(kind="host", name="other"), Reach.ELSEWHERE),
        (Location(kind="host", name="login1"), HERE, Reach.ELSEWHERE),
        (Location(kind="cluster", name="login1"), HERE, Reach.ELSEWHERE),
    ],
)
def test_what_can_be_known_of_processes_of_another_place(
    there: Location, here: Location, reach: Reach
) -> None:
    assert host_reach(there, here) is reach


def test_this_host_is_known_as_itself() -> None:
    assert host_reach(this_host()) is Reach.HERE
    machine_id = Path("/etc/machine-id")
    if machine_id.exists():  # which is nobody's business
        assert this_host().machine_id not in (None, machine_id.read_text().strip())
