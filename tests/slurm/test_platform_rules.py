"""Which replicas the endpoint program replaces, and when: in virtual time."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from domyn_swarm.backends.endpoint.view import CollectorView
from domyn_swarm.backends.left_out import LeftOutNodes, left_out
from domyn_swarm.backends.slurm.slurm_platform import SlurmPlatform
from domyn_swarm.errors import PlatformError, PlatformUnavailable
from domyn_swarm.model import ExitRecord, JobHandle, ReplicaReport, ReplicaState, utc_now
from slurm.scripted import ScriptedCluster, ScriptedSlurm
from slurm.scripted_swarm import TAG, Launch, ScriptedSwarm

HOUR_S = 3600.0


def platform(swarm: ScriptedSwarm, slurm: ScriptedSlurm | None = None) -> SlurmPlatform:
    seen_by = slurm or swarm.cluster.process(30.0)
    return SlurmPlatform(swarm.paths, TAG, slurm=seen_by, clock=swarm.clock)


def look_after(
    swarm: ScriptedSwarm,
    asked: SlurmPlatform,
    for_s: float,
    *,
    replicas: int = 2,
    every_s: float = 2.0,
) -> list[tuple[float, str]]:
    """As the endpoint program does, every two seconds; when which tasks were submitted."""
    began = swarm.clock.monotonic()
    known = set(swarm.cluster.jobs)
    found = []
    while (passed_s := swarm.clock.monotonic() - began) <= for_s:
        with contextlib.suppress(PlatformError):
            asked.replace_lost(range(replicas))
        new = sorted(swarm.cluster.jobs.keys() - known)
        known.update(new)
        found += [(passed_s, one) for one in new]
        swarm.clock.sleep(every_s)
    return found


NOTHING: Sequence[float] = []


@pytest.mark.parametrize(
    ("state", "requeue", "at_work", "expired", "after_s"),
    [
        # what Slurm takes away, it has 20 s to bring back, where it may
        ("NODE_FAIL", False, None, None, [0]),
        ("NODE_FAIL", True, None, None, [20]),
        ("TIMEOUT", True, None, None, [20]),
        ("PREEMPTED", True, None, None, [20]),
        ("BOOT_FAIL", False, None, None, [0]),
        # what reached its time limit leaves word
        ("COMPLETED", False, None, "own", [0]),
        ("COMPLETED", True, None, "own", [0]),
        ("COMPLETED", False, None, "another's", NOTHING),
        ("COMPLETED", False, None, None, NOTHING),
        # what was killed has not taken its file away
        ("FAILED", True, "own", None, [20]),
        ("FAILED", False, "own", None, [20]),
        ("OUT_OF_MEMORY", True, "own", None, [20]),
        ("FAILED", True, "another's", None, NOTHING),
        ("FAILED", True, None, None, NOTHING),
        ("OUT_OF_MEMORY", False, None, None, NOTHING),
        # what somebody ended stays ended
        ("CANCELLED", True, None, None, NOTHING),
        ("CANCELLED", False, "own", None, NOTHING),
        ("DEADLINE", False, "own", None, NOTHING),
    ],
)
def test_a_task_that_is_over_has_a_successor_or_none(
    launch: Launch,
    *,
    state: str,
    requeue: bool,
    at_work: str | None,
    expired: str | None,
    after_s: list[float],
) -> None:
    swarm = launch(requeue=requeue)
    lost = swarm.task(1)
    words = {"own": lost, "another's": "9_1"}
    if at_work:
        swarm.leave(swarm.paths.at_work(1), words[at_work])
    if expired:
        swarm.leave(swarm.paths.expired(1), words[expired])
    swarm.cluster.end(lost, state)
    # within these minutes Slurm still knows it; of the word of another, see below
    found = look_after(swarm, platform(swarm), 200.0)
    assert [seconds for seconds, _ in found] == after_s
    assert all(one.endswith("_1") for _, one in found)
    assert swarm.live(swarm.task(0))
    assert swarm.paths.expired(1).exists() == (expired == "another's")


def test_what_slurm_itself_puts_back_into_the_queue_needs_no_successor(
    swarm: ScriptedSwarm,
) -> None:
    swarm.cluster.room = False
    swarm.cluster.lose(swarm.task(1))
    assert look_after(swarm, platform(swarm), 1200.0) == []
    assert list(swarm.cluster.live().values()).count("PENDING") == 1


@pytest.mark.parametrize(
    ("at_work_age_s", "expired", "comes"),
    [
        (None, False, False),  # it may have failed
        (None, True, True),
        (0.0, False, False),  # it may have begun a moment ago
        (119.0, False, False),
        (121.0, False, True),
        (2 * HOUR_S, False, True),
    ],
)
def test_a_task_that_slurm_forgot_comes_back_if_it_left_word_or_was_killed(
    swarm: ScriptedSwarm, at_work_age_s: float | None, expired: bool, comes: bool
) -> None:
    """Minutes after its end (`MinJobAge`), as after an endpoint that was away for so long."""
    lost = swarm.task(1)
    swarm.cluster.end(lost, "FAILED")
    swarm.clock.sleep(swarm.cluster.min_job_age_s + 1)
    assert lost not in swarm.cluster.jobs
    if at_work_age_s is not None:
        swarm.leave(swarm.paths.at_work(1), lost, age_s=at_work_age_s)
    if expired:
        swarm.leave(swarm.paths.expired(1), lost)
    assert (look_after(swarm, platform(swarm), 0.0) != []) == comes


def kill(swarm: ScriptedSwarm, asked: SlurmPlatform, *, ran_s: float) -> bool:
    """SIGKILL for a task after so long; whether it has a successor."""
    killed = swarm.task(1)
    swarm.leave(swarm.paths.at_work(1), killed)
    swarm.clock.sleep(ran_s)
    swarm.cluster.end(killed, "FAILED")
    return bool(look_after(swarm, asked, 100.0))


def test_a_task_that_is_killed_again_and_again_is_given_up(swarm: ScriptedSwarm) -> None:
    asked = platform(swarm)
    assert [kill(swarm, asked, ran_s=60) for _ in range(4)] == [True, True, True, False]
    # for ever, even once Slurm has forgotten it
    assert look_after(swarm, asked, 3 * HOUR_S, every_s=20.0) == []
    assert look_after(swarm, platform(swarm), 600.0) == []  # and whoever asks


def test_a_task_that_is_killed_after_an_hour_counts_anew(swarm: ScriptedSwarm) -> None:
    asked = platform(swarm)
    lives_s = [60, 60, 60, HOUR_S + 1, 60, 60, HOUR_S - 200, 60]
    came = [kill(swarm, asked, ran_s=ran_s) for ran_s in lives_s]
    assert came == [True, True, True, True, True, True, False, False]


def test_a_task_that_is_killed_every_few_hours_always_comes_back(swarm: ScriptedSwarm) -> None:
    asked = platform(swarm)
    assert all(kill(swarm, asked, ran_s=3 * HOUR_S) for _ in range(10))


class RefusesOnce(ScriptedSlurm):
    """Its controller goes away just as a script is submitted."""

    def __init__(self, cluster: ScriptedCluster) -> None:
        super().__init__(cluster, 30.0)
        self.refused = 0

    def submit(self, script: Path, **how: Any) -> str:
        if not self.refused:
            self.refused += 1
            raise PlatformUnavailable("Unable to contact slurm controller", hint="")
        return super().submit(script, **how)


def test_a_successor_that_cannot_be_submitted_is_not_counted_and_tried_again(
    swarm: ScriptedSwarm,
) -> None:
    slurm = RefusesOnce(swarm.cluster)
    lost = swarm.task(1)
    swarm.leave(swarm.paths.at_work(1), lost)
    swarm.cluster.end(lost, "FAILED")
    found = look_after(swarm, platform(swarm, slurm), 200.0)
    assert slurm.refused == 1
    assert [seconds for seconds, _ in found] == [80.0]  # a minute later
    assert swarm.paths.killed(1).read_text() == lost


def test_a_word_of_a_time_limit_is_kept_until_the_successor_is_submitted(
    launch: Launch,
) -> None:
    swarm = launch(requeue=False)
    slurm = RefusesOnce(swarm.cluster)
    lost = swarm.task(1)
    swarm.leave(swarm.paths.expired(1), lost)
    swarm.cluster.end(lost, "COMPLETED")
    asked = platform(swarm, slurm)
    assert look_after(swarm, asked, 0.0) == []
    assert swarm.paths.expired(1).exists()
    assert len(look_after(swarm, asked, 100.0)) == 1
    assert not swarm.paths.expired(1).exists()


def test_a_task_is_submitted_once_a_minute_at_most(launch: Launch) -> None:
    """As on a node that loses every job that it gets."""
    swarm = launch(requeue=False)
    asked = platform(swarm)
    submitted = []
    began = swarm.clock.monotonic()
    for _ in range(5):
        swarm.cluster.end(swarm.task(1), "NODE_FAIL")
        [(_, successor)] = look_after(swarm, asked, 70.0)
        submitted.append(successor)
        swarm.clock.until(lambda: swarm.cluster.jobs[swarm.task(1)].state == "RUNNING")
    assert len(set(submitted)) == 5
    swarm.cluster.end(swarm.task(1), "NODE_FAIL")
    assert swarm.clock.monotonic() - began >= 300


def test_a_successor_that_is_lost_at_once_waits_out_its_minute(launch: Launch) -> None:
    swarm = launch(requeue=False)
    asked = platform(swarm)
    swarm.cluster.end(swarm.task(1), "NODE_FAIL")
    asked.replace_lost(range(2))
    first = swarm.task(1)
    swarm.clock.sleep(2.0)
    swarm.cluster.end(first, "NODE_FAIL")
    [(seconds, _)] = look_after(swarm, asked, 100.0)
    assert seconds == 58.0


def test_a_controller_that_is_away_for_ten_minutes_costs_no_replica_and_doubles_none(
    launch: Launch,
) -> None:
    swarm = launch(requeue=False)
    asked = platform(swarm)
    lost = swarm.task(1)
    swarm.cluster.away(600.0)
    began = len(swarm.cluster.looks)
    assert look_after(swarm, asked, 595.0) == []
    assert len(swarm.cluster.looks) - began < 35  # a refusal is remembered as an answer is
    swarm.clock.sleep(10.0)
    swarm.cluster.end(lost, "NODE_FAIL")  # noticed only now
    assert len(look_after(swarm, asked, 200.0)) == 1


def test_while_a_replica_waits_for_hours_slurm_is_asked_twice_a_minute(
    swarm: ScriptedSwarm,
) -> None:
    swarm.cluster.room = False
    swarm.cluster.lose(swarm.task(1))
    before = len(swarm.cluster.looks)
    assert look_after(swarm, platform(swarm), 2 * HOUR_S) == []
    asked = len(swarm.cluster.looks) - before
    assert 200 < asked < 2 * 120 + 20


def test_what_is_lost_after_all_have_served_is_seen_at_once(launch: Launch) -> None:
    """It is asked about while not all serve: its look from then is old."""
    swarm = launch(requeue=False)
    asked = platform(swarm)
    look_after(swarm, asked, 600.0)  # ever more seldom
    swarm.clock.sleep(11.0)  # all serve
    swarm.cluster.end(swarm.task(1), "NODE_FAIL")
    asked.replace_lost(range(2))
    assert swarm.live(swarm.task(1))


def test_replicas_that_share_a_task_are_replaced_as_one(launch: Launch) -> None:
    swarm = launch(replicas=5, gpus_per_replica=2, packing="node", requeue=False)
    lost = swarm.task(2)  # the fifth, alone on its node
    assert len(swarm.tagged("replica")) == 3
    swarm.cluster.end(lost, "NODE_FAIL")
    swarm.cluster.end(swarm.task(0), "NODE_FAIL")
    found = look_after(swarm, platform(swarm), 100.0, replicas=5)
    assert sorted(one.partition("_")[2] for _, one in found) == ["0", "2"]


def test_a_replica_that_is_not_wanted_any_more_has_no_successor(launch: Launch) -> None:
    swarm = launch(requeue=False)
    swarm.cluster.end(swarm.task(1), "NODE_FAIL")
    assert look_after(swarm, platform(swarm), 100.0, replicas=1) == []


def test_an_unused_swarm_ends_its_replicas_and_not_the_endpoint_that_asks(
    swarm: ScriptedSwarm,
) -> None:
    platform(swarm).end_rest()
    assert list(swarm.cluster.live()) == [swarm.endpoint]


def test_a_job_is_over_by_its_record_or_by_slurm(swarm: ScriptedSwarm, tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    script.write_text(f"#SBATCH --comment=domyn-swarm/{TAG}/job/j\n")
    job = swarm.cluster.process().submit(script)
    handle = JobHandle(
        job_id="j",
        swarm="demo",
        platform="slurm",
        platform_id=job,
        job_dir=str(tmp_path),
        log_path=str(tmp_path / "log"),
        exit_path=str(tmp_path / "exit.json"),
        submitted_at=utc_now(),
    )
    asked = platform(swarm)
    assert not asked.job_over(handle)
    swarm.cluster.end(job, "TIMEOUT")
    swarm.clock.sleep(30.0)
    assert asked.job_over(handle)


def test_a_process_of_another_host_is_over_by_its_record_alone(
    swarm: ScriptedSwarm, tmp_path: Path
) -> None:
    ended = tmp_path / "exit.json"
    handle = JobHandle(
        job_id="j",
        swarm="demo",
        platform="local",
        platform_id="4711",  # no job of Slurm's has that number
        job_dir=str(tmp_path),
        log_path=str(tmp_path / "log"),
        exit_path=str(ended),
        submitted_at=utc_now(),
    )
    asked = platform(swarm)
    swarm.clock.sleep(3600.0)
    assert not asked.job_over(handle)
    now = utc_now()
    ended.write_text(ExitRecord(code=0, started_at=now, ended_at=now).model_dump_json())
    assert asked.job_over(handle)


# -- a node where an engine does not get ready -----------------------------------------------------


def report(swarm: ScriptedSwarm, states: dict[int, str]) -> None:
    """What the collector wrote last."""
    view = CollectorView(
        replicas=tuple(
            ReplicaReport(
                replica=one,
                state=ReplicaState(state),
                reason="broken",
                incarnation="i",
                sequence=1,
            )
            for one, state in states.items()
        ),
        taken_at=utc_now(),
        stale_after_s=15,
    )
    swarm.leave(swarm.paths.replicas, view.model_dump_json())


def leaves(swarm: ScriptedSwarm, asked: SlurmPlatform, node: str) -> str | None:
    """The engine of replica 1 does not get ready on its node; its successor, if it has one."""
    gone = swarm.task(1)
    swarm.leave(swarm.paths.elsewhere(1), f"{gone} {node}")
    swarm.cluster.end(gone, "FAILED")
    came = look_after(swarm, asked, 70.0)
    assert not swarm.paths.elsewhere(1).exists()
    return came[0][1] if came else None


@pytest.mark.parametrize(
    ("states", "moves"),
    [
        ({0: "ready", 1: "restarting"}, 3),
        ({0: "starting", 1: "restarting"}, 1),  # what is wrong may be wrong everywhere
        ({0: "ready", 1: "failed"}, 3),  # no GPU was found: there
        ({0: "starting", 1: "failed"}, 0),
        ({}, 1),
    ],
)
def test_a_replica_is_tried_on_other_nodes_but_not_on_all_of_them(
    swarm: ScriptedSwarm, states: dict[int, str], moves: int
) -> None:
    asked = platform(swarm)
    report(swarm, states)
    nodes = ["n1", "n2", "n3", "n4"][: moves + 1]
    came = [leaves(swarm, asked, node) for node in nodes]
    assert [one is not None for one in came] == [True] * moves + [False]
    for number, one in enumerate(came[:-1], 1):
        assert swarm.cluster.jobs[str(one)].exclude == tuple(nodes[:number])
    if moves:
        first, *_ = left_out(swarm.paths)
        assert (first.node, first.replica) == ("n1", 1)
        assert ("broken" if states else "did not get ready: see ") in first.reason
    assert look_after(swarm, asked, HOUR_S, every_s=20.0) == []  # it has failed for good


def test_the_node_is_left_out_by_others_too_for_an_hour(launch: Launch) -> None:
    swarm = launch(requeue=False, exclude_nodes="n8,n9")
    asked = platform(swarm)
    report(swarm, {0: "ready", 1: "restarting"})
    assert leaves(swarm, asked, "n2")
    swarm.cluster.end(swarm.task(0), "NODE_FAIL")
    look_after(swarm, asked, 60.0)
    assert swarm.cluster.jobs[swarm.task(0)].exclude == ("n8,n9", "n2")
    swarm.clock.sleep(HOUR_S)
    swarm.cluster.end(swarm.task(0), "NODE_FAIL")
    look_after(swarm, asked, 60.0)
    assert swarm.cluster.jobs[swarm.task(0)].exclude == ("n8,n9",)
    assert left_out(swarm.paths) == ()


def test_a_successor_that_waits_for_an_hour_may_start_there_again(launch: Launch) -> None:
    swarm = launch(exclude_nodes="n9")
    asked = platform(swarm)
    report(swarm, {0: "ready", 1: "restarting"})
    swarm.cluster.room = False
    successor = leaves(swarm, asked, "n2")
    look_after(swarm, asked, HOUR_S - 200, every_s=20.0)
    assert swarm.cluster.jobs[str(successor)].exclude == ("n9", "n2")
    look_after(swarm, asked, 300.0, every_s=20.0)
    assert swarm.cluster.jobs[str(successor)].exclude == ("n9",)


def test_where_no_node_would_be_left_all_are_allowed(swarm: ScriptedSwarm) -> None:
    asked = platform(swarm)
    report(swarm, {0: "ready", 1: "restarting"})
    for node in ("n1", "n2", "n3"):
        LeftOutNodes(swarm.paths, swarm.clock).leave_out(node, 0, f"9{node}", "broken")
    successor = leaves(swarm, asked, "n4")
    assert swarm.cluster.jobs[str(successor)].exclude == ()


def test_a_word_of_a_task_that_was_replaced_since_is_not_heeded(swarm: ScriptedSwarm) -> None:
    swarm.leave(swarm.paths.elsewhere(1), "9_1 n2")
    swarm.cluster.end(swarm.task(1), "FAILED")
    assert look_after(swarm, platform(swarm), 100.0) == []
    assert left_out(swarm.paths) == ()


def test_a_task_that_never_began_on_its_node_is_tried_elsewhere_while_others_serve(
    launch: Launch,
) -> None:
    """No file system, no Python: nothing is written, and Slurm says that it failed."""
    swarm = launch()
    asked = platform(swarm)
    report(swarm, {0: "ready"})
    first = swarm.task(1)
    swarm.leave(swarm.paths.at_work(1), "9_1")  # another swarm of that name
    swarm.cluster.end(first, "FAILED")
    [(seconds, successor)] = look_after(swarm, asked, 70.0)
    assert seconds == 20.0
    assert swarm.cluster.jobs[successor].exclude == ("n1",)
    [left] = left_out(swarm.paths)
    assert (left.node, left.replica) == ("n1", 1)
    assert "the task did not start: see " in left.reason
    swarm.leave(swarm.paths.at_work(1), f"{successor} ended")  # its engine failed, as it says
    swarm.cluster.end(successor, "FAILED")
    assert look_after(swarm, asked, 100.0) == []


def test_while_none_serves_it_has_failed_and_is_given_up_once(swarm: ScriptedSwarm) -> None:
    asked = platform(swarm)
    swarm.cluster.end(swarm.task(1), "FAILED")
    given_up = []
    for _ in range(50):
        given_up += asked.replace_lost(range(2))
        swarm.clock.sleep(2.0)
    assert given_up == [1]
    report(swarm, {0: "ready"})  # too late
    assert look_after(swarm, asked, 100.0) == []
