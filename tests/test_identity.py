"""A process is known for certain, whatever becomes of the clock."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from domyn_swarm.batch.lease import acquire
from domyn_swarm.errors import CheckpointBusy
from domyn_swarm.identity import identify, still_there, this_process

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
