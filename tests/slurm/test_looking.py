"""How often the scheduler is asked. No cluster."""

from __future__ import annotations

import pytest

from domyn_swarm.backends.slurm import looking
from domyn_swarm.backends.slurm.looking import Jobs, Look
from domyn_swarm.backends.slurm.states import SlurmJob
from domyn_swarm.errors import PlatformUnavailable


class Scheduler:
    """Counts how often it is asked; its clock moves when told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked = 0
        self.state = "RUNNING"
        self.now = 0.0
        monkeypatch.setattr(looking, "time", self)

    def monotonic(self) -> float:
        return self.now

    def ask(self) -> Jobs:
        self.asked += 1
        if self.state == "away":
            raise PlatformUnavailable("away", hint="")
        return {"1": SlurmJob("1", self.state, "", "n1", "N/A", "")}


@pytest.fixture
def scheduler(monkeypatch: pytest.MonkeyPatch) -> Scheduler:
    return Scheduler(monkeypatch)


def test_all_who_ask_at_once_share_one_look(scheduler: Scheduler) -> None:
    look = Look(scheduler.ask)
    assert [look.now()["1"].state for _ in range(100)] == ["RUNNING"] * 100
    assert scheduler.asked == 1


def test_it_is_asked_ever_less_while_nothing_changes(scheduler: Scheduler) -> None:
    look = Look(scheduler.ask)
    for tenth in range(6000):
        scheduler.now = tenth / 10
        look.now()
    assert scheduler.asked < 50  # in ten minutes
    scheduler.state = "COMPLETED"
    scheduler.now += 15
    look.now()
    before = scheduler.asked
    scheduler.now += 1  # after a change it looks again soon
    look.now()
    assert scheduler.asked == before + 1


def test_an_expected_change_is_looked_for_at_once(scheduler: Scheduler) -> None:
    look = Look(scheduler.ask)
    look.now()
    scheduler.state = "COMPLETED"
    assert look.now()["1"].state == "RUNNING"
    look.expect_change()
    assert look.now()["1"].state == "COMPLETED"


def test_a_scheduler_that_does_not_answer_is_not_asked_by_everyone(scheduler: Scheduler) -> None:
    scheduler.state = "away"
    look = Look(scheduler.ask)
    for _ in range(10):
        with pytest.raises(PlatformUnavailable):
            look.now()
    assert scheduler.asked == 1
    scheduler.state, scheduler.now = "RUNNING", 5.0
    assert look.now()["1"].state == "RUNNING"


def test_who_must_be_sure_asks_for_a_fresh_look(scheduler: Scheduler) -> None:
    look = Look(scheduler.ask)
    for scheduler.now in (0.0, 1.0, 3.0, 6.0, 10.0):  # rarer by now
        look.now()
    scheduler.state, scheduler.now = "COMPLETED", 12.0
    assert look.now()["1"].state == "RUNNING"
    assert look.now(at_most_s=1.0)["1"].state == "COMPLETED"
