"""Jobs of a swarm, or of any endpoint: checks, records, submits and finds them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from domyn_swarm import __version__
from domyn_swarm.backends.job_end import read_exit
from domyn_swarm.backends.platforms import compute_backend
from domyn_swarm.backends.protocols import ComputeBackend, ComputeSpec
from domyn_swarm.config.environment import ray_address_of_environment
from domyn_swarm.errors import ConfigError, PlatformError, PlatformUnavailable, StateError
from domyn_swarm.jobs.run_options import RunOptions, given_options
from domyn_swarm.jobs.worker_spec import JobSpec, new_job_id
from domyn_swarm.logs import get_logger
from domyn_swarm.model import JobHandle, JobStatus, Reach, utc_now
from domyn_swarm.paths import JobPaths, checkpoints_dir, expanded, home, private_dir, write_private
from domyn_swarm.probing import comes_true
from domyn_swarm.state import JobRecord, SwarmStore
from domyn_swarm.swarm.factory import LiveSwarm
from domyn_swarm.swarm.job_ends import before_submission, limits_kept, spec_of, status_by_files
from domyn_swarm.swarm.job_records import (
    check_budget,
    check_down_after,
    check_others,
    compute_spec,
    end_after,
    endpoint_access,
    keep_key,
    new_record,
    request_notification,
    script_job,
    swarm_access,
)
from domyn_swarm.swarm.job_request import JobChanges, JobRequest, ScriptRequest
from domyn_swarm.swarm.submission import give_up_unsubmitted, submit_recorded
from domyn_swarm.swarm.whereabouts import is_elsewhere, is_here, place_of, reach, refuse_elsewhere

if TYPE_CHECKING:
    from domyn_swarm.jobs.preparation import Prepared

_log = get_logger(__name__)

_LOOK_S = 0.5


class JobSubmitter:
    """Submits jobs and follows them through their compute backend."""

    def __init__(self, store: SwarmStore) -> None:
        self._store = store

    def submit(self, request: JobRequest, swarm: LiveSwarm | None) -> JobHandle:
        """Check everything, record PENDING, start the worker.

        Raises:
            ConfigError, InvalidInput, OutputExists: found before anything was recorded; also an
                output that a job writes which is submitted at the same time.
            JobError: its files cannot be written; likewise.
            CheckpointBusy: another job asks the same rows, or waits to; likewise.
            StateError: the swarm has no endpoint.
            SubmissionUnknown: the platform gave no answer; the job is recorded as pending.
            PlatformError: the worker could not be started; the job is recorded as failed.
        """
        if request.down_after:
            check_down_after(swarm)
        spec, paths = self._spec(request, swarm)
        handle = self._start(spec, paths, swarm, request.external_id, begun=False)
        if request.down_after and swarm is not None:
            end_after(swarm, handle)
        return handle

    def check(self, request: JobRequest, swarm: LiveSwarm | None) -> tuple[JobSpec, Prepared]:
        """Check everything that `submit` checks, but write nothing. Raises as `submit`.

        The key file that the spec of an endpoint that is not ours names does not exist.
        """
        from domyn_swarm.jobs.preparation import prepare

        if request.down_after:
            check_down_after(swarm)
        spec, paths = self._spec(request, swarm)
        prepared = prepare(spec)
        self._checked_compute(spec, paths, swarm, request.external_id)
        return spec, prepared

    def submit_script(self, request: ScriptRequest, swarm: LiveSwarm) -> JobHandle:
        """Run a user's program beside a swarm, with the endpoint's address in its environment.

        Raises:
            ConfigError: there is no such program, or it cannot be run.
            StateError: the swarm has no endpoint.
            PlatformError: it could not be started; the job is recorded as failed.
        """
        if request.down_after:
            check_down_after(swarm)
        record, compute = script_job(request, swarm, new_job_id())
        self._backend(record).check(compute)
        with before_submission(JobPaths(Path(record.job_dir))):
            request_notification(record, swarm)
        handle = submit_recorded(self._store, self._backend(record), record, compute)
        if request.down_after:
            end_after(swarm, handle)
        return handle

    def resubmit(
        self,
        record: JobRecord,
        swarm: LiveSwarm | None,
        changes: JobChanges,
        *,
        retry_failed: bool = False,
    ) -> JobHandle:
        """Submit the same job again, under an id of its own; settled rows are not sent again.

        With `retry_failed` the failed rows are, or those of `changes.retry_classes`, with the
        parameters in `changes.override`, which leave the job's identity unchanged.

        Raises:
            ConfigError: the swarm serves another model than the job asked.
            NothingToRetry: with `retry_failed`, no row is to be asked again.
            CheckpointBusy: another job asks the same rows now.
            StateError: the job's files are gone, or it keeps no checkpoint.
        """
        if not record.status.final:
            place = f" on {place_of(record)}" if is_elsewhere(record) else ""
            raise StateError(
                f"The job {record.job_id} is {record.status.value}{place}.",
                hint="Wait for its end, or cancel it first.",
            )
        known = spec_of(record)
        for limit in limits_kept(record.status, known.resources, changes.resources):
            _log.warning("The job %s %s", record.job_id, limit)
        if retry_failed and not known.checkpointing:
            raise StateError(
                f"The job {record.job_id} kept no checkpoint.", hint="Submit it again instead."
            )
        where = {} if swarm is None else swarm_access(swarm)
        if where and where["model"] != known.model:
            raise ConfigError(
                f"The swarm serves {where['model']}, but the job asked {known.model}.",
                hint="Bring up a swarm with that model, or submit a new job.",
            )
        job_id = new_job_id()
        again = {"job_id": job_id, "resume": True, "retry_failed": retry_failed}
        changed = changes.of(known.resources)
        paths = JobPaths(home() / "jobs" / job_id) if swarm is None else swarm.paths.job(job_id)
        spec = JobSpec.model_validate({**known.model_dump(), **changed, **where, **again})
        return self._start(spec, paths, swarm, record.external_id, begun=True)

    def _start(
        self, spec: JobSpec, paths: JobPaths, swarm: LiveSwarm | None, name: str | None, begun: bool
    ) -> JobHandle:
        from domyn_swarm.batch.input.file_facts import InputFacts
        from domyn_swarm.jobs.preparation import check_submitted

        facts = InputFacts()
        answers = check_submitted(spec, facts, begun=begun)
        check = check_others(spec.output, answers, self._store.jobs(), self.refresh)
        record, compute = self._checked_compute(spec, paths, swarm, name)
        with before_submission(paths):
            private_dir(paths.root)
            keep_key(spec, paths)
            write_private(paths.spec, spec.model_dump_json(indent=2))
            facts.save(paths.input_facts)
            if answers is not None:
                write_private(paths.asks, str(answers))
            request_notification(record, swarm)
        return submit_recorded(self._store, self._backend(record), record, compute, check)

    def _checked_compute(
        self, spec: JobSpec, paths: JobPaths, swarm: LiveSwarm | None, external_id: str | None
    ) -> tuple[JobRecord, ComputeSpec]:
        """The records of a checked job that the platform can run."""
        check_budget(spec.resources, swarm)
        record = new_record(spec, paths, swarm, external_id)
        files = (spec.input, spec.output, spec.checkpoint_root)
        compute = compute_spec(record, spec.resources, swarm, files)
        # A retry of failed rows would also send rows that failed in its own runs.
        once = spec.resources.continues is False or spec.retry_failed or not spec.checkpointing
        compute = compute.model_copy(update={"continues": not once})
        self._backend(record).check(compute)
        return record, compute

    def _spec(self, request: JobRequest, swarm: LiveSwarm | None) -> tuple[JobSpec, JobPaths]:
        from domyn_swarm.batch.checkpoint.job_store import input_key
        from domyn_swarm.jobs.job_loading import Located, import_path_of, located

        if request.job_source:
            found = Located(request.job, import_path_of("", request.job_kwargs))
        else:
            found = located(request.job, request.job_kwargs, request.import_folder)
        job_id = new_job_id()
        if swarm is not None:
            paths = swarm.paths.job(job_id)
            where = swarm_access(swarm)
        else:
            paths = JobPaths(home() / "jobs" / job_id)
            where = endpoint_access(request, paths)
        asked = request.model_dump(
            include={*RunOptions.field_names(), "job_source", "job_kwargs", "resources"}
        )
        checkpoint_root = request.checkpoint_dir or checkpoints_dir()
        if request.data_backend == "ray":  # the worker's environment may differ
            asked["ray_address"] = request.ray_address or ray_address_of_environment()
        spec = given_options(
            JobSpec,
            {
                **asked,
                **where,
                "job_id": job_id,
                "job": found.reference,
                "name": request.name or found.reference.rpartition(":")[2],
                "import_path": found.import_path,
                "input": _absolute(request.input),
                "output": _absolute(request.output),
                "job_key": input_key(_absolute(request.input)),
                "checkpoint_root": str(expanded(checkpoint_root).absolute()),
                "min_version": __version__,
            },
            "The job's option",
        )
        return spec, paths

    # -- after the submission ---------------------------------------------------------------------

    def refresh(self, record: JobRecord) -> JobRecord:
        """The record with the job's present status, from its platform.

        Raises:
            PlatformError: whether the platform has it at all cannot be asked.
        """
        return self._asked([self._look_for(record)])[0]

    def refresh_all(self, records: Sequence[JobRecord]) -> list[JobRecord]:
        """As `refresh` for each of them, with one query per platform. A job that cannot be asked
        for now keeps its last known status.
        """
        found = []
        for one in records:
            try:
                found.append(self._look_for(one))
            except PlatformError as error:
                _log.warning("the status of %s is not known: %s", one.job_id, error.message)
                found.append(one)
        return self._asked(found)

    def _asked(self, records: Sequence[JobRecord]) -> list[JobRecord]:
        asked: dict[str, list[JobHandle]] = {}
        for one in records:
            if one.handle is not None and not one.status.final and is_here(one):
                asked.setdefault(one.platform, []).append(one.handle)
        known: dict[str, JobStatus] = {}
        for platform, handles in asked.items():
            known |= compute_backend(platform).probe_all(handles)
        return [
            self._settle(one, known[one.job_id]) if one.job_id in known else one for one in records
        ]

    def recall(self, record: JobRecord) -> JobRecord:
        """The record, completed from the job's own files.

        Further sources are asked only if that is cheap, or necessary: this machine about its own
        processes, and a scheduler about a job that did not finish, since it may have ended it.
        """
        handle = record.handle
        if record.status.final or (handle is not None and handle.process is not None):
            return self.refresh(record)
        paths = JobPaths(Path(record.job_dir))
        try:
            ended = read_exit(paths.exit)
        except PlatformUnavailable:  # `refresh` logs it, and asks whom else it can
            return self.refresh(record)
        if ended is not None:
            is_known = ended.conclusive
            return self._settle(record, ended.status) if is_known else self.refresh(record)
        begun = record.status is JobStatus.PENDING and paths.progress.exists()
        if begun and paths.runs.exists():  # or it waits for its next run
            return self.refresh(record)
        return self._settle(record, JobStatus.RUNNING) if begun else record

    def _look_for(self, record: JobRecord) -> JobRecord:
        """Search for a job without a handle: its submitter still runs, or died before the platform
        had the job, or after.
        """
        if record.status.final:
            return record
        try:
            where = reach(record)
        except PlatformError:
            if record.handle is None:
                raise
            return record
        if where is not Reach.HERE:
            return self._settle(record, status_by_files(record, where))
        if record.handle is not None:
            return record
        found = self._backend(record).find(record.job_id, record.job_dir)
        if found is not None:
            known = {
                "swarm": record.swarm,
                "external_id": record.external_id,
                "location": record.location,
            }
            self._store.set_job_handle(record.job_id, found.model_copy(update=known))
        else:
            give_up_unsubmitted(self._store, self._backend(record), record)
        return self._store.job(record.job_id)

    def wait(self, record: JobRecord, *, timeout_s: float | None) -> JobRecord:
        """Wait until the job has ended or the time is up."""
        record = self._await(
            record, lambda one: one.handle is not None or one.status.final, timeout_s
        )
        if record.status.final or record.handle is None:
            return record
        if is_elsewhere(record):
            return self._await(record, lambda one: one.status.final, timeout_s)  # by its files
        try:
            status = self._backend(record).wait(record.handle, timeout_s=timeout_s)
        except PlatformUnavailable:  # `refresh` logs it; the job keeps its status
            if timeout_s is None:
                raise
            return record
        return self._settle(record, status)

    def _await(
        self, record: JobRecord, condition: Callable[[JobRecord], bool], timeout_s: float | None
    ) -> JobRecord:
        """The record once the condition holds, or the time is up."""
        seen = [record]

        def look() -> bool:
            seen.append(self.refresh(seen[-1]))
            return condition(seen[-1])

        comes_true(look, within_s=math.inf if timeout_s is None else timeout_s, every_s=_LOOK_S)
        return seen[-1]

    def fetch_log(self, job_id: str, *, follow: bool = False) -> None:
        """Make a job's output available in its log file.

        Raises:
            JobNotFound: there is no such job.
            PlatformError: the platform has it and does not return it.
        """
        record = self._store.job(job_id)
        if record.handle is not None and not record.status.final and not is_elsewhere(record):
            self._backend(record).fetch_log(record.handle, follow=follow)

    def cancel(self, record: JobRecord) -> JobRecord:
        """End this job only; its settled rows are kept.

        Raises:
            RunsElsewhere: it can only be ended from another host or cluster.
            PlatformError: it still runs, or whether it was submitted at all is not known yet.
        """
        record = self.refresh(record)
        if record.status.final:
            return record
        forget = f"`domyn-swarm job cancel {record.job_id} --forget` writes it off"
        refuse_elsewhere(record, "end it", forget)
        if record.handle is None:
            raise PlatformUnavailable(
                f"The platform does not show the job {record.job_id} yet, and may have it.",
                hint=f"Try again in a while; see `domyn-swarm job status {record.job_id}`.",
            )
        self._backend(record).cancel(record.handle)
        return self.refresh(record)

    def _backend(self, record: JobRecord) -> ComputeBackend:
        return compute_backend(record.platform)

    def _settle(self, record: JobRecord, status: JobStatus) -> JobRecord:
        if status is record.status:
            return record
        if status.final and record.handle is not None:
            with contextlib.suppress(ConfigError, PlatformError):  # it has the complete log now
                self._backend(record).fetch_log(record.handle)
        ended = read_exit(JobPaths(Path(record.job_dir)).exit)
        self._store.set_job_status(
            record.job_id,
            status,
            exit_code=None if ended is None else ended.code,
            ended_at=(ended.ended_at if ended else utc_now()) if status.final else None,
        )
        return self._store.job(record.job_id)


def _absolute(path: str) -> str:
    """An absolute path; `~` as in a shell, which does not expand it in `--input=~/x.csv`."""
    return path if "://" in path else str(expanded(path).absolute())
