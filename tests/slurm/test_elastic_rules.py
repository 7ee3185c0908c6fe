"""What an elastic swarm's endpoint program has Slurm do, on a scripted Slurm."""

from __future__ import annotations

import pytest

from domyn_swarm.backends.endpoint.platform_protocol import Placed
from domyn_swarm.backends.slurm.slurm_platform import SlurmPlatform
from domyn_swarm.errors import PlatformError, PlatformUnavailable, SubmissionUnknown
from domyn_swarm.probing import Phase
from slurm.scripted import ScriptedSlurm
from slurm.scripted_swarm import TAG, Launch, ScriptedSwarm

ELASTIC = {"min": 0, "max": 4}


def platform(swarm: ScriptedSwarm, slurm: ScriptedSlurm | None = None) -> SlurmPlatform:
    seen_by = slurm or swarm.cluster.process(30.0)
    return SlurmPlatform(swarm.paths, TAG, slurm=seen_by, clock=swarm.clock)


def observed(swarm: ScriptedSwarm) -> tuple[Phase, str]:
    handle = swarm.handle.model_copy(update={"least_replicas": 0})
    seen = swarm.serving.probe(handle)
    return seen.phase, seen.detail


def tasks(swarm: ScriptedSwarm) -> list[int]:
    return sorted(
        one.group for one in swarm.tagged("replica") if swarm.live(one.job.id) is not None
    )


def test_it_is_launched_without_a_replica_and_is_asleep(launch: Launch) -> None:
    swarm = launch(replicas=ELASTIC)
    assert list(swarm.cluster.live().values()) == ["RUNNING"]
    assert observed(swarm) == (
        Phase.READY, "asleep: its first replica starts with the first request or job",
    )  # fmt: skip
    assert platform(swarm).places() == {}
    assert swarm.serving.lost(swarm.handle) is None


def test_the_least_is_launched(launch: Launch) -> None:
    swarm = launch(replicas={"min": 2, "max": 4})
    assert tasks(swarm) == [0, 1]


def test_places_are_started_once_and_given_back(launch: Launch) -> None:
    swarm = launch(replicas=ELASTIC)
    asked = platform(swarm)
    asked.start([0, 2])
    assert asked.places().keys() == {0, 2}
    phase, detail = observed(swarm)
    assert phase is Phase.READY
    assert "a replica starts" in detail
    asked.start([0, 2])  # they wait
    swarm.clock.until(swarm.all_run)
    asked.start([0, 2])  # they run
    assert tasks(swarm) == [0, 2]
    swarm.clock.sleep(60)  # a look of who asks seldom
    places = asked.places()
    assert [places[one].runs for one in (0, 2)] == [True, True]
    # It drains, and ends.
    swarm.cluster.on_signal = lambda job, _signal: swarm.cluster.end(job, "COMPLETED")
    asked.release([2])
    assert swarm.cluster.signals == [(swarm.task(2), "TERM")]
    assert tasks(swarm) == [0]
    assert not asked.replace_lost([0])  # nobody brings back what was given back
    swarm.clock.sleep(60)
    assert tasks(swarm) == [0]
    asked.start([2])
    assert tasks(swarm) == [0, 2]


def test_what_waits_in_the_queue_is_taken_out_of_it(launch: Launch) -> None:
    swarm = launch(replicas=ELASTIC)
    asked = platform(swarm)
    asked.start([1])
    asked.release([1])
    assert asked.places() == {}
    asked.release([1])


def test_a_submission_without_an_answer_is_not_made_twice(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    swarm = launch(replicas=ELASTIC)
    slurm = swarm.cluster.process(30.0)
    asked, submits = platform(swarm, slurm), slurm.submit
    attempts: list[object] = []

    def no_answer(*args: object, **options: object) -> str:
        attempts.append(args)
        raise SubmissionUnknown("sbatch did not answer in time")

    monkeypatch.setattr(slurm, "submit", no_answer)
    with pytest.raises(SubmissionUnknown):
        asked.start([0])
    asked.start([0])
    assert len(attempts) == 1
    monkeypatch.setattr(slurm, "submit", submits)
    swarm.clock.sleep(299)
    asked.start([0])
    assert tasks(swarm) == []
    swarm.clock.sleep(2)  # it would be in the queue by now
    asked.start([0])
    assert tasks(swarm) == [0]


def test_what_shares_a_node_is_one_place(launch: Launch) -> None:
    swarm = launch(replicas={"min": 0, "max": 8}, packing="node")
    asked = platform(swarm)
    assert asked.per_place == 4
    asked.start([1])
    assert asked.places().keys() == {1}
    [task] = swarm.tagged("replica")
    assert task.replicas == range(4, 8)


def test_while_slurm_does_not_answer_nothing_is_known(launch: Launch) -> None:
    swarm = launch(replicas=ELASTIC)
    asked = platform(swarm)
    swarm.cluster.away(600)
    swarm.clock.sleep(120)
    with pytest.raises(PlatformError):
        asked.start([0])
    with pytest.raises(PlatformError):
        asked.release([0])


def test_where_jobs_do_not_show_their_swarm_nothing_is_taken_for_gone(launch: Launch) -> None:
    swarm = launch(replicas=ELASTIC)
    other = SlurmPlatform(
        swarm.paths, "another-tag", slurm=swarm.cluster.process(30.0), clock=swarm.clock
    )
    with pytest.raises(PlatformUnavailable, match="shows no job by the swarm's tag"):
        other.places()


def test_the_time_to_a_replicas_limit_is_known(launch: Launch) -> None:
    swarm = launch(replicas=ELASTIC)
    asked = platform(swarm)
    asked.start([0])
    swarm.clock.until(swarm.all_run)
    swarm.clock.sleep(60)
    assert isinstance(asked.places()[0], Placed)
    assert asked.places()[0].ends_in_s > 0
