"""Runs the program of a job that continues by itself: the batch script's program in a Slurm job.

    python -m domyn_swarm.backends.slurm.job_task SPEC -- PROGRAM [ARG …]

SPEC is `JobTask` as JSON. Runs the program as `exit_wrapper` does. When Slurm warns of the time
limit, the program ends with everything on disk, and the job is requeued or gets a successor. An
exit record of an earlier run is kept if the job has come to its end; otherwise it is replaced by
this run's.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from domyn_swarm.backends.exit_wrapper import ProgramRun, notify_job_end
from domyn_swarm.backends.slurm.commands import Slurm
from domyn_swarm.backends.slurm.job_runs import (
    ComesBack,
    JobRuns,
    NextRun,
    begin_run,
    cancelled_word,
    comes_back,
)
from domyn_swarm.errors import JobError, PlatformError
from domyn_swarm.logs import configure, get_logger
from domyn_swarm.paths import JobPaths
from domyn_swarm.temporary import settle_temporary_folder

_log = get_logger(__name__)

_TOLD_TO_END = (128 + signal.SIGTERM, 128 + signal.SIGINT, 128 + signal.SIGKILL)


@dataclass(frozen=True)
class JobTask:
    """The settings of a run."""

    job_dir: str
    cwd: str
    requeue: bool  # whether the job may be requeued; else it has successors
    step: bool = False  # a step of the endpoint's job: its next run has its own allocation
    warned_s: float = 0.0  # seconds before the time limit at which Slurm warns; 0: no warning
    limit_s: float = 0.0  # of one run; 0: Slurm's limit only
    stop_after_s: float | None = None  # seconds from the first run's begin after which the job ends

    def argv(self, python: str, program: Sequence[str]) -> list[str]:
        """The command that runs a program under this task."""
        task = json.dumps(asdict(self))
        return [python, "-m", "domyn_swarm.backends.slurm.job_task", task, "--", *program]

    def run(self, program: Sequence[str], umask: int) -> int:
        """Run the program, then request the job's next run or record its end. Return the exit
        code.
        """
        paths, slurm_id = JobPaths(Path(self.job_dir)), self._slurm_id()
        running = ProgramRun(paths, self.warned_s)
        runs = begin_run(paths, slurm_id, self.stop_after_s, time.time())
        if runs.over is not None:
            return _end_at_once(runs, running, paths)
        _log.info("run %d of the job begins", runs.number)
        paths.exit.unlink(missing_ok=True)
        left_s = runs.left_s(self.stop_after_s, time.time())
        limit_s = min(self.limit_s or math.inf, left_s)
        ending = _ToldToEnd(paths, runs, step=self.step)
        limit_s = 0.0 if limit_s == math.inf else limit_s
        code = running.run(self.cwd, program, umask, limit_s, ending.look)
        if running.stopped and running.timed_out:  # a job that would continue is stopped on purpose
            running.record(code, timed_out=False)
        if self._goes_on(code, runs, running, ending):
            return code
        notify_job_end(paths)
        return code

    def _slurm_id(self) -> str:
        job = os.environ["SLURM_JOB_ID"]
        return f"{job}.{os.environ['SLURM_STEP_ID']}" if self.step else job

    def _goes_on(self, code: int, runs: JobRuns, running: ProgramRun, ending: _ToldToEnd) -> bool:
        """Request another run if the time limit ended this one, or the endpoint's limit did for a
        step, or Slurm preempted or requeued it; return whether there is one.
        """
        paths = JobPaths(Path(self.job_dir))
        up = running.warned if self.step else running.timed_out
        goes_on = ending.comes_back is not None or (up and not running.stopped)
        if code not in _TOLD_TO_END or not goes_on:
            return False
        if runs.left_s(self.stop_after_s, time.time()) <= 0:
            replace(runs, over="stop_after").write(paths)
            return False
        if ending.comes_back:
            return ending.goes_on(by_requeue=self.requeue)
        if NextRun(paths, runs, lambda: running.stopped).ask(by_requeue=self.requeue):
            return True
        running.record(code, timed_out=not running.stopped)
        return False


class _ToldToEnd:
    """A run that received a signal to end: asks Slurm whether it was preempted or requeued, and has
    it followed by another run.
    """

    def __init__(self, paths: JobPaths, runs: JobRuns, *, step: bool) -> None:
        self.comes_back: ComesBack | None = None
        self._paths = paths
        self._runs = runs
        self._step = step
        self._restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        self._succeeded = False
        self._next = NextRun(paths, runs, lambda: False)

    def look(self) -> None:
        """Ask Slurm while the program ends. If Slurm does not restart the job, submit its successor
        at once, to start after this job has ended: this process may be killed at any moment.
        """
        if cancelled_word(self._paths).exists():
            return
        allocation = os.environ["SLURM_JOB_ID"]
        try:
            end = Slurm().own_end(allocation)
        except PlatformError as error:
            _log.warning("Slurm does not say why this run ends: %s", error.message)
            return
        self.comes_back = comes_back(end, self._restarts, step=self._step)
        if self.comes_back == "successor" and not self._step:
            self._succeeded = self._next.succeed(once_over=allocation)

    def goes_on(self, *, by_requeue: bool) -> bool:
        """Request the job's next run, after the program has ended; return whether there is one."""
        if self.comes_back == "asks":
            return self._next.ask(by_requeue=by_requeue)
        if self.comes_back == "successor" and self._step:
            return self._next.succeed()
        return self.comes_back == "itself" or self._succeeded


def _end_at_once(runs: JobRuns, running: ProgramRun, paths: JobPaths) -> int:
    """Record that the job is over, before anything runs."""
    _log.warning("the job does not continue: %s", runs.reason or runs.over)
    if runs.over == "settled":
        return 0
    code = JobError.exit_code if runs.over == "fruitless" else 128 + signal.SIGTERM
    running.record(code, timed_out=runs.over == "stop_after")
    notify_job_end(paths)
    return code


def main(arguments: Sequence[str], umask: int) -> int:
    """Run the job once; return the exit code of its program, or 128 + the number of a signal."""
    configure("INFO")
    task, separator, *program = arguments
    if separator != "--" or not program:
        raise SystemExit(f"usage: job_task SPEC -- PROGRAM …, not {arguments}")
    if said := settle_temporary_folder():
        _log.warning("%s", said)
    return JobTask(**json.loads(task)).run(program, umask)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.umask(0o077)))
