"""Jobs of a swarm: Slurm jobs of their own, which survive a logout, or steps of the
endpoint's job.
"""

from __future__ import annotations

import contextlib
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from typing_extensions import override

from domyn_swarm.backends.job_end import read_exit, read_tail, wait_for_end
from domyn_swarm.backends.protocols import ComputeBackend, ComputeSpec, job_handle
from domyn_swarm.backends.slurm.cluster import OnCluster
from domyn_swarm.backends.slurm.commands import Slurm
from domyn_swarm.backends.slurm.ending import Scheduler
from domyn_swarm.backends.slurm.job_runs import JobRuns, cancelled_word, last_words
from domyn_swarm.backends.slurm.printed import memory_kill
from domyn_swarm.backends.slurm.queue import is_job, job_name
from domyn_swarm.backends.slurm.reasons import OF_JOB, advice_for_job, explained
from domyn_swarm.backends.slurm.script_contents import job_script
from domyn_swarm.backends.slurm.slurm_states import SlurmJob
from domyn_swarm.backends.slurm.step_log import written_cause
from domyn_swarm.backends.slurm.steps import Steps
from domyn_swarm.backends.slurm.submissions import TAKEN_WITHIN_S
from domyn_swarm.errors import (
    ConfigError,
    PlatformError,
    PlatformUnavailable,
    SubmitRejected,
    disk_error,
)
from domyn_swarm.logs import get_logger
from domyn_swarm.model import ExitRecord, JobHandle, JobStatus, utc_now
from domyn_swarm.paths import JobPaths, private_file, write_private
from domyn_swarm.probing import Clock, comes_true

_log = get_logger(__name__)

_END_S = 60.0
_LOOK_S = 0.5
_FIND_S = 2.0  # oldest snapshot by which a job may count as absent
_COMPLETES_S = 120.0  # from the program's end until Slurm ends the job: KillWait, epilogs
_SAYS_NO_MORE = (JobStatus.SUCCEEDED, JobStatus.FAILED)
_RECORD_S = 10.0  # from the job's end until its exit record is visible on other nodes


