"""Hands a job to its platform. A submission may break off without an answer (a time-out, Ctrl-C, a
killed command): the job may run all the same, and stays pending until the platform surely has not
got it.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from domyn_swarm.backends.base import ComputeBackend, ComputeSpec
from domyn_swarm.claims import claim, is_held, release
from domyn_swarm.errors import PlatformError, SubmissionUnknown, SwarmError
from domyn_swarm.jobs.spec import JobResult
from domyn_swarm.logs import get_logger
from domyn_swarm.model import JobHandle, JobStatus, utc_now
from domyn_swarm.paths import JobPaths, write_private_once
from domyn_swarm.state import JobRecord, SwarmStore

_log = get_logger(__name__)


def submit_recorded(
    store: SwarmStore, backend: ComputeBackend, record: JobRecord, compute: ComputeSpec
) -> JobHandle:
    """Record the intent, then start the job, then record how it is found again.

    Raises:
        SubmissionUnknown: it may run; the record is pending. Other `SwarmError`s: it does not, and
            is recorded as failed.
    """
    submitter = JobPaths(Path(record.job_dir)).submitter
    try:
        claim(submitter)
        store.create_job(record)
        handle = _submitted(store, backend, record, compute)
        handle = handle.model_copy(update={"location": record.location})
        store.set_job_handle(record.job_id, handle)
    finally:
        release(submitter)
    return handle


def _submitted(
    store: SwarmStore, backend: ComputeBackend, record: JobRecord, compute: ComputeSpec
) -> JobHandle:
    try:
        return backend.submit(compute)
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
    except BaseException:  # Ctrl-C, or something that is no answer of the platform's
        _log.warning("%s", _may_run(record))
        raise


def _may_run(record: JobRecord) -> str:
    job_id = record.job_id
    return (
        f"The job {job_id} may have been submitted: see `domyn-swarm job status {job_id}`, end it "
        f"with `domyn-swarm job cancel {job_id}`."
    )


def give_up_unsubmitted(store: SwarmStore, backend: ComputeBackend, record: JobRecord) -> None:
    """Record that a pending job, which its platform does not have, has failed: once nobody submits
    it any more, and what was submitted must have appeared.
    """
    paths = JobPaths(Path(record.job_dir))
    age_s = (utc_now() - record.submitted_at).total_seconds()
    if age_s <= backend.appears_within_s or is_held(paths.submitter):
        return
    lost = JobResult(error="Its submission broke off, and the platform does not have it.")
    with contextlib.suppress(OSError):  # the folder may be gone
        write_private_once(paths.result, lost.model_dump_json())
    store.set_job_status(record.job_id, JobStatus.FAILED)
