"""What the rules rely on of Slurm: the scripted one and the real one do it alike.

So the rules themselves are tested with the scripted one, in virtual time.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from domyn_swarm.backends.slurm.commands import Slurm
from domyn_swarm.backends.slurm.ending import Scheduler
from domyn_swarm.errors import PlatformUnavailable, SubmitRejected
from patience import limit_s, until
from slurm.cluster import SlurmCluster
from slurm.scripted import ScriptedCluster
from virtual_time import FilingClock


@dataclass
class Site:
    """A Slurm, and what tests do to it."""

    slurm: Scheduler
    folder: Path
    until: Callable[[Callable[[], Any]], object]
    stop_controller: Callable[[], object]
    start_controller: Callable[[], object]
    lose_nodes: Callable[[], object]  # of all that runs
    start_step: Callable[[str, str], object]  # in a job, by a name

    def script(self, comment: str, *options: str) -> Path:
        path = self.folder / f"{comment.replace('/', '-')}.sh"
        size = ("--mem=100M", "--time=5", "--output=/dev/null", f"--comment={comment}")
        lines = [f"#SBATCH {option}" for option in (*size, *options)]
        path.write_text("\n".join(["#!/bin/bash", *lines, "sleep 600", ""]))
        return path

    def state(self, job: str) -> str | None:
        seen = self.slurm.queue(at_most_s=0.0).get(job)
        return None if seen is None else seen.state

    def running(self, *options: str) -> str:
        """A job that runs."""
        job = self.slurm.submit(self.script("runs", *options))
        self.until(lambda: self.state(job) == "RUNNING")
        return job


def scripted_site(folder: Path) -> Site:
    clock = FilingClock(folder)
    cluster = ScriptedCluster(clock)

    def lose() -> None:
        for job in cluster.live():
            cluster.lose(job)

    return Site(
        slurm=cluster.process(),
        folder=folder,
        until=clock.until,
        stop_controller=lambda: cluster.away(60.0),
        start_controller=lambda: clock.sleep(60.0),
        lose_nodes=lose,
        start_step=cluster.start_step,
    )


def real_site(folder: Path, cluster: SlurmCluster, started: ExitStack) -> Site:
    def lose() -> None:
        for node in set(cluster.run("squeue", "-h", "-t", "R", "-o", "%N").stdout.split()):
            cluster.crash_node(node)
            cluster.run("scontrol", "update", f"nodename={node}", "state=down", "reason=test")

    def start_step(job: str, name: str) -> None:
        srun = subprocess.Popen(
            ["srun", f"--jobid={job}", f"--job-name={name}", "--overlap", "sleep", "600"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        started.callback(srun.wait, limit_s())
        started.callback(srun.terminate)

    return Site(
        slurm=Slurm(),
        folder=folder,
        until=until,
        stop_controller=cluster.stop_controller,
        start_controller=cluster.start_controller,
        lose_nodes=lose,
        start_step=start_step,
    )


@pytest.fixture(params=["scripted", pytest.param("real", marks=pytest.mark.cluster)])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    if request.param == "scripted":
        yield scripted_site(tmp_path)
    else:
        with ExitStack() as started:
            yield real_site(tmp_path, request.getfixturevalue("slurm"), started)


def test_what_is_submitted_is_there_at_once_by_its_tasks_and_runs(site: Site) -> None:
    array = site.slurm.submit(site.script("an/array", "--array=0-3"), array=[0, 2])
    tasks = {f"{array}_0", f"{array}_2"}
    seen = {one: job for one, job in site.slurm.queue().items() if job.comment == "an/array"}
    assert seen.keys() == tasks
    site.until(lambda: {site.state(one) for one in tasks} == {"RUNNING"})
    later = site.slurm.submit(site.script("later"))
    assert int(later) > int(array)


def test_what_waits_is_cancelled_at_once_and_what_runs_takes_its_time(site: Site) -> None:
    waits = site.slurm.submit(site.script("waits", "--begin=now+1hour"))
    runs = site.running()
    assert site.state(waits) == "PENDING"
    site.slurm.cancel([waits, runs, "999999"])
    assert site.state(waits) == "CANCELLED"
    site.until(lambda: site.state(runs) == "CANCELLED")  # and is known yet
    assert site.slurm.jobs([waits, "999999"]).keys() == {waits}


def test_a_job_starts_on_no_node_that_is_left_out(site: Site) -> None:
    job = site.slurm.submit(site.script("x", "--exclude=n4"), exclude=["n1", "n2", "n3"])
    site.until(lambda: site.state(job) == "RUNNING")
    assert site.slurm.queue()[job].node == "n4"  # the order replaces what the script says
    assert not site.slurm.exclude(job, ["n4"])
    with pytest.raises(SubmitRejected):
        site.slurm.submit(site.script("x"), exclude=["n1", "n2", "n3", "n4"])


def test_one_that_waits_may_be_let_onto_other_nodes(site: Site) -> None:
    script = site.script("x", "--begin=now+1hour")
    array = site.slurm.submit(script, array=[2], exclude=["n1"])
    assert site.slurm.exclude(f"{array}_2", ["n2", "n3"])
    assert site.slurm.exclude(f"{array}_2", [])
    assert site.state(f"{array}_2") == "PENDING"


def test_a_signal_ends_what_waits_and_nothing_that_runs(site: Site) -> None:
    waits = site.slurm.submit(site.script("waits", "--begin=now+1hour"))
    runs = site.running()
    site.slurm.cancel([waits, runs], signal="CONT")
    assert site.state(waits) == "CANCELLED"
    assert site.slurm.queue(at_most_s=0.0)[runs].runs_on  # SIGNALING at first
    site.until(lambda: site.state(runs) == "RUNNING")


def test_a_requeued_job_goes_back_into_the_queue_under_its_number(site: Site) -> None:
    job = site.running("--requeue")
    assert site.slurm.requeue(job)
    site.until(lambda: site.state(job) == "PENDING")
    fixed = site.running("--no-requeue")
    assert not site.slurm.requeue(fixed)
    assert site.state(fixed) == "RUNNING"
    again = site.running("--requeue")
    assert site.slurm.requeue(again)
    site.slurm.cancel([job, again])  # one waits, one is on its way
    site.until(lambda: (site.state(job), site.state(again)) == ("CANCELLED", "CANCELLED"))
    assert site.slurm.requeue(again)  # even so: who asks for it must see first
    site.until(lambda: site.state(again) == "PENDING")


def test_whether_what_is_told_to_end_comes_back_is_known_at_once(site: Site) -> None:
    job = site.running("--requeue")
    end = site.slurm.own_end(job)
    assert end is not None
    assert (end.state, end.preempted, end.restarts) == ("RUNNING", False, 0)
    assert site.slurm.requeue(job)
    site.until(lambda: (end := site.slurm.own_end(job)) is not None and end.restarts == 1)
    assert site.slurm.own_end("999999") is None


def test_a_successor_waits_for_the_end_of_what_it_succeeds(site: Site) -> None:
    job = site.running()
    follows = site.slurm.submit(site.script("follows"), once_over=job)
    assert site.state(follows) == "PENDING"
    site.slurm.cancel([job])
    site.until(lambda: site.state(follows) == "RUNNING")


def test_a_lost_node_gives_back_what_may_be_requeued_and_ends_the_rest(site: Site) -> None:
    back, ended = site.running("--requeue"), site.running("--no-requeue")
    site.lose_nodes()
    site.until(lambda: (site.state(back), site.state(ended)) == ("PENDING", "NODE_FAIL"))


def test_while_the_controller_is_away_every_order_says_so_and_what_runs_goes_on(
    site: Site,
) -> None:
    job = site.running()
    script = site.script("more")
    site.stop_controller()
    orders: list[Callable[[], object]] = [
        lambda: site.slurm.queue(at_most_s=0.0),
        lambda: site.slurm.submit(script),
        lambda: site.slurm.requeue(job),
        lambda: site.slurm.cancel([job]),
    ]
    with ThreadPoolExecutor() as threads:  # each tries for seconds
        for refused in [threads.submit(order) for order in orders]:
            with pytest.raises(PlatformUnavailable):
                refused.result()
    site.start_controller()
    site.slurm.expect_change()
    assert site.state(job) == "RUNNING"


def test_a_step_is_seen_by_its_name_as_long_as_its_job_runs(site: Site) -> None:
    job = site.running()
    site.start_step(job, "job-a")
    site.until(lambda: f"{job}.0" in site.slurm.steps(at_most_s=0.0))
    assert site.slurm.steps()[f"{job}.0"].comment == "job-a"
    site.slurm.cancel([job])
    site.until(lambda: f"{job}.0" not in site.slurm.steps(at_most_s=0.0))
