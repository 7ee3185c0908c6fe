"""Who brings back an endpoint, and when: many tasks that look for it, in virtual time."""

from __future__ import annotations

import json
import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from domyn_swarm.backends.endpoint.view import EndpointAddress
from domyn_swarm.backends.slurm.recovery import LostEndpoint
from domyn_swarm.errors import PlatformUnavailable
from domyn_swarm.paths import write_private
from slurm.scripted import ScriptedCluster, ScriptedSlurm
from slurm.scripted_swarm import Launch, ScriptedSwarm

HOUR_S = 3600.0


def look_out(swarm: ScriptedSwarm, tasks: int = 1) -> list[LostEndpoint]:
    return [
        LostEndpoint(swarm.paths, slurm=swarm.cluster.process(), clock=swarm.clock)
        for _ in range(tasks)
    ]


def look(
    swarm: ScriptedSwarm, tasks: Sequence[LostEndpoint], for_s: float, every_s: float = 2.5
) -> list[tuple[float, str]]:
    """Each task looks all the time; when which endpoint was submitted."""
    began = swarm.clock.monotonic()
    known = {one.job.id for one in swarm.tagged("endpoint")}
    found = []
    while (passed_s := swarm.clock.monotonic() - began) <= for_s:
        for task in tasks:
            task.look()
        new = [one.job.id for one in swarm.tagged("endpoint") if one.job.id not in known]
        known.update(new)
        found += [(passed_s, one) for one in new]
        swarm.clock.sleep(every_s)
    return found


@pytest.mark.parametrize(
    ("state", "comes"),
    [
        *((state, True) for state in ("NODE_FAIL", "TIMEOUT", "PREEMPTED", "BOOT_FAIL")),
        *((state, True) for state in ("FAILED", "OUT_OF_MEMORY")),
        *((state, False) for state in ("CANCELLED", "COMPLETED", "DEADLINE", "REVOKED")),
    ],
)
def test_an_endpoint_that_is_over_comes_back_unless_somebody_ended_it(
    swarm: ScriptedSwarm, state: str, comes: bool
) -> None:
    tasks = look_out(swarm, 5)
    swarm.cluster.end(swarm.endpoint, state)
    found = look(swarm, tasks, HOUR_S)
    assert len(found) == int(comes)  # one, not one of each
    assert all(20.0 <= seconds <= 45.0 for seconds, _ in found)


@pytest.mark.parametrize("forgotten_after_s", [60.0, HOUR_S])
@pytest.mark.parametrize("state", ["CANCELLED", "COMPLETED"])
def test_tasks_end_some_minutes_after_an_endpoint_that_nobody_brings_back(
    swarm: ScriptedSwarm, state: str, forgotten_after_s: float
) -> None:
    tasks = look_out(swarm, 5)
    swarm.cluster.min_job_age_s = forgotten_after_s
    swarm.cluster.end(swarm.endpoint, state)
    assert look(swarm, tasks, 290.0) == []
    assert not any(task.over for task in tasks)
    assert look(swarm, tasks, 600.0) == []
    assert all(task.over for task in tasks)


def test_an_endpoint_that_was_put_back_or_replaced_ends_no_task(
    swarm: ScriptedSwarm, listening: socket.socket
) -> None:
    tasks = look_out(swarm, 2)
    before = swarm.endpoint
    where = swarm.paths.endpoint.read_text()
    swarm.paths.endpoint.unlink()
    swarm.cluster.end(before, "CANCELLED")
    look(swarm, tasks, 200.0)
    assert swarm.paths.endpoint_over.exists()
    swarm.cluster.requeue(before)  # by an admin
    write_private(swarm.paths.endpoint, where)
    look(swarm, tasks, 10.0)
    assert not swarm.paths.endpoint_over.exists()
    swarm.paths.endpoint.unlink()  # it moves, long afterwards
    swarm.clock.sleep(HOUR_S)
    look(swarm, tasks, HOUR_S)
    assert not any(task.over for task in tasks)


def test_what_is_left_of_an_earlier_swarm_of_the_name_ends_no_task(swarm: ScriptedSwarm) -> None:
    [task] = look_out(swarm)
    old = {"tag": "other", "since": 0.0, "ends": True}
    write_private(swarm.paths.endpoint_over, json.dumps(old))
    look(swarm, [task], 60.0)
    assert not task.over


