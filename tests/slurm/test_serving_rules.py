"""What a swarm is said to be from what Slurm has of it, and how it is scaled: in virtual time."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from domyn_swarm.backends.endpoint.endpoint_spec import configured_replicas
from domyn_swarm.backends.endpoint.view import EndpointAddress
from domyn_swarm.backends.slurm.prospects import Prospects
from domyn_swarm.backends.slurm.slurm_platform import SlurmPlatform
from domyn_swarm.backends.slurm.slurm_serving import SlurmServing
from domyn_swarm.errors import (
    PlatformError,
    PlatformUnavailable,
    StateError,
    SubmissionUnknown,
    SubmitRejected,
)
from domyn_swarm.paths import write_private
from domyn_swarm.probing import Phase
from slurm.scripted import ScriptedCluster, ScriptedSlurm
from slurm.scripted_swarm import TAG, Launch, ScriptedSwarm


def serving(swarm: ScriptedSwarm) -> SlurmServing:
    return SlurmServing(swarm.cluster.process(), swarm.clock)


def say(swarm: ScriptedSwarm, states: dict[str, str], reason: str = "Resources") -> None:
    for place, state in states.items():
        one = swarm.endpoint if place == "endpoint" else swarm.task(int(place))
        swarm.cluster.room = False
        if state != "RUNNING":
            swarm.cluster.end(one, state)
            swarm.cluster.jobs[one].reason = reason


@pytest.mark.parametrize(
    ("states", "phase", "said"),
    [
        ({}, Phase.READY, "2 replicas run"),
        ({"1": "PENDING"}, Phase.READY, "1 replica runs, 1 job waits (Resources)"),
        ({"1": "FAILED"}, Phase.READY, "1 replica runs"),
        ({"0": "PENDING", "1": "PENDING"}, Phase.QUEUED, "2 jobs wait (Resources)"),
        (
            {"endpoint": "PENDING"},
            Phase.QUEUED,
            "2 replicas run and cannot serve: of the endpoint 1 job waits (Resources)",
        ),
        ({"endpoint": "CANCELLED"}, Phase.FAILED, "the endpoint's job was cancelled"),
        ({"endpoint": "NODE_FAIL"}, Phase.FAILED, "the endpoint's job lost its node"),
        (
            {"0": "CANCELLED", "1": "CANCELLED"},
            Phase.FAILED,
            "every replica has ended: one was cancelled",
        ),
        (
            {"0": "FAILED", "1": "OUT_OF_MEMORY"},
            Phase.FAILED,
            "every replica has ended: one ran out of memory",
        ),
        (
            {"endpoint": "CANCELLED", "0": "COMPLETED", "1": "FAILED"},
            Phase.STOPPED,
            "none of its jobs is in the queue",
        ),
    ],
)
def test_what_its_jobs_are_together(
    swarm: ScriptedSwarm, states: dict[str, str], phase: Phase, said: str
) -> None:
    say(swarm, states)
    seen = serving(swarm).probe(swarm.handle)
    assert (seen.phase, seen.detail) == (phase, said)


@pytest.mark.parametrize(
    ("states", "phase", "said"),
    [
        ({"endpoint": "NODE_FAIL"}, Phase.QUEUED, "a replica submits it anew"),
        ({"endpoint": "FAILED"}, Phase.QUEUED, "a replica submits it anew"),
        ({"endpoint": "CANCELLED"}, Phase.FAILED, "the endpoint's job was cancelled"),
        ({"endpoint": "FAILED", "0": "PENDING", "1": "PENDING"}, Phase.FAILED, "ended (FAILED)"),
    ],
)
def test_an_endpoint_that_replicas_submit_anew_has_not_failed(
    swarm: ScriptedSwarm, states: dict[str, str], phase: Phase, said: str
) -> None:
    write_private(swarm.paths.endpoint, EndpointAddress(url="http://n1:8000").model_dump_json())
    say(swarm, states)
    seen = serving(swarm).probe(swarm.handle)
    assert seen.phase is phase
    assert said in seen.detail


@pytest.mark.parametrize(
    ("reason", "phase"),
    [
        ("Priority", Phase.QUEUED),
        ("QOSMaxGRESPerUser", Phase.QUEUED),
        ("PartitionTimeLimit", Phase.FAILED),
        ("BadConstraints", Phase.FAILED),
        ("QOSMaxGRESPerJob", Phase.FAILED),
        ("QOSMaxWallDurationPerJobLimit", Phase.FAILED),
        ("AssocMaxCpuPerJobLimit", Phase.FAILED),
        ("QOSMinGRES", Phase.FAILED),
        ("MaxMemPerLimit", Phase.FAILED),
        ("ReservationInvalid", Phase.FAILED),
        ("launch failed requeued held", Phase.FAILED),
        ("launch_failed_requeued_held", Phase.FAILED),
        ("DependencyNeverSatisfied", Phase.FAILED),
        ("Job's account not permitted to use this partition (b allows c not d)", Phase.FAILED),
        ("Job's_QOS_not_permitted_to_use_this_partition_(b_denies_d)", Phase.FAILED),
        ("JobHeldUser", Phase.QUEUED),  # somebody did so on purpose, and may let it go
        ("JobHeldAdmin", Phase.QUEUED),
        ("job requeued in held state", Phase.QUEUED),
        ("job_requeued_in_held_state", Phase.QUEUED),
        ("QOSGrpGRES", Phase.QUEUED),
        ("MaxGRESPerAccount", Phase.QUEUED),
        ("AReasonOfTheFuture", Phase.QUEUED),
    ],
)
def test_what_waits_for_what_will_not_come_has_failed(
    swarm: ScriptedSwarm, reason: str, phase: Phase
) -> None:
    say(swarm, {"0": "PENDING", "1": "PENDING"}, reason)
    seen = serving(swarm).probe(swarm.handle)
    assert seen.phase is phase
    assert reason in seen.detail
    assert ("scontrol release" in seen.detail) is ("held" in reason.lower())
    parts = serving(swarm).probe_parts(swarm.handle)
    assert {parts[swarm.task(index)].phase for index in range(2)} == {phase}


def test_one_of_several_that_slurm_cannot_start_does_not_end_the_others(
    swarm: ScriptedSwarm,
) -> None:
    held = swarm.task(0)
    say(swarm, {"0": "PENDING", "1": "PENDING"})
    swarm.cluster.jobs[held].reason = "launch failed requeued held"
    seen = serving(swarm).probe(swarm.handle)
    assert seen.phase is Phase.QUEUED
    assert f"`scontrol release {held}`" in seen.detail
    assert serving(swarm).probe_parts(swarm.handle)[held].phase is Phase.FAILED


PER_USER = "QOSMaxJobsPerUserLimit"


def test_a_swarm_that_waits_for_itself_alone_has_failed(swarm: ScriptedSwarm) -> None:
    """One job at a time is all that its user may have, and that is its endpoint."""
    say(swarm, {"0": "PENDING", "1": "PENDING"}, PER_USER)
    asked = serving(swarm)
    began = swarm.clock.monotonic()
    while (seen := asked.probe(swarm.handle)).phase is Phase.QUEUED:
        swarm.clock.sleep(1.0)
    assert seen.phase is Phase.FAILED
    assert "backend.endpoint.qos" in seen.detail
    assert 60 <= swarm.clock.monotonic() - began <= 62


def test_a_swarm_that_waits_for_other_jobs_of_its_user_goes_on_waiting(
    swarm: ScriptedSwarm,
) -> None:
    script = swarm.paths.root / "other.sh"
    script.write_text("#!/bin/sh\n")
    other = swarm.cluster.process().submit(script)
    swarm.clock.until(swarm.all_run)
    say(swarm, {"0": "PENDING", "1": "PENDING"}, PER_USER)
    asked = serving(swarm)
    for _ in range(300):
        assert asked.probe(swarm.handle).phase is Phase.QUEUED
        swarm.clock.sleep(1.0)
    swarm.cluster.end(other, "COMPLETED")
    for _ in range(3):  # Slurm has not looked again why they wait
        assert asked.probe(swarm.handle).phase is Phase.QUEUED
        swarm.clock.sleep(10.0)
    for index in range(2):
        swarm.cluster.jobs[swarm.task(index)].reason = "Priority"
    swarm.clock.sleep(100.0)
    assert asked.probe(swarm.handle).phase is Phase.QUEUED


def test_a_swarm_that_waits_for_others_of_its_account_goes_on_waiting(
    swarm: ScriptedSwarm,
) -> None:
    say(swarm, {"0": "PENDING", "1": "PENDING"}, "MaxJobsPerAccount")
    asked = serving(swarm)
    for _ in range(300):
        assert asked.probe(swarm.handle).phase is Phase.QUEUED
        swarm.clock.sleep(1.0)


@pytest.mark.parametrize("reason", ["QOSGrpGRES", "MaxGRESPerAccount", "MaxCpuRunMinsPerUser"])
@pytest.mark.parametrize("never", [True, False])
def test_a_group_has_what_it_waits_for_or_never_will(
    swarm: ScriptedSwarm, reason: str, *, never: bool
) -> None:
    asked: list[float] = []

    def exceeded(_plan: object) -> str | None:
        asked.append(swarm.clock.monotonic())
        return "the QoS nogpus gives a job 1 GPU at most" if never else None

    say(swarm, {"0": "PENDING", "1": "PENDING"}, reason)
    write_private(swarm.paths.endpoint, EndpointAddress(url="http://n1:1").model_dump_json())
    cluster = swarm.cluster.process()
    prospects = Prospects(cluster, swarm.clock, exceeded)
    jobs = {part: cluster.queue()[part.platform_id] for part in swarm.handle.parts}
    for _ in range(3600):
        seen = prospects.of(swarm.handle, jobs)
        if seen.phase.terminal:
            break
        swarm.clock.sleep(1.0)
    assert (seen.phase is Phase.FAILED) is never
    assert ("nogpus" in seen.detail) is never
    assert len(asked) <= 6  # the site is asked for its limits, which costs it something


def test_no_replica_is_scheduled_before_its_endpoint_has_started(launch: Launch) -> None:
    swarm = launch()
    swarm.serving.delete(swarm.handle)
    swarm.cluster.room = False
    handle = swarm.launched_by(swarm.serving)
    swarm.cluster.jobs[swarm.endpoint].held = True
    swarm.cluster.room = True
    swarm.clock.sleep(3600.0)
    assert set(swarm.cluster.live().values()) == {"PENDING"}
    said = serving(swarm).probe(handle).detail
    assert "replicas start after the endpoint" in said
    swarm.cluster.jobs[swarm.endpoint].held = False
    swarm.clock.until(swarm.all_run)


def test_a_dependency_of_the_sites_own_is_the_one_that_holds(launch: Launch) -> None:
    swarm = launch(preamble=["#SBATCH --dependency=singleton"])
    assert {swarm.cluster.jobs[swarm.task(index)].after for index in range(2)} == {None}


def test_jobs_that_could_not_write_a_line_say_that_their_nodes_see_no_home(
    swarm: ScriptedSwarm,
) -> None:
    for log in (swarm.paths.endpoint_log, *swarm.paths.slurm_logs.iterdir()):
        log.unlink()
    say(swarm, {"endpoint": "FAILED", "0": "FAILED", "1": "FAILED"})
    seen = serving(swarm).probe(swarm.handle)
    assert seen.phase is Phase.STOPPED
    assert str(swarm.paths.endpoint_log.parent) in seen.detail
    assert "home_directory" in seen.detail


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("", "waits in the queue (BeginTime)"),
        ("DUE TO PREEMPTION ***", "was preempted, waits in the queue (BeginTime)"),
        ("DUE TO JOB REQUEUE ***", "was requeued, waits in the queue (BeginTime)"),
        ("DUE TO PREEMPTION ***\nreplica 1 on n2: watchdog.py", "waits in the queue (BeginTime)"),
    ],
)
def test_a_replica_that_waits_again_says_what_ended_its_last_run(
    swarm: ScriptedSwarm, log: str, said: str
) -> None:
    line = "INFO replica 1 on n1: watchdog.py\nslurmstepd: error: *** JOB 9 ON n1 CANCELLED AT x "
    (swarm.paths.slurm_logs / "replica-1.log").write_text(line + log)
    say(swarm, {"1": "PENDING"}, "BeginTime")
    parts = serving(swarm).probe_parts(swarm.handle)
    assert parts[swarm.task(1)].detail == said


def test_what_cannot_be_asked_is_unknown_and_known_again_later(swarm: ScriptedSwarm) -> None:
    asked = serving(swarm)
    swarm.cluster.away(600.0)
    assert asked.probe(swarm.handle).phase is Phase.UNKNOWN
    assert {one.phase for one in asked.probe_parts(swarm.handle).values()} == {Phase.UNKNOWN}
    swarm.clock.sleep(600.0)
    assert asked.probe(swarm.handle).phase is Phase.READY


def test_an_endpoint_that_runs_and_never_listens_has_failed(launch: Launch) -> None:
    swarm = launch(endpoint={"mem": "1000M", "cpus_per_task": 1, "timeout_s": 120})
    asked = serving(swarm)
    began = swarm.clock.monotonic()
    while (seen := asked.probe(swarm.handle)).phase is Phase.READY:
        swarm.clock.sleep(1.0)
    assert seen.detail == "the endpoint's job has run for 120 s and does not listen"
    assert swarm.clock.monotonic() - began == 120


def test_its_time_counts_from_when_it_runs_and_for_each_job_anew(launch: Launch) -> None:
    swarm = launch(endpoint={"mem": "1000M", "cpus_per_task": 1, "timeout_s": 120})
    asked = serving(swarm)
    for _ in range(3):
        asked.probe(swarm.handle)
        swarm.clock.sleep(100.0)
        assert asked.probe(swarm.handle).phase is Phase.READY
        swarm.cluster.room = False
        swarm.cluster.end(swarm.endpoint, "NODE_FAIL")
        swarm.cluster.process().submit(swarm.paths.endpoint_script)
        asked.probe(swarm.handle)
        swarm.clock.sleep(3600.0)
        assert asked.probe(swarm.handle).phase is Phase.QUEUED
        swarm.cluster.room = True
        swarm.clock.sleep(20.0)
    address = EndpointAddress(url="http://n1:1")
    write_private(swarm.paths.endpoint, address.model_dump_json())
    swarm.clock.sleep(600.0)
    assert asked.probe(swarm.handle).phase is Phase.READY  # it listens


@pytest.mark.parametrize(
    ("state", "expired", "phase"),
    [
        ("RUNNING", False, Phase.READY),
        ("PENDING", False, Phase.QUEUED),
        ("NODE_FAIL", False, Phase.QUEUED),  # a successor is to come
        ("PREEMPTED", False, Phase.QUEUED),
        ("COMPLETED", True, Phase.QUEUED),
        ("TIMEOUT", True, Phase.QUEUED),
        ("TIMEOUT", False, Phase.QUEUED),  # it had no time to leave word
        ("COMPLETED", False, Phase.STOPPED),
        ("CANCELLED", False, Phase.STOPPED),
        ("FAILED", False, Phase.FAILED),
    ],
)
def test_a_replica_whose_successor_is_to_come_waits(
    swarm: ScriptedSwarm, state: str, expired: bool, phase: Phase
) -> None:
    say(swarm, {"1": state})
    if expired:
        swarm.leave(swarm.paths.expired(1), swarm.task(1))
    parts = serving(swarm).probe_parts(swarm.handle)
    assert parts[swarm.task(1)].phase is phase
    assert parts[swarm.task(0)].phase is Phase.READY


@pytest.mark.parametrize("tenths", range(0, 20, 3))
def test_a_successor_that_was_just_submitted_is_never_missed(launch: Launch, tenths: int) -> None:
    """The word of a time limit is taken away then, and the last look may be older."""
    swarm = launch(requeue=False)
    lost = swarm.task(0)
    asked = serving(swarm)
    endpoint = SlurmPlatform(swarm.paths, TAG, slurm=swarm.cluster.process(30.0), clock=swarm.clock)
    asked.probe_parts(swarm.handle)
    swarm.leave(swarm.paths.expired(0), lost)
    swarm.cluster.end(lost, "COMPLETED")
    swarm.clock.sleep(5.0)
    phases = []
    for tenth in range(40):
        phases.append(asked.probe_parts(swarm.handle)[lost].phase)
        if tenth == tenths:
            endpoint.replace_lost(range(2))
        swarm.clock.sleep(0.1)
    assert {*phases[:-1]} <= {Phase.QUEUED, Phase.READY}
    assert phases[-1] is Phase.READY


def test_what_has_failed_for_good_is_not_asked_about_each_time(swarm: ScriptedSwarm) -> None:
    say(swarm, {"1": "FAILED"})
    asked = serving(swarm)
    swarm.cluster.looks.clear()
    for _ in range(600):
        assert asked.probe_parts(swarm.handle)[swarm.task(1)].phase is Phase.FAILED
        swarm.clock.sleep(0.3)
    assert len(swarm.cluster.looks) < 25  # in three minutes


def test_a_successor_stands_in_the_place_of_what_it_replaces(swarm: ScriptedSwarm) -> None:
    lost = swarm.task(1)
    swarm.cluster.end(lost, "NODE_FAIL")
    swarm.cluster.process().submit(swarm.paths.replica_script, array=[1])
    swarm.clock.sleep(5.0)
    asked = serving(swarm)
    assert asked.probe_parts(swarm.handle)[lost].phase is Phase.READY
    [found] = asked.find(swarm.handle)
    assert {part.platform_id for part in found.parts} == {
        *(swarm.endpoint, swarm.task(0), swarm.task(1)),
    }


def test_a_swarm_that_slurm_forgot_has_ended(swarm: ScriptedSwarm) -> None:
    asked = serving(swarm)
    asked.delete(swarm.handle)
    swarm.clock.sleep(swarm.cluster.min_job_age_s + 1)
    assert asked.find(swarm.handle) == []
    assert asked.probe(swarm.handle).phase is Phase.STOPPED
    assert {one.phase for one in asked.probe_parts(swarm.handle).values()} == {Phase.STOPPED}


def scale(swarm: ScriptedSwarm, asked: SlurmServing, replicas: int) -> None:
    layout = swarm.plan.layout.model_copy(update={"replicas": replicas})
    swarm.plan = swarm.plan.model_copy(update={"layout": layout})
    asked.scale(swarm.plan, swarm.ctx, swarm.handle, lambda *_parts: None)


def test_it_grows_by_what_is_missing_and_shrinks_by_what_is_too_much(
    swarm: ScriptedSwarm,
) -> None:
    asked = serving(swarm)
    swarm.cluster.end(swarm.task(0), "FAILED")
    scale(swarm, asked, 4)
    swarm.clock.sleep(5.0)
    groups = sorted(one.group for one in swarm.tagged("replica") if not one.job.over)
    assert groups == [0, 1, 2, 3]
    scale(swarm, asked, 1)
    assert sorted(swarm.cluster.signals) == [(swarm.task(n), "TERM") for n in (1, 2, 3)]


class Refusing(ScriptedSlurm):
    """Its site takes no more tasks."""

    def submit(self, *_script: object, **_more: object) -> str:
        raise SubmitRejected("Slurm refused replicas.sh: Invalid job array specification")


def test_a_size_that_slurm_refuses_leaves_all_as_it_was(swarm: ScriptedSwarm) -> None:
    before = swarm.paths.endpoint_spec.read_text()
    asked = SlurmServing(Refusing(swarm.cluster), swarm.clock)
    with pytest.raises(SubmitRejected) as refused:
        scale(swarm, asked, 8)
    assert "MaxArraySize" in refused.value.hint
    assert swarm.paths.endpoint_spec.read_text() == before


def test_it_ends_a_successor_that_it_has_not_seen_yet(swarm: ScriptedSwarm) -> None:
    """The endpoint program has replaced a task while this process' look is old."""
    asked = serving(swarm)
    for _ in range(10):
        asked.probe(swarm.handle)
        swarm.clock.sleep(15.0)
    swarm.cluster.end(swarm.task(1), "NODE_FAIL")
    swarm.cluster.process().submit(swarm.paths.replica_script, array=[1])
    swarm.clock.sleep(2.0)
    scale(swarm, asked, 1)
    assert swarm.cluster.signals == [(swarm.task(1), "TERM")]


