"""Hands a job to its platform. A submission may break off without an answer (a time-out, Ctrl-C, a
killed command): the job may run all the same, and stays pending until the platform surely has not
got it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path

from domyn_swarm.backends.protocols import ComputeBackend, ComputeSpec
from domyn_swarm.claims import claim, is_held, release
from domyn_swarm.errors import PlatformError, StateError, SubmissionUnknown, SwarmError, words_of
from domyn_swarm.jobs.worker_spec import JobResult
from domyn_swarm.logs import get_logger
from domyn_swarm.model import JobHandle, JobStatus, utc_now
from domyn_swarm.paths import JobPaths, write_private_once
from domyn_swarm.state import JobRecord, SwarmStore
from domyn_swarm.swarm.job_ends import before_submission

_log = get_logger(__name__)


def submit_recorded(
    store: SwarmStore,
    backend: ComputeBackend,
    record: JobRecord,
    compute: ComputeSpec,
    check: Callable[[Iterable[JobRecord]], None] | None = None,
) -> JobHandle:
    """Record the intent, then start the job, then record its handle. `check` is for
    `SwarmStore.create_job`.

    Raises:
        OutputExists, CheckpointBusy: as `check` has it; nothing was recorded, and nothing is left.
        SubmissionUnknown: it may run; the record is pending. Other `SwarmError`s: it does not, and
            is recorded as failed.
    """
    paths = JobPaths(Path(record.job_dir))
    with before_submission(paths):
        claim(paths.submitter)
        store.create_job(record, check)
    try:
        handle = _submitted(store, backend, record, compute)
        handle = handle.model_copy(update={"location": record.location})
        _keep_handle(store, record, handle)
    finally:
        release(paths.submitter)
    return handle


def _keep_handle(store: SwarmStore, record: JobRecord, handle: JobHandle) -> None:
    try:
        store.set_job_handle(record.job_id, handle)
    except StateError as error:  # its platform finds it by our id
        error.hint = f"{error.hint} {_may_run(record)}".strip()
        raise


def _submitted(
    store: SwarmStore, backend: ComputeBackend, record: JobRecord, compute: ComputeSpec
) -> JobHandle:
    try:
        return _asked(backend, compute)
    except SubmissionUnknown as error:
        found = None
        with contextlib.suppress(PlatformError):
            found = backend.find(record.job_id, record.job_dir)
        if found is None:
            error.hint = f"{error.hint} {_may_run(record)}".strip()
            raise
        _log.warning("%s It has the job %s all the same.", error.message, record.job_id)
        return found.model_copy(update={"swarm": record.swarm, "external_id": record.external_id})
    except SwarmError:
        store.set_job_status(record.job_id, JobStatus.FAILED)
        raise
    except BaseException:  # Ctrl-C, or an error that is no answer of the platform
        _log.warning("%s", _may_run(record))
        raise


def _asked(backend: ComputeBackend, compute: ComputeSpec) -> JobHandle:
    try:
        return backend.submit(compute)
    except OSError as error:  # before the platform had it, or after
        raise SubmissionUnknown(
            words_of(error, compute.job_dir), hint="Check that disk and the limits of this machine."
        ) from error


def _may_run(record: JobRecord) -> str:
    job_id = record.job_id
    return (
        f"The job {job_id} may have been submitted: see `domyn-swarm job status {job_id}`, end it "
        f"with `domyn-swarm job cancel {job_id}`."
    )


def give_up_unsubmitted(store: SwarmStore, backend: ComputeBackend, record: JobRecord) -> None:
    """Record a pending job as failed if its platform does not have it, no process submits it any
    more, and a submitted job must have appeared.
    """
    paths = JobPaths(Path(record.job_dir))
    age_s = (utc_now() - record.submitted_at).total_seconds()
    if age_s <= backend.appears_within_s or is_held(paths.submitter):
        return
    lost = JobResult(error="Its submission was interrupted, and the platform does not have it.")
    with contextlib.suppress(OSError):  # the folder may have been removed
        write_private_once(paths.result, lost.model_dump_json())
    store.set_job_status(record.job_id, JobStatus.FAILED)
