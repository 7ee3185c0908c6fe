"""How often the scheduler is asked. No cluster."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from itertools import pairwise

import pytest

from domyn_swarm.backends.slurm import commands
from domyn_swarm.backends.slurm.commands import Slurm
from domyn_swarm.backends.slurm.queue import JobsById, QueueSnapshot
from domyn_swarm.backends.slurm.slurm_states import SlurmJob
from domyn_swarm.errors import PlatformUnavailable
from virtual_time import FilingClock


class Scheduler:
    """Counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.state = "RUNNING"

    def ask(self) -> JobsById:
        self.asked += 1
        if self.state == "away":
            raise PlatformUnavailable("away", hint="")
        return {"1": SlurmJob("1", self.state, "", "n1", "N/A", "")}


@pytest.fixture
def scheduler() -> Scheduler:
    return Scheduler()


@pytest.fixture
def look(scheduler: Scheduler, clock: FilingClock) -> QueueSnapshot:
    return QueueSnapshot(scheduler.ask, clock=clock)


def test_all_who_ask_at_once_share_one_look(scheduler: Scheduler, look: QueueSnapshot) -> None:
    assert [look.now()["1"].state for _ in range(100)] == ["RUNNING"] * 100
    assert scheduler.asked == 1


def test_it_is_asked_ever_less_while_nothing_changes(
    scheduler: Scheduler, look: QueueSnapshot, clock: FilingClock
) -> None:
    for _ in range(6000):
        look.now()
        clock.sleep(0.1)
    assert scheduler.asked < 50  # in ten minutes
    scheduler.state = "COMPLETED"
    clock.sleep(15.0)
    look.now()
    before = scheduler.asked
    clock.sleep(1.0)  # after a change it looks again soon
    look.now()
    assert scheduler.asked == before + 1


def test_an_expected_change_is_looked_for_at_once(
    scheduler: Scheduler, look: QueueSnapshot
) -> None:
    look.now()
    scheduler.state = "COMPLETED"
    assert look.now()["1"].state == "RUNNING"
    look.expect_change()
    assert look.now()["1"].state == "COMPLETED"


def test_a_scheduler_that_does_not_answer_is_not_asked_by_everyone(
    scheduler: Scheduler, look: QueueSnapshot, clock: FilingClock
) -> None:
    scheduler.state = "away"
    for _ in range(10):
        with pytest.raises(PlatformUnavailable):
            look.now()
    assert scheduler.asked == 1
    scheduler.state = "RUNNING"
    clock.sleep(5.0)
    assert look.now()["1"].state == "RUNNING"


def test_who_must_be_sure_asks_for_a_fresh_look(
    scheduler: Scheduler, look: QueueSnapshot, clock: FilingClock
) -> None:
    for pause_s in (1.0, 2.0, 3.0, 4.0, 2.0):  # rarer by now
        look.now()
        clock.sleep(pause_s)
    scheduler.state = "COMPLETED"
    assert look.now()["1"].state == "RUNNING"
    assert look.now(at_most_s=1.0)["1"].state == "COMPLETED"


class Accounting(Slurm):
    """Slurm whose controller remembers nothing, and whose accounting fails for a while."""

    def __init__(self, clock: FilingClock, back_after_s: float) -> None:
        super().__init__(clock=clock)
        self.asked: list[float] = []
        self._back_at = clock.monotonic() + back_after_s

    def run(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """What stands in for `invocation.run`."""
        now = self._clock.monotonic()
        said, code = "", 0
        if command[0] == "sacct":
            self.asked.append(now)
            code = int(now < self._back_at)
            said = "" if code else "17|COMPLETED|None|n1|2026-01-01T00:00:00||job\n"
        return subprocess.CompletedProcess(command, code, said, "slurmdbd is away" if code else "")


def test_accounting_that_failed_is_asked_again_ever_more_seldom(
    clock: FilingClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm = Accounting(clock, back_after_s=86_400.0)
    monkeypatch.setattr(commands, "run", slurm.run)
    until_s = clock.monotonic() + 86_400.0
    while clock.monotonic() < until_s:
        assert slurm.jobs(["17"]) == {}
        clock.sleep(20.0)
    pauses_s = [later - earlier for earlier, later in pairwise(slurm.asked)]
    assert pauses_s[0] < 90.0
    assert all(3600.0 <= pause_s <= 3630.0 for pause_s in pauses_s[7:])
    clock.sleep(3600.0)
    assert slurm.jobs(["17"])["17"].state == "COMPLETED"


def test_an_accounting_that_failed_for_a_moment_is_asked_within_a_minute(
    clock: FilingClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm = Accounting(clock, back_after_s=10.0)
    monkeypatch.setattr(commands, "run", slurm.run)
    assert slurm.jobs(["17"]) == {}
    clock.sleep(60.0)
    assert slurm.jobs(["17"])["17"].state == "COMPLETED"