@pytest.mark.parametrize("replicas", [4, 1])
@pytest.mark.parametrize(
    ("error", "follows"),
    [
        (SubmitRejected("invalid qos"), "before"),
        (PlatformUnavailable("slurmctld does not answer"), "before"),
        (SubmissionUnknown("socket timed out"), "after"),
    ],
)
def test_scaling_that_breaks_off_changes_nothing_unless_slurm_may_have_taken_it(
    swarm: ScriptedSwarm, replicas: int, error: PlatformError, follows: str
) -> None:
    class Refusing(ScriptedSlurm):
        def submit(self, *_: object, **__: object) -> str:
            raise error

        def cancel(self, ids: Sequence[str], **_: object) -> None:
            if ids:
                raise error

    before = configured_replicas(swarm.paths)
    with pytest.raises(type(error)):
        scale(swarm, SlurmServing(Refusing(swarm.cluster), swarm.clock), replicas)
    assert configured_replicas(swarm.paths) == (before if follows == "before" else replicas)
    scale(swarm, serving(swarm), replicas)
    assert configured_replicas(swarm.paths) == replicas


def test_what_drains_yet_is_not_scaled_into(swarm: ScriptedSwarm) -> None:
    asked = serving(swarm)
    scale(swarm, asked, 1)
    with pytest.raises(StateError, match="have not ended yet"):
        scale(swarm, asked, 2)
    swarm.cluster.end(swarm.task(1), "COMPLETED")
    scale(swarm, asked, 2)
    assert swarm.live(swarm.task(1))


