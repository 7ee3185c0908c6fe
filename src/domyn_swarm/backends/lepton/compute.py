"""Jobs of the workspace: one container each, under the wrapper that writes down how it ended."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from pathlib import Path

from domyn_swarm.backends.base import ComputeSpec, job_handle, probe_each, read_exit, wait_for_end
from domyn_swarm.backends.lepton import specs, states, streams
from domyn_swarm.backends.lepton.credentials import (
    Credentials,
    InWorkspace,
    credentials,
    place_of,
    swarm_of,
)
from domyn_swarm.backends.lepton.workspace import JobSeen, Workspace
from domyn_swarm.errors import ConfigError, PlatformError, PlatformUnavailable, SubmissionUnknown
from domyn_swarm.model import ExitRecord, JobHandle, JobStatus, utc_now
from domyn_swarm.paths import JobPaths, private_dir, write_private
from domyn_swarm.probing import comes_true

_EVERY_S = 1.0
_END_LOOK_S = 0.5
_SEEN_S = 0.2
_RECORD_S = 5.0  # from the job's end until its exit record is seen on this side of the storage
_KILLED_S = 60.0


class LeptonCompute(InWorkspace):
    """See `ComputeBackend`. A job's own record of its end comes first, where storage is shared."""

    appears_within_s = 300.0

    def __init__(self) -> None:
        self._workspaces: dict[str, Workspace] = {}

    def check(self, spec: ComputeSpec) -> None:
        """See `ComputeBackend.check`."""
        specs.job_spec(spec)
        self._workspace(_credentials_for(spec)).info()

    def submit(self, spec: ComputeSpec) -> JobHandle:
        """See `ComputeBackend.submit`."""
        private_dir(JobPaths(Path(spec.job_dir)).log.parent)
        workspace, document = self._workspace(_credentials_for(spec)), specs.job_spec(spec)
        try:
            job = workspace.create_job(document)
        except PlatformUnavailable as error:
            raise SubmissionUnknown(error.message, hint=error.hint) from error
        return job_handle("lepton", spec.job_id, spec.job_dir, job, spec=spec)

    def find(self, job_id: str, job_dir: str) -> JobHandle | None:
        """See `ComputeBackend.find`."""
        job = self._of(job_dir).find_job(job_id)
        if job is not None:
            return job_handle("lepton", job_id, job_dir, job.id)
        ended = JobPaths(Path(job_dir)).exit.exists()
        return job_handle("lepton", job_id, job_dir, "") if ended else None

    def probe(self, handle: JobHandle) -> JobStatus:
        """See `ComputeBackend.probe`.

        Raises:
            PlatformUnavailable: there is no exit record, and the platform does not say.
        """
        ended = read_exit(Path(handle.exit_path))
        if ended is not None:
            return ended.status
        job = self._job(handle)
        status = _status(handle, job)
        return _recorded(handle, status) if status.final else status

    def probe_all(self, handles: Sequence[JobHandle]) -> dict[str, JobStatus]:
        """See `ComputeBackend.probe_all`."""
        return probe_each(self.probe, handles)

    def why_waiting(self, handles: Sequence[JobHandle]) -> dict[str, str]:  # noqa: ARG002 - of the protocol
        """See `ComputeBackend.why_waiting`: the workspace does not say."""
        return {}

    def wait(self, handle: JobHandle, *, timeout_s: float | None = None) -> JobStatus:
        """See `ComputeBackend.wait`."""
        return wait_for_end(lambda: self.probe(handle), timeout_s=timeout_s, every_s=_EVERY_S)

    def fetch_log(self, handle: JobHandle, *, follow: bool = False) -> None:
        """See `ComputeBackend.fetch_log`."""
        if not handle.platform_id:
            return
        workspace, path = self._of(handle.job_dir), Path(handle.log_path)
        streams.save(workspace.job_log(handle.platform_id, follow=False), path)
        if follow:
            streams.follow(workspace.job_log(handle.platform_id, follow=True), path)

    def cancel(self, handle: JobHandle, *, grace_s: float = 30.0) -> None:
        """See `ComputeBackend.cancel`. The platform tells the wrapper, and it the program."""
        job = self._job(handle)
        if job is None or _status(handle, job).final:
            return
        told = end_job(self._of(handle.job_dir), job.id, grace_s=grace_s)
        if read_exit(Path(handle.exit_path)) is not None:
            return
        # Shared storage may be behind.
        behind_s = 0.0 if told else _EVERY_S
        if not comes_true(Path(handle.exit_path).exists, within_s=behind_s, every_s=_SEEN_S):
            number, now = signal.SIGTERM if told else signal.SIGKILL, utc_now()
            ended = ExitRecord(code=None, signal=number, stopped=True, started_at=now, ended_at=now)
            write_private(Path(handle.exit_path), json.dumps(ended.model_dump(mode="json")))

    def _job(self, handle: JobHandle) -> JobSeen | None:
        return self._of(handle.job_dir).job(handle.platform_id) if handle.platform_id else None

    def _of(self, job_dir: str) -> Workspace:
        return self._workspace(credentials(None, place_of(swarm_of(job_dir))))

    def _workspace(self, given: Credentials) -> Workspace:
        key = given.model_dump_json()
        if key not in self._workspaces:
            self._workspaces[key] = Workspace(given)
        return self._workspaces[key]


def end_job(workspace: Workspace, job: str, *, grace_s: float) -> bool:
    """Have a job end, and be killed after the grace period; whether it ended when it was told.

    Raises:
        PlatformError: it still runs.
    """

    def over() -> bool:
        seen = workspace.job(job)
        status = None if seen is None else _known(seen)
        return seen is None or (status is not None and status.final)

    workspace.stop_job(job)
    if comes_true(over, within_s=grace_s, every_s=_END_LOOK_S):
        return True
    workspace.delete_job(job)
    if not comes_true(over, within_s=_KILLED_S, every_s=_END_LOOK_S):
        raise PlatformError(
            f"The workspace still runs the job {job}.",
            hint="Look at it on the workspace's dashboard, then try again.",
        )
    return False


def _known(job: JobSeen) -> JobStatus | None:
    return states.job_status(job.state, job.succeeded, job.failed)


def _status(handle: JobHandle, job: JobSeen | None) -> JobStatus:
    """By the platform alone."""
    if job is None:  # it ended without a trace
        return JobStatus.FAILED
    status = _known(job)
    if status is None:
        raise PlatformUnavailable(f"The workspace does not say what job {handle.job_id} does.")
    return status


def _recorded(handle: JobHandle, by_platform: JobStatus) -> JobStatus:
    """The job's own record of its end, as soon as it is seen here; else the platform's word."""
    record = Path(handle.exit_path)
    comes_true(record.exists, within_s=_RECORD_S, every_s=_SEEN_S)
    ended = read_exit(record)
    return by_platform if ended is None else ended.status


def _credentials_for(spec: ComputeSpec) -> Credentials:
    configured = specs.section(spec.platform_options).workspace_id
    place = place_of(swarm_of(spec.job_dir))
    if spec.tag is None:
        raise ConfigError("A job of the workspace needs a swarm there.", hint="Use --run-here.")
    return credentials(configured, place)
