"""When a job may begin in the endpoint's allocation, and what is said if it does not."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from domyn_swarm.backends.protocols import ComputeSpec
from domyn_swarm.backends.slurm.slurm_states import Allocation
from domyn_swarm.backends.slurm.steps import Steps, _start_srun
from domyn_swarm.errors import ConfigError, PlatformUnavailable, SubmitRejected
from domyn_swarm.paths import JobPaths, private_dir
from domyn_swarm.planning.plan import JobResources, SrunResources
from patience import until
from slurm.scripted_swarm import TAG, ScriptedSwarm


class Srun:
    """`srun` of one step: it begins after `begins_s`, runs for `runs_s`, or says why not, and ends
    unless it `waits`.
    """

    def __init__(
        self,
        swarm: ScriptedSwarm,
        *,
        begins_s: float | None = 0.0,
        runs_s: float | None = None,
        says: str = "",
        waits: bool = False,
    ) -> None:
        self._swarm = swarm
        self._begins_s, self._runs_s, self._says = begins_s, runs_s, says
        self._waits = waits
        self.started: SrunResources | None = None
        self.terminated = False
        self._code: int | None = None
        self._exit = JobPaths(swarm.paths.root)
        self.meanwhile: Callable[[], object] = lambda: None

    def start(self, resources: SrunResources, paths: JobPaths) -> Srun:
        self.started, self._exit = resources, paths
        paths.srun_log.write_text(self._says)
        if self._begins_s is None:
            self._code = 1 if self._says and not self._waits else None
        elif self._begins_s == self._runs_s:
            self._end()
        else:
            self._swarm.clock.after(self._begins_s, self._begin)
        self.meanwhile()
        return self

    def _begin(self) -> None:
        assert self.started is not None
        self._swarm.cluster.start_step(self.started.allocation, self.started.name)

    def _end(self) -> None:
        self._exit.exit.write_text("{}")
        self._code = 0

    def poll(self) -> int | None:
        return self._code

    def terminate(self) -> None:
        self.terminated = True


def a_spec(swarm: ScriptedSwarm, **resources: object) -> ComputeSpec:
    folder = private_dir(swarm.paths.job("j").root)
    return ComputeSpec(
        job_id="j",
        swarm="demo",
        tag=TAG,
        argv=(sys.executable, "-c", "pass"),
        cwd=str(folder),
        job_dir=str(folder),
        resources=JobResources.model_validate(resources),
        platform_options=swarm.plan.backend_options,
    )


def steps(swarm: ScriptedSwarm, srun: Srun) -> Steps:
    return Steps(swarm.cluster.process(), swarm.clock, srun.start)


@pytest.mark.parametrize("begins_s", [0.0, 3.0, 55.0])
def test_a_step_is_started_once_slurm_shows_it(swarm: ScriptedSwarm, begins_s: float) -> None:
    srun = Srun(swarm, begins_s=begins_s)
    swarm.cluster.start_step(swarm.endpoint, "job-another")
    began = swarm.clock.monotonic()
    assert steps(swarm, srun).start(a_spec(swarm)) == f"{swarm.endpoint}.1"
    assert begins_s <= swarm.clock.monotonic() - began <= begins_s + 2.0
    assert not srun.terminated


def test_one_that_does_not_begin_within_a_minute_is_ended(swarm: ScriptedSwarm) -> None:
    srun = Srun(swarm, begins_s=None)
    began = swarm.clock.monotonic()
    with pytest.raises(SubmitRejected, match="did not start the job") as refused:
        steps(swarm, srun).start(a_spec(swarm))
    assert 60 <= swarm.clock.monotonic() - began < 63
    assert "--placement job" in str(refused.value.hint)
    assert srun.terminated


def test_what_srun_says_is_told_at_once(swarm: ScriptedSwarm) -> None:
    srun = Srun(swarm, begins_s=None, says="srun: warning\nsrun: error: Memory is short\n")
    began = swarm.clock.monotonic()
    with pytest.raises(SubmitRejected, match="allocation: Memory is short"):
        steps(swarm, srun).start(a_spec(swarm))
    assert swarm.clock.monotonic() == began


def test_one_that_is_over_before_it_is_seen_was_started(swarm: ScriptedSwarm) -> None:
    srun = Srun(swarm, begins_s=0.0, runs_s=0.0)
    assert steps(swarm, srun).start(a_spec(swarm)) == f"{swarm.endpoint}.+"
    assert not srun.terminated


def test_none_begins_in_an_allocation_whose_time_is_up(swarm: ScriptedSwarm) -> None:
    swarm.leave(swarm.paths.endpoint_leaves, swarm.endpoint)
    srun = Srun(swarm)
    with pytest.raises(PlatformUnavailable, match="has reached its time limit") as refused:
        steps(swarm, srun).start(a_spec(swarm))
    assert "--placement job" in str(refused.value.hint)
    assert srun.started is None
    with pytest.raises(PlatformUnavailable, match="has reached its time limit"):
        steps(swarm, srun).check(a_spec(swarm))
    swarm.leave(swarm.paths.endpoint_leaves, "0")  # that of the job before
    steps(swarm, srun).check(a_spec(swarm))


@pytest.mark.parametrize("after_s", [0.0, 2.0])
def test_one_that_begins_as_the_time_is_up_is_ended(swarm: ScriptedSwarm, after_s: float) -> None:
    """Those who were warned did not know of it."""
    srun = Srun(swarm, begins_s=5.0)
    srun.meanwhile = lambda: swarm.clock.after(
        after_s, lambda: swarm.leave(swarm.paths.endpoint_leaves, swarm.endpoint)
    )
    with pytest.raises(PlatformUnavailable, match="has reached its time limit"):
        steps(swarm, srun).start(a_spec(swarm))
    assert srun.terminated


def test_it_is_the_endpoint_that_runs_and_not_one_that_ends(swarm: ScriptedSwarm) -> None:
    before = swarm.endpoint
    swarm.cluster.stubborn.add(before)
    swarm.cluster.cancel(before)
    srun = Srun(swarm)
    with pytest.raises(PlatformUnavailable, match="does not run now"):
        steps(swarm, srun).start(a_spec(swarm))
    swarm.cluster.process().submit(swarm.paths.endpoint_script)
    with pytest.raises(PlatformUnavailable, match="does not run now"):  # it waits
        steps(swarm, srun).start(a_spec(swarm))
    swarm.clock.sleep(2.0)
    assert swarm.cluster.live()[before] == "COMPLETING"
    assert swarm.endpoint != before
    assert steps(swarm, srun).start(a_spec(swarm)) == f"{swarm.endpoint}.0"


def test_a_look_at_the_endpoint_is_never_old(swarm: ScriptedSwarm) -> None:
    slurm = swarm.cluster.process()
    slurm.queue()
    swarm.cluster.end(swarm.endpoint, "FAILED")
    srun = Srun(swarm)
    with pytest.raises(PlatformUnavailable, match="does not run now"):
        Steps(slurm, swarm.clock, srun.start).start(a_spec(swarm))
    assert srun.started is None


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"cpus": 3}, "3 CPUs, but the endpoint's allocation has 2"),
        ({"memory_gb": 1.0}, "1024 MB of memory, but the endpoint's allocation has 1000"),
        ({"time_limit_s": 7200.0}, "7200 s of time, but the endpoint's allocation has 3600"),
        ({"time_limit_s": 1_080_000.0}, "asks for 1080000 s of time"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_numbers(
    swarm: ScriptedSwarm, asked: dict[str, float], said: str
) -> None:
    ends_at = datetime.fromtimestamp(swarm.clock.time() + 3600, UTC)
    swarm.cluster.allocation = Allocation(cpus=2, memory_mb=1000, ends_at=ends_at)
    srun = Srun(swarm)
    with pytest.raises(ConfigError, match=said):
        steps(swarm, srun).start(a_spec(swarm, **asked))
    assert srun.started is None
    swarm.cluster.allocation = Allocation(cpus=2, memory_mb=None, ends_at=None)
    steps(swarm, srun).check(a_spec(swarm, **{**asked, "cpus": 2}))


@pytest.mark.parametrize(
    ("asked", "cpus", "memory"),
    [
        ({}, "--cpus-per-task=2", "--mem=0"),  # all of it, which other steps share
        ({"cpus": 1}, "--cpus-per-task=1", "--mem=0"),
        ({"memory_gb": 0.5}, "--cpus-per-task=2", "--mem=512M"),
    ],
)
def test_a_step_takes_what_it_asks_for_or_shares_all_there_is(
    swarm: ScriptedSwarm, asked: dict[str, float], cpus: str, memory: str
) -> None:
    srun = Srun(swarm)
    steps(swarm, srun).start(a_spec(swarm, **asked))
    assert srun.started is not None
    assert {cpus, memory} < {*srun.started.argv()}


def test_what_keeps_a_step_waiting_is_told(swarm: ScriptedSwarm) -> None:
    says = "srun: Job 1 step creation temporarily disabled, retrying (Requested nodes are busy)"
    srun = Srun(swarm, begins_s=None, says=says, waits=True)
    with pytest.raises(SubmitRejected, match="allocation: Job 1 step creation temporarily"):
        steps(swarm, srun).start(a_spec(swarm))
    assert srun.terminated


def test_a_controller_that_is_away_is_no_reason_to_leave_a_step_running(
    swarm: ScriptedSwarm,
) -> None:
    srun = Srun(swarm, begins_s=None)
    srun.meanwhile = lambda: swarm.cluster.away(600.0)
    with pytest.raises(PlatformUnavailable):
        steps(swarm, srun).start(a_spec(swarm))
    assert srun.terminated


def test_what_srun_prints_is_for_its_user_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = JobPaths(private_dir(tmp_path / "job"))
    (tmp_path / "srun").write_text("#!/bin/sh\necho said\n")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    before = os.umask(0)
    try:
        srun = _start_srun(SrunResources(allocation="1", name="job-j", cpus=1), paths)
    finally:
        os.umask(before)
    until(lambda: srun.poll() is not None)
    assert paths.srun_log.read_text() == "said\n"
    assert paths.srun_log.stat().st_mode & 0o777 == 0o600