def test_whole_nodes_are_filled_and_scaled_as_such(
    launch: Launch, scripted: ScriptedCluster
) -> None:
    scripted.whole_nodes.add("main")
    packed = launch(replicas=4, gpus_per_replica=2)
    assert len([one for one in packed.tagged("replica") if not one.job.over]) == 2
    with pytest.raises(StateError, match="holds 2 replicas: 4 cannot become 3"):
        scale(packed, serving(packed), 3)
    scale(packed, serving(packed), 6)
    assert len([one for one in packed.tagged("replica") if not one.job.over]) == 3


# -- dead for good ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("states", "why"),
    [
        ({}, None),
        ({"endpoint": "PENDING"}, None),
        ({"endpoint": "NODE_FAIL"}, None),  # a replica submits its successor
        ({"endpoint": "FAILED"}, None),
        ({"endpoint": "NODE_FAIL", "0": "PENDING", "1": "FAILED"}, None),
        ({"endpoint": "CANCELLED"}, "the endpoint's job was cancelled"),
        ({"endpoint": "COMPLETED"}, "the endpoint's job ended (COMPLETED)"),
        (
            {"endpoint": "NODE_FAIL", "0": "FAILED", "1": "FAILED"},
            "the endpoint's job lost its node",
        ),
        ({"0": "FAILED", "1": "FAILED"}, None),  # `scale` has them run again
    ],
)
def test_whether_anybody_will_answer_again(
    swarm: ScriptedSwarm, states: dict[str, str], why: str | None
) -> None:
    say(swarm, states)
    assert serving(swarm).lost(swarm.handle) == why
    workers = swarm.handle.model_copy(update={"parts": ()})  # who knows the tag alone
    assert serving(swarm).lost(workers) == why


