"""Jobs of a swarm as Slurm jobs of their own, which survive logout."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

from domyn_swarm.backends.base import ComputeSpec, read_exit
from domyn_swarm.backends.slurm.commands import TAG_PREFIX, Slurm
from domyn_swarm.backends.slurm.layout import interpreter, job_script
from domyn_swarm.backends.slurm.states import SlurmJob
from domyn_swarm.config.backends import SlurmConfig
from domyn_swarm.errors import PlatformError, PlatformUnavailable
from domyn_swarm.model import ExitRecord, JobHandle, JobStatus, utc_now
from domyn_swarm.paths import JobPaths, private_dir, write_private
from domyn_swarm.probing import Deadline, Observation, Phase, wait_until

_FOREVER_S = 10 * 365 * 86400.0
_END_S = 60.0
_RECORD_S = 10.0  # from the job's end until its exit record is surely seen on another node


class SlurmCompute:
    """See `ComputeBackend`."""

    def __init__(self, slurm: Slurm | None = None) -> None:
        self._slurm = slurm or Slurm()
        self._missing_since: dict[str, float] = {}

    def submit(self, spec: ComputeSpec) -> JobHandle:
        """See `ComputeBackend.submit`."""
        paths = JobPaths(Path(spec.job_dir))
        private_dir(paths.log.parent)
        config = SlurmConfig.model_validate(spec.platform_options)
        python = interpreter(config, sys.executable)
        program = python if spec.argv[0] == sys.executable else spec.argv[0]
        wrapper = [python, "-m", "domyn_swarm.backends.exit_wrapper", str(paths.exit), spec.cwd]
        script = job_script(config, spec, [*wrapper, "--", program, *spec.argv[1:]])
        write_private(paths.script, script.render("batch.sh.j2"))
        handle = _handle(spec.job_id, spec.job_dir, self._slurm.submit(paths.script))
        return handle.model_copy(update={"swarm": spec.swarm, "external_id": spec.external_id})

    def find(self, job_id: str, job_dir: str) -> JobHandle | None:
        """See `ComputeBackend.find`."""
        for job in self._slurm.queue().values():
            if job.comment.startswith(TAG_PREFIX) and job.comment.endswith(f"/job/{job_id}"):
                return _handle(job_id, job_dir, job.id)
        return _handle(job_id, job_dir, "") if JobPaths(Path(job_dir)).exit.exists() else None

    def probe(self, handle: JobHandle) -> JobStatus:
        """See `ComputeBackend.probe`.

        Raises:
            PlatformUnavailable: there is no exit record and Slurm does not answer.
        """
        ended = read_exit(Path(handle.exit_path))
        if ended is not None and ended.status is not JobStatus.FAILED:
            return ended.status
        job = self._slurm.jobs([handle.platform_id]).get(handle.platform_id)
        if ended is not None:  # perhaps Slurm killed it, and knows why
            known = job is not None and job.over and job.state != "COMPLETED"
            return job.job_status if known and job is not None else ended.status
        if job is not None and not job.over:
            return job.job_status
        return self._ended_unrecorded(handle, job)

    def _ended_unrecorded(self, handle: JobHandle, job: SlurmJob | None) -> JobStatus:
        """Over without a record, which may not be visible here yet: then Slurm's word holds."""
        if job is not None and job.job_status not in (JobStatus.SUCCEEDED, JobStatus.FAILED):
            return job.job_status
        since = self._missing_since.setdefault(handle.job_id, time.monotonic())
        if time.monotonic() - since < _RECORD_S:
            return JobStatus.RUNNING
        return JobStatus.FAILED

    def wait(self, handle: JobHandle, *, timeout_s: float | None = None) -> JobStatus:
        """See `ComputeBackend.wait`. A scheduler that does not answer is asked again."""
        seen = [JobStatus.PENDING]

        def probe() -> Observation:
            try:
                seen.append(self.probe(handle))
            except PlatformUnavailable as error:
                return Observation(Phase.UNKNOWN, error.message)
            return Observation(Phase.READY if seen[-1].final else Phase.STARTING)

        limit_s = _FOREVER_S if timeout_s is None else timeout_s
        wait_until(probe, deadline=Deadline(limit_s), every_s=1.0)
        return seen[-1]

    def cancel(self, handle: JobHandle, *, grace_s: float = 30.0) -> None:
        """See `ComputeBackend.cancel`. The wrapper is told, and tells the program; told a second
        time it kills the program and writes that down.
        """
        if not self._goes_on(handle):
            return
        for within_s in (grace_s, _RECORD_S):
            self._slurm.cancel([handle.platform_id], signal="TERM")
            if self._ends(handle, within_s):
                break
        else:
            self._slurm.cancel([handle.platform_id])
            if not self._ends(handle, _END_S):
                raise PlatformError(
                    f"Slurm still has the job {handle.job_id} as {handle.platform_id}.",
                    hint="Its node may be slow to let go; see `squeue`, then cancel it again.",
                )
        if read_exit(Path(handle.exit_path)) is None:  # it had not begun
            number = signal.SIGTERM
            now = utc_now()
            ended = ExitRecord(code=None, signal=number, started_at=now, ended_at=now)
            write_private(Path(handle.exit_path), ended.model_dump_json())

    def _goes_on(self, handle: JobHandle) -> bool:
        job = self._slurm.jobs([handle.platform_id]).get(handle.platform_id)
        return job is not None and not job.over

    def _ends(self, handle: JobHandle, within_s: float) -> bool:
        job = self._slurm.jobs([handle.platform_id]).get(handle.platform_id)
        if job is not None and job.waiting:  # nothing runs that could be told to end
            self._slurm.cancel([handle.platform_id])
        deadline = time.monotonic() + within_s
        while self._goes_on(handle):
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.5)
        return True


def _handle(job_id: str, job_dir: str, platform_id: str) -> JobHandle:
    paths = JobPaths(Path(job_dir))
    return JobHandle(
        job_id=job_id,
        swarm=None,
        platform="slurm",
        platform_id=platform_id,
        job_dir=job_dir,
        log_path=str(paths.log),
        exit_path=str(paths.exit),
        submitted_at=utc_now(),
    )
