"""Jobs as steps in the allocation of the swarm's endpoint: they start at once and share it.

A step lives as long as the `srun` that started it: in its own session on the submitting machine, so
that it outlives the command, but not the endpoint's job.
"""

from __future__ import annotations

import math
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from domyn_swarm.backends.protocols import ComputeSpec
from domyn_swarm.backends.slurm.ending import Scheduler
from domyn_swarm.backends.slurm.invocation import submitting_environment
from domyn_swarm.backends.slurm.job_runs import next_script
from domyn_swarm.backends.slurm.printed import refusal
from domyn_swarm.backends.slurm.queue import job_name, tagged
from domyn_swarm.backends.slurm.script_contents import job_script, step_script
from domyn_swarm.errors import ConfigError, PlatformUnavailable, SubmitRejected
from domyn_swarm.paths import JobPaths, SwarmPaths, private_file, write_private
from domyn_swarm.planning.plan import SrunResources
from domyn_swarm.probing import Clock

_START_S = 60.0
_FIRST_LOOK_S = 0.2  # at growing intervals
_sruns: list[subprocess.Popen[bytes]] = []  # reaped when the next one starts


class Srun(Protocol):
    """A started `srun`; the step lives as long as it does."""

    def poll(self) -> int | None:
        """The exit code; None while it runs."""

    def terminate(self) -> None:
        """Send SIGTERM."""


def _start_srun(resources: SrunResources, paths: JobPaths) -> Srun:
    with private_file(paths.srun_log).open("wb") as log:
        srun = subprocess.Popen(
            [*resources.argv(), "/bin/bash", str(paths.script)],
            env=submitting_environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            start_new_session=True,
        )
    _sruns[:] = [*(one for one in _sruns if one.poll() is None), srun]
    return srun


class Steps:
    """Starts steps for jobs; their states are queried like those of any other job."""

    def __init__(
        self,
        slurm: Scheduler,
        clock: Clock = time,
        start_srun: Callable[[SrunResources, JobPaths], Srun] = _start_srun,
    ) -> None:
        """`start_srun`: runs the job's script as a step of these resources."""
        self._slurm = slurm
        self._clock = clock
        self._start_srun = start_srun

    def check(self, spec: ComputeSpec) -> None:
        """Refuse a job that does not fit into the endpoint's allocation, with the numbers.

        Raises:
            ConfigError: it does not fit.
            PlatformUnavailable: the endpoint does not run, or Slurm cannot be asked.
        """
        self._resources(spec)

    def start(self, spec: ComputeSpec) -> str:
        """Start the job's step; return its id once it runs.

        Raises:
            ConfigError: it does not fit.
            PlatformUnavailable: the endpoint does not run, or its time is up.
            SubmitRejected: Slurm did not start it.
        """
        resources = self._resources(spec)
        paths = JobPaths(Path(spec.job_dir))
        private_file(paths.log)
        write_private(paths.script, step_script(spec).render("step.sh.j2"))
        if spec.continues:
            write_private(next_script(paths), job_script(spec).render("batch.sh.j2"))
        srun = self._start_srun(resources, paths)
        try:
            step = self._started(resources, srun, paths)
            # the jobs that were signalled did not include it
            _refuse_leaving(resources.allocation, spec)
            return step
        except BaseException:  # a job that is reported as not started must not run
            srun.terminate()
            raise

    def _started(self, resources: SrunResources, srun: Srun, paths: JobPaths) -> str:
        deadline, wait_s = self._clock.monotonic() + _START_S, _FIRST_LOOK_S
        while self._clock.monotonic() < deadline:
            self._slurm.expect_change()
            for step in self._slurm.steps().values():
                if step.comment == resources.name:
                    return step.id
            if srun.poll() is not None:
                break
            self._clock.sleep(wait_s)
            wait_s = min(2.0, 1.5 * wait_s)
        if paths.exit.exists():  # it ended before it appeared
            return f"{resources.allocation}.+"
        said = refusal(paths.srun_log.read_text("utf-8", errors="replace"))
        raise SubmitRejected(
            f"Slurm did not start the job in the endpoint's allocation: {said}",
            hint="Submit it with --placement job to get an allocation of its own.",
        )

    def _resources(self, spec: ComputeSpec) -> SrunResources:
        endpoint = self._endpoint(spec)
        allocation = self._slurm.allocation(endpoint)
        asked = spec.resources
        memory_mb = None if asked.memory_gb is None else math.ceil(asked.memory_gb * 1024)
        left_s = math.inf
        if allocation.ends_at is not None:
            left_s = allocation.ends_at.timestamp() - self._clock.time()
        _check_fits(
            ("CPUs", asked.cpus, allocation.cpus, "endpoint.cpus_per_task"),
            ("MB of memory", memory_mb, allocation.memory_mb, "endpoint.mem"),
            ("s of time", asked.time_limit_s, left_s, "endpoint.wall_time"),
        )
        return SrunResources(
            allocation=endpoint,
            name=job_name(spec.job_id),
            cpus=asked.cpus or allocation.cpus,
            memory_mb=memory_mb,  # all, shared: 20.11 would give a second step none of it
        )

    def _endpoint(self, spec: ComputeSpec) -> str:
        jobs = tagged(self._slurm.queue(at_most_s=0.0).values(), spec.tag or "-")
        for one in reversed(jobs):  # an older one may still be completing
            if one.kind == "endpoint" and one.job.runs_on:
                _refuse_leaving(one.job.id, spec)
                return one.job.id
        raise PlatformUnavailable(
            "The endpoint's job does not run now, so no job can share its allocation.",
            hint="Wait for it (`domyn-swarm status`), or use --placement job.",
        )


def _refuse_leaving(endpoint: str, spec: ComputeSpec) -> None:
    try:
        leaving = SwarmPaths(Path(spec.job_dir).parents[1]).endpoint_leaves.read_text("utf-8")
    except FileNotFoundError:
        return
    if leaving == endpoint:
        raise PlatformUnavailable(
            "The endpoint's job has reached its time limit and comes back elsewhere: a job that "
            "begins in its allocation would end with it.",
            hint="Wait for it (`domyn-swarm status`), or use --placement job.",
        )


def _check_fits(*known: tuple[str, float | None, float | None, str]) -> None:
    """Each item: what, how much is wanted, how much is available, and the key that gives more."""
    for what, wanted, there, key in known:
        if wanted is not None and there is not None and wanted > there:
            raise ConfigError(
                f"The job asks for {math.ceil(wanted)} {what}, "
                f"but the endpoint's allocation has {math.floor(there)}.",
                hint=f"Use --placement job, or raise backend.{key} when the swarm is next brought "
                "up.",
            )