def test_an_endpoint_that_failed_too_often_does_not_answer_again(swarm: ScriptedSwarm) -> None:
    for number in range(3):
        assert serving(swarm).lost(swarm.handle) is None
        swarm.leave(swarm.paths.endpoint_successor(f"{number}"), "FAILED")
    swarm.cluster.end(swarm.endpoint, "FAILED")
    assert serving(swarm).lost(swarm.handle) == "the endpoint's job ended (FAILED)"


def test_an_endpoint_that_slurm_forgot_is_brought_back_by_nobody(swarm: ScriptedSwarm) -> None:
    swarm.cluster.end(swarm.endpoint, "NODE_FAIL")
    swarm.clock.sleep(swarm.cluster.min_job_age_s + 1)
    assert serving(swarm).lost(swarm.handle) == "the endpoint's job is not known any more"


def test_its_successor_is_seen_by_who_looked_a_moment_before(swarm: ScriptedSwarm) -> None:
    asked = serving(swarm)
    swarm.cluster.end(swarm.endpoint, "CANCELLED")
    asked.probe(swarm.handle)
    swarm.cluster.process().submit(swarm.paths.endpoint_script)
    assert asked.lost(swarm.handle) is None


def test_who_cannot_ask_knows_of_no_end(swarm: ScriptedSwarm) -> None:
    swarm.cluster.end(swarm.endpoint, "CANCELLED")
    swarm.cluster.away(600.0)
    assert serving(swarm).lost(swarm.handle) is None


def test_all_replicas_of_an_array_are_recorded_at_once(launch: Launch) -> None:
    swarm = launch(replicas=50)
    recorded: list[int] = []
    swarm.launched_by(swarm.serving, lambda *parts: recorded.append(len(parts)))
    assert recorded == [1, 50]


def test_an_endpoint_that_is_dead_for_good_is_not_asked_about_each_time(
    swarm: ScriptedSwarm,
) -> None:
    swarm.cluster.end(swarm.endpoint, "CANCELLED")
    asked = serving(swarm)
    swarm.cluster.looks.clear()
    for _ in range(600):
        assert asked.lost(swarm.handle) is not None
        swarm.clock.sleep(0.3)
    assert len(swarm.cluster.looks) < 25  # in three minutes