class SlurmCompute(OnCluster, ComputeBackend):
    """Jobs as steps in the allocation of the endpoint, or as Slurm jobs of their own."""

    appears_within_s = 600.0

    def __init__(self, slurm: Scheduler | None = None, clock: Clock = time) -> None:
        self._slurm = slurm or Slurm()
        self._clock = clock
        self._steps = Steps(self._slurm, clock)

    @override
    def check(self, spec: ComputeSpec) -> None:
        if _is_step(spec):
            self._steps.check(spec)
            return
        with tempfile.TemporaryDirectory(prefix="domyn-swarm-") as folder:
            script = Path(folder) / "job.sh"
            script.write_text(job_script(spec).render("batch.sh.j2"), "utf-8")
            with _refused_as_job():
                self._slurm.test(script)

    @override
    def submit(self, spec: ComputeSpec) -> JobHandle:
        """The step runs when this returns."""
        submit = self._steps.start if _is_step(spec) else self._submit_job
        return _handle(spec.job_id, spec.job_dir, submit(spec), spec)

    def _submit_job(self, spec: ComputeSpec) -> str:
        paths = JobPaths(Path(spec.job_dir))
        try:
            private_file(paths.log)
            write_private(paths.script, job_script(spec).render("batch.sh.j2"))
        except OSError as error:  # certainly before Slurm had it
            raise disk_error(error, paths.root) from error
        with _refused_as_job(f"The script is {paths.script}."):
            return self._slurm.submit(paths.script)

    @override
    def find(self, job_id: str, job_dir: str) -> JobHandle | None:
        own = [job for job in self._slurm.queue(_FIND_S).values() if is_job(job, job_id)]
        if own:  # of several, the last one that has not ended
            own.sort(key=lambda job: not job.over)
            return _handle(job_id, job_dir, own[-1].id)
        for step in self._slurm.steps(_FIND_S).values():
            if step.comment == job_name(job_id):
                return _handle(job_id, job_dir, step.id)
        return _handle(job_id, job_dir, "") if JobPaths(Path(job_dir)).exit.exists() else None

    @override
    def probe(self, handle: JobHandle) -> JobStatus:
        """Raises:
        PlatformUnavailable: there is no exit record, or one of an end whose cause may be
            Slurm's, and Slurm does not answer; or the job's files cannot be read.
        """
        ended = read_exit(Path(handle.exit_path))
        if ended is not None and ended.conclusive:
            return ended.status
        job = self._jobs([handle], {handle.job_id: ended}).get(handle.job_id)
        return self._judged(handle, ended, job, self._clock.monotonic() + _RECORD_S)

    @override
    def probe_all(self, handles: Sequence[JobHandle]) -> dict[str, JobStatus]:
        """One request to Slurm for all of them."""
        records = dict(_exit_records(handles))
        found: dict[str, JobStatus] = {
            job_id: ended.status
            for job_id, ended in records.items()
            if ended is not None and ended.conclusive
        }
        left = [one for one in handles if one.job_id in records and one.job_id not in found]
        if not left:
            return found
        try:
            jobs = self._jobs(left, records)
        except PlatformError as error:
            _log.warning("the states of %d jobs are not known: %s", len(left), error.message)
            return found
        until = self._clock.monotonic() + _RECORD_S
        for handle in left:
            ended, job = records[handle.job_id], jobs.get(handle.job_id)
            try:
                found[handle.job_id] = self._judged(handle, ended, job, until)
            except PlatformError as error:
                _log.warning("the status of %s is not known: %s", handle.job_id, error.message)
        return found

    def _jobs(
        self, handles: Sequence[JobHandle], records: Mapping[str, ExitRecord | None]
    ) -> dict[str, SlurmJob]:
        """Slurm's record of these jobs, by our ids. For a job that has left an exit record a fresh
        snapshot is taken, because an older one would show it as running.
        """
        seen = self._owned(handles)
        ended = [one for one in handles if records[one.job_id] is not None]
        if any(one.job_id not in seen or seen[one.job_id].going for one in ended):
            self._slurm.expect_change()
            seen = self._owned(handles)
        return seen

    def _owned(self, handles: Sequence[JobHandle]) -> dict[str, SlurmJob]:
        ids = {handle.job_id: self._ids(handle) for handle in handles}
        jobs = self._slurm.jobs([one for found in ids.values() for one in found])
        own = {handle.job_id: _own(handle, ids[handle.job_id], jobs) for handle in handles}
        return {job_id: job for job_id, job in own.items() if job is not None}

    def _ids(self, handle: JobHandle) -> tuple[str, ...]:
        """The job's ids in Slurm, the current one last; then those of an announced successor
        whose id was not recorded.

        Raises:
            PlatformError: there may be one, and Slurm cannot be asked, or the job's files cannot be
                read.
        """
        runs = JobRuns.read(JobPaths(Path(handle.job_dir)))
        if runs is None:
            return (_submitted_id(handle),)
        if runs.successor_asked_at is None:
            return runs.slurm_ids
        unrecorded = runs.unrecorded(self._slurm.queue(), handle.job_id)
        return (*runs.slurm_ids, *(job.id for job in unrecorded))

    def _successor_is_coming(self, handle: JobHandle) -> bool:
        """Whether Slurm may yet take a successor that was announced, or shows none of it yet."""
        paths = JobPaths(Path(handle.job_dir))
        runs = JobRuns.read(paths)
        if runs is None or runs.successor_asked_at is None or cancelled_word(paths).exists():
            return False
        age_s = self._clock.time() - runs.successor_asked_at
        announced = abs(age_s) < TAKEN_WITHIN_S  # or clocks differ
        return announced and not runs.unrecorded(self._slurm.queue(), handle.job_id)

    @override
    def why_waiting(self, handles: Sequence[JobHandle]) -> dict[str, str]:
        """Slurm's reason, with what it means for a job."""
        try:
            jobs = self._owned(handles)
        except PlatformError:
            return {}
        return {job_id: _why_waiting(job) for job_id, job in jobs.items() if job.waiting}

    @override
    def wait(self, handle: JobHandle, *, timeout_s: float | None = None) -> JobStatus:
        ask = partial(self.probe, handle)
        return wait_for_end(ask, timeout_s=timeout_s, every_s=1.0, clock=self._clock)

    @override
    def fetch_log(self, handle: JobHandle, *, follow: bool = False) -> None:
        """Nothing is fetched: the job writes its log there itself."""

    @override
    def cancel(self, handle: JobHandle, *, grace_s: float = 30.0) -> None:
        """Signals the wrapper, which signals the program; at a second
        signal it kills the program and records that.
        """
        if not self._goes_on(handle) and not self._successor_is_coming(handle):
            return
        write_private(cancelled_word(JobPaths(Path(handle.job_dir))), "")  # prevents a next run
        for within_s in (grace_s, _RECORD_S):
            self._slurm.cancel(self._ids(handle), signal="TERM")
            if self._ends(handle, within_s):
                break
        else:
            self._slurm.cancel(self._ids(handle))
            if not self._ends(handle, _END_S):
                raise PlatformError(
                    f"Slurm still has the job {handle.job_id} as {self._ids(handle)[-1]}.",
                    hint="Its node may be slow to let go; see `squeue`, then cancel it again.",
                )
        ended = read_exit(Path(handle.exit_path))
        if ended is None or ended.time_limit:  # it had not started, or not its next run
            number = signal.SIGTERM
            now = utc_now()
            ended = ExitRecord(code=None, signal=number, started_at=now, ended_at=now)
            write_private(Path(handle.exit_path), ended.model_dump_json())

    def _goes_on(self, handle: JobHandle) -> bool:
        job = self._owned([handle]).get(handle.job_id)
        return job is not None and not job.over

    def _ends(self, handle: JobHandle, within_s: float) -> bool:
        job = self._owned([handle]).get(handle.job_id)
        if job is not None and job.waiting:  # nothing runs that could receive a signal
            self._slurm.cancel(self._ids(handle))

        def over() -> bool:
            self._slurm.expect_change()
            return not self._goes_on(handle)

        return comes_true(over, within_s=within_s, every_s=_LOOK_S, clock=self._clock)

    def _judged(
        self, handle: JobHandle, ended: ExitRecord | None, job: SlurmJob | None, until: float
    ) -> JobStatus:
        """How a job ended that left no exit record, or not a complete one: Slurm's state, or its
        message in the job's log, decides where it says more than that the job is over.
        """
        going = self._going(handle, ended, job)
        if going is not None:
            return going
        paths = JobPaths(Path(handle.job_dir))
        if _killed_for_memory(paths):
            return JobStatus.OUT_OF_MEMORY
        if job is not None and job.over and job_status(job) not in _SAYS_NO_MORE:
            return job_status(job)
        written = written_cause(
            paths, self._ids(handle)[-1].partition(".")[0], recorded=ended is not None
        )
        if written is not None:
            return written
        if ended is not None:
            return ended.status
        record = Path(handle.exit_path)  # it may not be visible here yet
        left_s = until - self._clock.monotonic()
        comes_true(record.exists, within_s=left_s, every_s=_LOOK_S, clock=self._clock)
        ended = read_exit(record)
        return JobStatus.FAILED if ended is None else ended.status

    def _going(
        self, handle: JobHandle, ended: ExitRecord | None, job: SlurmJob | None
    ) -> JobStatus | None:
        """The status of a job that runs or will run; None: it is over."""
        if job is not None and not job.over:
            settled = ended is not None and self._settled(ended, job)
            return None if settled else job_status(job)
        return JobStatus.PENDING if self._successor_is_coming(handle) else None

    def _settled(self, ended: ExitRecord, job: SlurmJob) -> bool:
        """Whether a job is judged although Slurm does not report it as over: a program ends before
        its job does, and only then is the job's state the cause of its end.
        """
        if (ended.stopped or ended.time_limit) and job.runs_on and "." not in job.id:
            return False  # it runs again
        age_s = self._clock.time() - ended.ended_at.timestamp()
        return not job.waiting and abs(age_s) >= _COMPLETES_S  # or clocks differ


