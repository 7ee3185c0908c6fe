"""Jobs as processes on this machine."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from typing_extensions import override

from domyn_swarm.backends.job_end import exit_wrapper, probe_each, read_exit, wait_for_end
from domyn_swarm.backends.local import processes
from domyn_swarm.backends.local.processes import OnThisHost
from domyn_swarm.backends.protocols import ComputeBackend, ComputeSpec, job_handle
from domyn_swarm.errors import ConfigError, PlatformError, PlatformUnavailable
from domyn_swarm.model import ExitRecord, JobHandle, JobStatus, ProcessId, Reach, utc_now
from domyn_swarm.paths import JobPaths, write_private

_RECORD_S = 5.0  # in which the wrapper records how a killed program ended


class LocalCompute(OnThisHost, ComputeBackend):
    """Each job is a process session, led by an exit wrapper."""

    appears_within_s = 60.0

    @override
    def check(self, spec: ComputeSpec) -> None:
        """Jobs share this machine: they can request no part of it."""
        requested = spec.resources.model_dump(exclude_none=True)
        supported = {
            "detached",
            *("time_limit_s", "stop_after_s", "max_gpu_hours", "continues"),
            *(["placement"] if requested.get("placement") == "here" else []),
        }
        unsupported = sorted(requested.keys() - supported)
        if unsupported:
            raise ConfigError(
                f"The local backend does not support {' and '.join(unsupported)} for jobs.",
                hint="Leave it out: a job is a plain process on this machine.",
            )

    @override
    def submit(self, spec: ComputeSpec) -> JobHandle:
        paths = JobPaths(Path(spec.job_dir))
        env = {**spec.env, processes.JOB: spec.job_id}
        if spec.tag is not None:
            env[processes.TAG] = spec.tag
        argv = exit_wrapper(sys.executable, spec, spec.argv)
        process = processes.spawn(argv, env, paths.log)
        return _handle(spec.job_id, spec.job_dir, process, spec)

    @override
    def find(self, job_id: str, job_dir: str) -> JobHandle | None:
        leaders = [process for process in self._left(job_id) if processes.leads_a_session(process)]
        if leaders:
            return _handle(job_id, job_dir, leaders[0])
        return _handle(job_id, job_dir, None) if JobPaths(Path(job_dir)).exit.exists() else None

    @override
    def probe(self, handle: JobHandle) -> JobStatus:
        """Raises:
        PlatformUnavailable: there is no exit record, and it was started on another host.
        """
        ended = read_exit(Path(handle.exit_path))
        if ended is not None:
            return ended.status
        reach = self.reach(handle.location)
        if reach is Reach.ELSEWHERE:
            raise PlatformUnavailable(
                f"The job {handle.job_id} was started on {handle.location}, and this host cannot "
                "check whether it runs.",
                hint="Run the command there.",
            )
        if reach is Reach.HERE and self._runs(handle):
            return JobStatus.RUNNING
        ended = read_exit(Path(handle.exit_path))  # it may have ended since the first read
        return JobStatus.FAILED if ended is None else ended.status

    @override
    def probe_all(self, handles: Sequence[JobHandle]) -> dict[str, JobStatus]:
        return probe_each(self.probe, handles)

    @override
    def why_waiting(self, handles: Sequence[JobHandle]) -> dict[str, str]:
        """Empty: processes start at once."""
        return {}

    @override
    def wait(self, handle: JobHandle, *, timeout_s: float | None = None) -> JobStatus:
        """Raises:
        PlatformUnavailable: it was started on another host.
        """
        self.probe(handle)  # one of another host would be waited for in vain
        return wait_for_end(lambda: self.probe(handle), timeout_s=timeout_s, every_s=0.1)

    @override
    def fetch_log(self, handle: JobHandle, *, follow: bool = False) -> None:
        """Nothing is fetched: the job writes its log there itself."""

    @override
    def cancel(self, handle: JobHandle, *, grace_s: float = 30.0) -> None:
        """Signals the wrapper, which signals the program."""
        if self.probe(handle).final and not self._left(handle.job_id):
            return
        self._end(handle, grace_s)
        if read_exit(Path(handle.exit_path)) is None:  # signalled before the wrapper had a handler
            ended = ExitRecord(
                code=None,
                signal=signal.SIGTERM,
                started_at=handle.submitted_at,
                ended_at=utc_now(),
            )
            write_private(Path(handle.exit_path), ended.model_dump_json())

    def _end(self, handle: JobHandle, grace_s: float) -> None:
        leader = [] if handle.process is None else [handle.process]
        processes.send(leader, signal.SIGTERM)
        if processes.gone(lambda: leader, within_s=grace_s) and not self._left(handle.job_id):
            return
        programs = [process for process in self._left(handle.job_id) if process not in leader]
        processes.send(programs, signal.SIGKILL)
        processes.gone(lambda: leader, within_s=_RECORD_S)
        if not processes.end(lambda: self._left(handle.job_id), grace_s=_RECORD_S):
            left = ", ".join(str(process.pid) for process in self._left(handle.job_id))
            raise PlatformError(
                f"Job {handle.job_id} still runs: processes {left}.",
                hint="They did not end on SIGKILL. See `ps`, then cancel the job again.",
            )

    def _runs(self, handle: JobHandle) -> bool:
        process = handle.process
        wrapper_runs = process is not None and processes.alive(process)
        return wrapper_runs or bool(self._left(handle.job_id))

    @staticmethod
    def _left(job_id: str) -> list[ProcessId]:
        """The processes of the job that still run, its wrapper included."""
        return list(processes.carrying(processes.JOB, job_id))


def _handle(
    job_id: str, job_dir: str, process: ProcessId | None, spec: ComputeSpec | None = None
) -> JobHandle:
    platform_id = "" if process is None else str(process.pid)
    return job_handle("local", job_id, job_dir, platform_id, process=process, spec=spec)
