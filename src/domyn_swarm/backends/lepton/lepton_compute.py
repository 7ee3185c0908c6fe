"""Jobs of the workspace: one container each, in which a wrapper records how the job ended."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from pathlib import Path

from typing_extensions import override

from domyn_swarm.backends.job_end import probe_each, read_exit, wait_for_end
from domyn_swarm.backends.lepton import lepton_states, specs, streams
from domyn_swarm.backends.lepton.credentials import (
    Credentials,
    InWorkspace,
    credentials,
    swarm_of,
    workspace_of,
)
from domyn_swarm.backends.lepton.workspace import Workspace, WorkspaceJob
from domyn_swarm.backends.protocols import ComputeBackend, ComputeSpec, job_handle
from domyn_swarm.errors import ConfigError, PlatformError, PlatformUnavailable, SubmissionUnknown
from domyn_swarm.model import ExitRecord, JobHandle, JobStatus, utc_now
from domyn_swarm.paths import JobPaths, private_dir, write_private
from domyn_swarm.probing import comes_true

_EVERY_S = 1.0
_END_POLL_S = 0.5
_POLL_S = 0.2
_RECORD_S = 5.0  # from a job's end until its exit record is visible here, on shared storage
_KILLED_S = 60.0


class LeptonCompute(InWorkspace, ComputeBackend):
    """Jobs of the platform. If storage is shared, a job's own exit record takes precedence."""

    appears_within_s = 300.0

    def __init__(self) -> None:
        self._workspaces: dict[str, Workspace] = {}

    @override
    def check(self, spec: ComputeSpec) -> None:
        specs.job_spec(spec)
        self._workspace(_credentials_for(spec)).info()

    @override
    def submit(self, spec: ComputeSpec) -> JobHandle:
        private_dir(JobPaths(Path(spec.job_dir)).log.parent)
        workspace, document = self._workspace(_credentials_for(spec)), specs.job_spec(spec)
        try:
            job = workspace.create_job(document)
        except PlatformUnavailable as error:
            raise SubmissionUnknown(error.message, hint=error.hint) from error
        return job_handle("lepton", spec.job_id, spec.job_dir, job, spec=spec)

    @override
    def find(self, job_id: str, job_dir: str) -> JobHandle | None:
        job = self._of(job_dir).find_job(job_id)
        if job is not None:
            return job_handle("lepton", job_id, job_dir, job.id)
        ended = JobPaths(Path(job_dir)).exit.exists()
        return job_handle("lepton", job_id, job_dir, "") if ended else None

    @override
    def probe(self, handle: JobHandle) -> JobStatus:
        """Raises:
        PlatformUnavailable: there is no exit record, and the platform does not report a state.
        """
        ended = read_exit(Path(handle.exit_path))
        if ended is not None:
            return ended.status
        job = self._job(handle)
        status = _status(handle, job)
        return _recorded(handle, status) if status.final else status

    @override
    def probe_all(self, handles: Sequence[JobHandle]) -> dict[str, JobStatus]:
        return probe_each(self.probe, handles)

    @override
    def why_waiting(self, handles: Sequence[JobHandle]) -> dict[str, str]:
        """Empty: the workspace reports no reasons."""
        return {}

    @override
    def wait(self, handle: JobHandle, *, timeout_s: float | None = None) -> JobStatus:
        return wait_for_end(lambda: self.probe(handle), timeout_s=timeout_s, every_s=_EVERY_S)

    @override
    def fetch_log(self, handle: JobHandle, *, follow: bool = False) -> None:
        if not handle.platform_id:
            return
        workspace, path = self._of(handle.job_dir), Path(handle.log_path)
        streams.save(workspace.job_log(handle.platform_id, follow=False), path)
        if follow:
            streams.follow(workspace.job_log(handle.platform_id, follow=True), path)

    @override
    def cancel(self, handle: JobHandle, *, grace_s: float = 30.0) -> None:
        """The platform signals the wrapper, which signals the job."""
        job = self._job(handle)
        if job is None or _status(handle, job).final:
            return
        ended_by_sigterm = end_job(self._of(handle.job_dir), job.id, grace_s=grace_s)
        if read_exit(Path(handle.exit_path)) is not None:
            return
        # shared storage may lag behind
        behind_s = 0.0 if ended_by_sigterm else _EVERY_S
        if not comes_true(Path(handle.exit_path).exists, within_s=behind_s, every_s=_POLL_S):
            number, now = signal.SIGTERM if ended_by_sigterm else signal.SIGKILL, utc_now()
            ended = ExitRecord(code=None, signal=number, stopped=True, started_at=now, ended_at=now)
            write_private(Path(handle.exit_path), json.dumps(ended.model_dump(mode="json")))

    def _job(self, handle: JobHandle) -> WorkspaceJob | None:
        return self._of(handle.job_dir).job(handle.platform_id) if handle.platform_id else None

    def _of(self, job_dir: str) -> Workspace:
        return self._workspace(credentials(None, workspace_of(swarm_of(job_dir))))

    def _workspace(self, given: Credentials) -> Workspace:
        key = given.model_dump_json()
        if key not in self._workspaces:
            self._workspaces[key] = Workspace(given)
        return self._workspaces[key]


def end_job(workspace: Workspace, job: str, *, grace_s: float) -> bool:
    """Stop a job, and kill it after the grace period. Returns whether it ended by itself.

    Raises:
        PlatformError: the job still runs.
    """

    def has_ended() -> bool:
        current = workspace.job(job)
        status = None if current is None else _reported_status(current)
        return current is None or (status is not None and status.final)

    workspace.stop_job(job)
    if comes_true(has_ended, within_s=grace_s, every_s=_END_POLL_S):
        return True
    workspace.delete_job(job)
    if not comes_true(has_ended, within_s=_KILLED_S, every_s=_END_POLL_S):
        raise PlatformError(
            f"The workspace still runs the job {job}.",
            hint="Check the workspace's dashboard, then try again.",
        )
    return False


def _reported_status(job: WorkspaceJob) -> JobStatus | None:
    return lepton_states.job_status(job.state, job.succeeded, job.failed)


def _status(handle: JobHandle, job: WorkspaceJob | None) -> JobStatus:
    """The status that the platform reports, without the exit record."""
    if job is None:  # it was deleted without an exit record
        return JobStatus.FAILED
    status = _reported_status(job)
    if status is None:
        raise PlatformUnavailable(
            f"The workspace does not report the state of job {handle.job_id}."
        )
    return status


def _recorded(handle: JobHandle, by_platform: JobStatus) -> JobStatus:
    """The status in the job's exit record once it is visible here, else the platform's status."""
    record = Path(handle.exit_path)
    comes_true(record.exists, within_s=_RECORD_S, every_s=_POLL_S)
    ended = read_exit(record)
    return by_platform if ended is None else ended.status


def _credentials_for(spec: ComputeSpec) -> Credentials:
    configured = specs.section(spec.platform_options).workspace_id
    launched_in = workspace_of(swarm_of(spec.job_dir))
    if spec.tag is None:
        raise ConfigError("A job of the workspace needs a swarm there.", hint="Use --run-here.")
    return credentials(configured, launched_in)