def _exit_records(handles: Sequence[JobHandle]) -> Iterator[tuple[str, ExitRecord | None]]:
    """The exit records by our ids, without those that cannot be read: these jobs are unknown."""
    for handle in handles:
        try:
            yield handle.job_id, read_exit(Path(handle.exit_path))
        except PlatformUnavailable as error:
            _log.warning("the status of %s is not known: %s", handle.job_id, error.message)


@contextlib.contextmanager
def _refused_as_job(script: str = "") -> Iterator[None]:
    """Slurm's refusal of a job, with advice that names the job's flags instead of the swarm's
    keys.
    """
    try:
        yield
    except SubmitRejected as error:
        hint = f"{script} {advice_for_job(error.message)}".strip()
        raise SubmitRejected(error.message, hint=hint) from error


def _why_waiting(job: SlurmJob) -> str:
    why = explained(job.reason or job.state, job.id, OF_JOB)
    return f"Slurm will not run it ({why})" if job.hopeless else f"waits in the queue ({why})"


def cause_so_far(paths: JobPaths, slurm_id: str) -> JobStatus | None:
    """Why Slurm is ending a job, asked from within the job before it is over; None: it does not
    say. `slurm_id` is that of the job, or of the allocation that the step is in. Raises nothing.
    """
    try:
        if _killed_for_memory(paths):
            return JobStatus.OUT_OF_MEMORY
        written = written_cause(paths, slurm_id, recorded=True)
        if written is not None:
            return written
        end = Slurm().own_end(slurm_id)
        return JobStatus.PREEMPTED if end is not None and end.preempted else None
    except PlatformError:
        return None


