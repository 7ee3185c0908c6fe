"""How a swarm's jobs are ended, and that nothing is left: in virtual time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from domyn_swarm.backends.slurm.ending import Ending
from domyn_swarm.errors import PlatformError, PlatformUnavailable
from slurm.scripted_swarm import TAG, ScriptedSwarm


def ending(swarm: ScriptedSwarm, known: Mapping[str, Sequence[str]] | None = None) -> Ending:
    return Ending(swarm.cluster.process(), TAG, known or {}, swarm.clock)


def submit_job(swarm: ScriptedSwarm) -> str:
    script = swarm.paths.scripts / "job.sh"
    script.write_text(f"#SBATCH --comment=domyn-swarm/{TAG}/job/j\n#SBATCH --no-requeue\n")
    job = swarm.cluster.process().submit(script)
    swarm.clock.until(lambda: swarm.cluster.live()[job] == "RUNNING")
    return job


def took_s(swarm: ScriptedSwarm, *kinds: str) -> float:
    began = swarm.clock.monotonic()
    ending(swarm).end(*kinds)
    return swarm.clock.monotonic() - began


def test_nothing_is_left_whatever_state_it_was_in(swarm: ScriptedSwarm) -> None:
    swarm.cluster.room = False
    swarm.cluster.lose(swarm.task(0))
    job = submit_job_that_waits(swarm)
    assert took_s(swarm, "job", "replica", "endpoint") < 10
    assert swarm.cluster.live() == {}
    assert swarm.cluster.jobs[job].state == "CANCELLED"
    assert took_s(swarm, "job", "replica", "endpoint") == 0  # idempotent


def submit_job_that_waits(swarm: ScriptedSwarm) -> str:
    script = swarm.paths.scripts / "job.sh"
    script.write_text(f"#SBATCH --comment=domyn-swarm/{TAG}/job/j\n")
    return swarm.cluster.process().submit(script)


def test_replicas_end_before_the_endpoint_which_they_report_to(swarm: ScriptedSwarm) -> None:
    order: list[str] = []
    replicas = {swarm.task(0), swarm.task(1)}
    endpoint = swarm.endpoint

    def note() -> None:
        live = swarm.cluster.live()
        if endpoint not in live or live[endpoint] != "RUNNING":
            order.append("endpoint" if replicas & live.keys() else "replicas first")
        else:
            swarm.clock.after(0.25, note)

    note()
    ending(swarm).end("job", "replica", "endpoint")
    assert order == ["replicas first"]


@pytest.mark.parametrize(("obeys_s", "at_least_s", "at_most_s"), [(4, 4, 8), (None, 30, 36)])
def test_a_job_has_half_a_minute_to_write_down_what_it_did(
    swarm: ScriptedSwarm, obeys_s: float | None, at_least_s: float, at_most_s: float
) -> None:
    job = submit_job(swarm)

    def obey(told: str, signal: str) -> None:
        if obeys_s is not None and (told, signal) == (job, "TERM"):
            swarm.clock.after(obeys_s, lambda: swarm.cluster.end(job, "COMPLETED"))

    swarm.cluster.on_signal = obey
    assert at_least_s <= took_s(swarm, "job") <= at_most_s
    assert swarm.cluster.jobs[job].state == ("CANCELLED" if obeys_s is None else "COMPLETED")
    assert swarm.cluster.signals == [(job, "TERM")]
    assert swarm.live(swarm.task(0))


@pytest.mark.parametrize(("kill_wait_s", "ends"), [(30, True), (85, True), (120, False)])
def test_what_ignores_its_end_is_waited_for_and_then_named(
    swarm: ScriptedSwarm, kill_wait_s: float, ends: bool
) -> None:
    replica = swarm.task(1)
    swarm.cluster.stubborn.add(replica)
    swarm.cluster.kill_wait_s = kill_wait_s
    if ends:
        assert kill_wait_s <= took_s(swarm, "replica", "endpoint") <= kill_wait_s + 5
        assert swarm.cluster.live() == {}
        return
    with pytest.raises(PlatformError, match=f"still has jobs of the swarm: {replica}") as failed:
        ending(swarm).end("replica", "endpoint")
    assert "domyn-swarm down" in str(failed.value.hint)
    assert swarm.live(swarm.endpoint)  # it serves yet
    swarm.clock.sleep(60.0)
    ending(swarm).end("replica", "endpoint")
    assert swarm.cluster.live() == {}


def test_what_begins_since_the_last_look_is_ended(swarm: ScriptedSwarm) -> None:
    slurm = swarm.cluster.process()
    for _ in range(10):  # rarer by now
        slurm.queue()
        swarm.clock.sleep(15.0)
    slurm.queue()
    job = submit_job(swarm)  # by another process
    assert len(slurm.queue()) == 3  # which this one has not seen
    Ending(slurm, TAG, {}, swarm.clock).end("job", "replica", "endpoint")
    assert swarm.cluster.live() == {}
    assert swarm.cluster.signals == [(job, "TERM")]  # it had its time, too


def test_what_begins_while_it_ends_is_ended(swarm: ScriptedSwarm) -> None:
    """As a successor that the endpoint program submits, or a task."""
    swarm.cluster.stubborn.update(swarm.task(group) for group in range(2))
    other = swarm.cluster.process()
    swarm.clock.after(5.0, lambda: other.submit(swarm.paths.replica_script, array=[1]))
    swarm.clock.after(32.0, lambda: other.submit(swarm.paths.endpoint_script))
    ending(swarm).end("replica", "endpoint", "replica", "endpoint")
    assert swarm.cluster.live() == {}


def test_what_goes_back_into_the_queue_as_it_is_told_to_end_is_ended(swarm: ScriptedSwarm) -> None:
    """Its time was up: it asked for its way back, and Slurm gives it even to a cancelled one."""
    for job in (swarm.task(0), swarm.endpoint):
        swarm.clock.after(0.5, lambda job=job: swarm.cluster.requeue(job))
    swarm.clock.after(2.5, lambda: swarm.cluster.requeue(swarm.task(1)))
    ending(swarm).end("replica", "endpoint", "replica", "endpoint")
    swarm.clock.sleep(600.0)
    assert swarm.cluster.live() == {}


def test_recorded_jobs_are_ended_whose_site_took_their_tag(swarm: ScriptedSwarm) -> None:
    recorded: dict[str, list[str]] = {"replica": [], "endpoint": []}
    for one in [*swarm.tagged("replica"), *swarm.tagged("endpoint")]:
        recorded[one.kind].append(one.job.id)
        swarm.cluster.jobs[one.job.id].comment = swarm.cluster.jobs[one.job.id].name = ""
    took_s(swarm, "replica", "endpoint")
    assert len(swarm.cluster.live()) == 3  # nobody knows them
    ending(swarm, recorded).end("replica", "endpoint")
    assert swarm.cluster.live() == {}


def test_jobs_in_the_endpoints_allocation_are_told_as_well(swarm: ScriptedSwarm) -> None:
    step = swarm.cluster.start_step(swarm.endpoint, "job-a")
    other = swarm.cluster.start_step(swarm.endpoint, "bash")  # a user's own shell
    swarm.cluster.on_signal = lambda told, _signal: swarm.clock.after(
        3.0, lambda: swarm.cluster.end_step(told)
    )
    assert 3 <= took_s(swarm, "job") <= 6
    assert swarm.cluster.signals == [(step, "TERM")]
    assert other in swarm.cluster.process().steps()


def test_other_swarms_are_left_alone(swarm: ScriptedSwarm) -> None:
    script = swarm.paths.scripts / "other.sh"
    script.write_text(f"#SBATCH --comment=domyn-swarm/{TAG}x/endpoint\n")
    other = swarm.cluster.process().submit(script)
    ending(swarm).end("job", "replica", "endpoint")
    assert swarm.cluster.live().keys() == {other}


def test_a_controller_that_is_away_is_reported_and_the_next_try_ends_it_all(
    swarm: ScriptedSwarm,
) -> None:
    swarm.cluster.stubborn.add(swarm.task(0))
    swarm.clock.after(10.0, lambda: swarm.cluster.away(600.0))
    with pytest.raises(PlatformUnavailable):
        ending(swarm).end("replica", "endpoint")
    swarm.clock.sleep(600.0)
    ending(swarm).end("replica", "endpoint")
    assert swarm.cluster.live() == {}
