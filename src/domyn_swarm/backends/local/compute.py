"""Jobs as processes of this machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from domyn_swarm.backends.base import ComputeSpec
from domyn_swarm.backends.local import processes
from domyn_swarm.errors import PlatformError
from domyn_swarm.model import ExitRecord, JobHandle, JobStatus, ProcessId, utc_now
from domyn_swarm.paths import JobPaths
from domyn_swarm.probing import Deadline, Observation, Phase, wait_until

_FOREVER_S = 10 * 365 * 24 * 3600.0


class LocalCompute:
    """See `ComputeBackend`. Each job is a session of its own under an exit wrapper."""

    def submit(self, spec: ComputeSpec) -> JobHandle:
        """See `ComputeBackend.submit`."""
        paths = JobPaths(Path(spec.job_dir))
        env = {**spec.env, processes.JOB: spec.job_id}
        if spec.tag is not None:
            env[processes.TAG] = spec.tag
        wrapper = [sys.executable, "-m", "domyn_swarm.backends.exit_wrapper"]
        argv = [*wrapper, str(paths.exit), spec.cwd, "--", *spec.argv]
        process = processes.spawn(argv, env, paths.log)
        return JobHandle(
            job_id=spec.job_id,
            swarm=spec.swarm,
            platform="local",
            platform_id=str(process.pid),
            process=process,
            external_id=spec.external_id,
            job_dir=spec.job_dir,
            log_path=str(paths.log),
            exit_path=str(paths.exit),
            submitted_at=utc_now(),
        )

    def probe(self, handle: JobHandle) -> JobStatus:
        """See `ComputeBackend.probe`."""
        ended = read_exit(Path(handle.exit_path))
        if ended is not None:
            return ended.status
        if handle.process is not None and processes.alive(handle.process):
            return JobStatus.RUNNING
        if self._left(handle):
            return JobStatus.RUNNING
        ended = read_exit(Path(handle.exit_path))  # written while the processes were counted
        return JobStatus.FAILED if ended is None else ended.status

    def wait(self, handle: JobHandle, *, timeout_s: float | None = None) -> JobStatus:
        """See `ComputeBackend.wait`."""
        seen = [JobStatus.PENDING]

        def probe() -> Observation:
            seen.append(self.probe(handle))
            return Observation(Phase.READY if seen[-1].final else Phase.STARTING)

        limit_s = _FOREVER_S if timeout_s is None else timeout_s
        wait_until(probe, deadline=Deadline(limit_s), every_s=0.1)
        return seen[-1]

    def cancel(self, handle: JobHandle, *, grace_s: float = 30.0) -> None:
        """See `ComputeBackend.cancel`."""
        if handle.process is not None and self.probe(handle) is JobStatus.RUNNING:
            leader = [handle.process]
            processes.end(lambda: leader, grace_s=grace_s)
        if not processes.end(lambda: self._left(handle), grace_s=grace_s):
            left = ", ".join(str(process.pid) for process in self._left(handle))
            raise PlatformError(f"Job {handle.job_id} still runs: processes {left}.")

    def _left(self, handle: JobHandle) -> list[ProcessId]:
        """Everything of the job that still runs, its leader or not."""
        found = processes.carrying(processes.JOB, handle.job_id)
        return [process for process in found if process.pid != os.getpid()]


def read_exit(path: Path) -> ExitRecord | None:
    """The exit record, or None while there is none."""
    try:
        return ExitRecord.model_validate_json(path.read_text())
    except FileNotFoundError:
        return None