def _own(handle: JobHandle, ids: Sequence[str], jobs: Mapping[str, SlurmJob]) -> SlurmJob | None:
    """The job as Slurm has it by these numbers. An allocation that was requeued numbers its steps
    anew: one of the same number may be another job's.
    """
    known = [
        jobs[one]
        for one in ids
        if one in jobs and ("." not in one or jobs[one].comment == job_name(handle.job_id))
    ]
    return next((one for one in known if not one.over), known[-1] if known else None)


_JOB_ENDS = {
    "COMPLETED": JobStatus.SUCCEEDED,
    "CANCELLED": JobStatus.CANCELLED,
    "PREEMPTED": JobStatus.PREEMPTED,
    "NODE_FAIL": JobStatus.LOST_NODE,
    "BOOT_FAIL": JobStatus.LOST_NODE,
    "TIMEOUT": JobStatus.TIMED_OUT,
    "DEADLINE": JobStatus.TIMED_OUT,
    "OUT_OF_MEMORY": JobStatus.OUT_OF_MEMORY,
}


def job_status(job: SlurmJob) -> JobStatus:
    """The state of a job that left no exit record."""
    if job.waiting:
        return JobStatus.PENDING
    if job.over:
        return _JOB_ENDS.get(job.state, JobStatus.FAILED)
    return JobStatus.RUNNING


def _killed_for_memory(paths: JobPaths) -> bool:
    """Whether Slurm wrote to the job's output that it was killed for its memory. Without cgroups
    that is its only sign: the state is FAILED. A step has no state once it is over.
    """
    return any(memory_kill(text) for text in (last_words(paths), read_tail(paths.srun_log)))


def _is_step(spec: ComputeSpec) -> bool:
    """Whether the job is a step. Attached jobs share the endpoint's allocation, unless they use
    `--mail-user`: Slurm sends mail about jobs only.
    """
    asked = spec.resources
    if asked.placement is None:
        return not asked.detached and asked.mail_user is None
    if asked.placement == "step" and asked.mail_user is not None:
        raise ConfigError(
            "Slurm sends no mail about a step.", hint="Use --placement job with --mail-user."
        )
    return asked.placement == "step"


def _submitted_id(handle: JobHandle) -> str:
    """The id that Slurm gave the submission: a job's or a step's."""
    return handle.platform_id if handle.step is None else f"{handle.platform_id}.{handle.step}"


def _handle(job_id: str, job_dir: str, slurm_id: str, spec: ComputeSpec | None = None) -> JobHandle:
    platform_id, _, step = slurm_id.partition(".")
    return job_handle("slurm", job_id, job_dir, platform_id, step=step or None, spec=spec)