def test_slurm_may_bring_it_back_itself(swarm: ScriptedSwarm) -> None:
    swarm.cluster.lose(swarm.endpoint)
    assert look(swarm, look_out(swarm, 5), HOUR_S) == []
    assert swarm.cluster.live()[swarm.endpoint] == "RUNNING"


def test_one_that_was_replaced_and_came_back_needs_no_other(swarm: ScriptedSwarm) -> None:
    before = swarm.endpoint
    swarm.cluster.end(before, "NODE_FAIL")
    assert len(look(swarm, look_out(swarm), 60.0)) == 1
    swarm.cluster.room = False
    swarm.cluster.requeue(before)  # by an admin
    swarm.cluster.end(swarm.endpoint, "NODE_FAIL")
    assert look(swarm, look_out(swarm), 200.0) == []
    assert swarm.cluster.live()[before] == "PENDING"


@pytest.fixture
def listening(swarm: ScriptedSwarm) -> Iterator[socket.socket]:
    """Where the swarm's endpoint says that it listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        where = f"http://127.0.0.1:{server.getsockname()[1]}"
        address = EndpointAddress(url=where, collector_url=where)
        write_private(swarm.paths.endpoint, address.model_dump_json())
        yield server


def test_while_it_is_reached_slurm_is_not_asked(
    swarm: ScriptedSwarm, listening: socket.socket
) -> None:
    """Whatever Slurm would say."""
    [task] = look_out(swarm)
    swarm.cluster.min_job_age_s = HOUR_S
    before = len(swarm.cluster.looks)
    swarm.cluster.end(swarm.endpoint, "NODE_FAIL")
    for _ in range(60):
        task.look()
        listening.accept()[0].close()
        swarm.clock.sleep(5.0)
    assert len(swarm.cluster.looks) == before
    listening.close()  # reached last 5 s ago
    assert look(swarm, [task], 14.0) == []
    assert len(look(swarm, [task], 30.0)) == 1


def test_an_endpoint_that_is_lost_anew_is_not_asked_for_as_rarely_as_the_last(
    swarm: ScriptedSwarm, listening: socket.socket
) -> None:
    [task] = look_out(swarm)
    listening.close()
    swarm.cluster.room = False
    swarm.cluster.lose(swarm.endpoint)
    look(swarm, [task], 5 * HOUR_S, every_s=20.0)  # by now it asks every ten minutes or more
    swarm.cluster.room = True
    swarm.clock.until(swarm.all_run)
    with socket.create_server(("127.0.0.1", 0)) as server:
        where = f"http://127.0.0.1:{server.getsockname()[1]}"
        address = EndpointAddress(url=where, collector_url=where)
        write_private(swarm.paths.endpoint, address.model_dump_json())
        swarm.clock.sleep(5.0)
        task.look()
    swarm.cluster.end(swarm.endpoint, "NODE_FAIL")
    swarm.cluster.away(45.0)  # the first question comes to nothing
    [(seconds, _)] = look(swarm, [task], HOUR_S)
    assert seconds <= 95.0


def test_all_tasks_see_the_loss_at_once_and_a_few_ask(swarm: ScriptedSwarm) -> None:
    tasks = look_out(swarm, 300)
    swarm.cluster.room = False
    swarm.cluster.lose(swarm.endpoint)
    swarm.cluster.looks.clear()
    look(swarm, tasks, 90.0)
    per_moment = Counter(swarm.cluster.looks)
    assert 2 <= sum(per_moment.values()) <= 20  # by 300 tasks, each of which would twice
    assert max(per_moment.values()) == 1


def test_an_endpoint_that_waits_for_a_day_is_asked_for_every_ten_minutes_or_less(
    swarm: ScriptedSwarm,
) -> None:
    [task] = look_out(swarm)
    swarm.cluster.room = False
    swarm.cluster.lose(swarm.endpoint)
    swarm.cluster.looks.clear()
    assert look(swarm, [task], 24 * HOUR_S, every_s=10.0) == []
    asked = swarm.cluster.looks
    pauses_s = [later - earlier for earlier, later in pairwise(asked)]
    assert pauses_s[0] < 60.0
    assert all(600.0 <= pause_s <= 910.0 for pause_s in pauses_s[6:])


def test_one_that_fails_again_and_again_is_given_up(swarm: ScriptedSwarm) -> None:
    came = []
    for _ in range(4):
        swarm.clock.until(lambda: swarm.cluster.jobs[swarm.endpoint].state == "RUNNING")
        swarm.cluster.end(swarm.endpoint, "FAILED")
        came.append(len(look(swarm, look_out(swarm, 3), 100.0)))
    assert came == [1, 1, 1, 0]
    assert look(swarm, look_out(swarm, 3), HOUR_S, every_s=10.0) == []


@pytest.mark.parametrize(("lives_s", "states"), [(1800.0, ["FAILED"]), (60.0, ["NODE_FAIL"])])
def test_one_that_fails_now_and_then_or_loses_its_nodes_is_never_given_up(
    swarm: ScriptedSwarm, lives_s: float, states: list[str]
) -> None:
    for _ in range(8):
        swarm.clock.until(lambda: swarm.cluster.jobs[swarm.endpoint].state == "RUNNING")
        swarm.clock.sleep(lives_s)
        for state in states:
            swarm.cluster.end(swarm.endpoint, state)
        assert len(look(swarm, look_out(swarm, 3), 250.0)) == 1


class AwayAtSubmit(ScriptedSlurm):
    """Its controller goes away for ten minutes as the successor is submitted."""

    def __init__(self, cluster: ScriptedCluster) -> None:
        super().__init__(cluster)
        self.refused = 0

    def submit(
        self, script: Path, *, array: Sequence[int] | None = None, after: str | None = None
    ) -> str:
        self.refused += 1
        if self.refused == 1:
            raise PlatformUnavailable("Unable to contact slurm controller", hint="")
        return super().submit(script, array=array, after=after)


def test_a_successor_that_cannot_be_submitted_is_tried_another_time(
    launch: Launch,
) -> None:
    swarm = launch(requeue=False)
    slurm = AwayAtSubmit(swarm.cluster)
    task = LostEndpoint(swarm.paths, slurm=slurm, clock=swarm.clock)
    swarm.cluster.end(swarm.endpoint, "NODE_FAIL")
    [(seconds, _)] = look(swarm, [task], 200.0)
    assert slurm.refused == 2
    assert 50.0 <= seconds <= 90.0


def test_a_controller_that_is_away_for_ten_minutes_is_asked_again(launch: Launch) -> None:
    swarm = launch(requeue=False)
    swarm.cluster.min_job_age_s = HOUR_S  # as rarely as each asks by now, Slurm may forget it first
    tasks = look_out(swarm, 5)
    swarm.cluster.away(600.0)
    assert look(swarm, tasks, 595.0) == []
    swarm.clock.sleep(10.0)
    swarm.cluster.end(swarm.endpoint, "NODE_FAIL")  # noticed only now
    assert len(look(swarm, tasks, 1.5 * 600.0)) == 1


def test_a_claim_of_a_task_that_was_killed_before_it_submitted_is_made_anew(
    swarm: ScriptedSwarm,
) -> None:
    swarm.cluster.min_job_age_s = 600.0
    lost = swarm.endpoint
    tasks = look_out(swarm, 20)
    swarm.cluster.end(lost, "NODE_FAIL")
    swarm.clock.sleep(10.0)
    swarm.leave(swarm.paths.endpoint_successor(lost), "")
    [(seconds, _)] = look(swarm, tasks, 500.0)  # one, of twenty who see so
    assert 120.0 <= seconds <= 300.0


def test_an_admin_who_ends_the_successor_gets_no_other(swarm: ScriptedSwarm) -> None:
    tasks = look_out(swarm, 5)
    swarm.cluster.min_job_age_s = 6 * HOUR_S  # so that the lost one is seen for long
    swarm.cluster.end(swarm.endpoint, "NODE_FAIL")
    assert len(look(swarm, tasks, 100.0)) == 1
    swarm.cluster.end(swarm.endpoint, "CANCELLED")  # by an admin, who wants none
    assert look(swarm, tasks, HOUR_S) == []
