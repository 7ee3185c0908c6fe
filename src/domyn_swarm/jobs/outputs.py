"""The output of a job that was submitted, found by what the job was told: read, or checked."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from domyn_swarm.batch.manifest import Manifest
from domyn_swarm.batch.remote_output import place_of
from domyn_swarm.batch.results import Results, settled_results, written_results
from domyn_swarm.batch.verification import OutputVerification, verify
from domyn_swarm.batch.written_files import Writer
from domyn_swarm.errors import JobError
from domyn_swarm.jobs.preparation import identity_of, load_work, make_plan
from domyn_swarm.jobs.spec import JobSpec
from domyn_swarm.model import JobStatus


def verify_output(spec: JobSpec) -> OutputVerification:
    """Check a job's output against its manifest and its input.

    Raises:
        SwarmError: there is no manifest, or the job or its input cannot be read.
    """
    return verify(make_plan(spec).plan)


@contextlib.contextmanager
def opened_results(spec: JobSpec, status: JobStatus, *, partial: bool) -> Iterator[Results]:
    """A job's output, or with `partial` the rows that are settled so far.

    Args:
        spec: the job.
        status: what it is doing. When it came to its end, its output may have been replaced since
            by the same job under a later id.
        partial: read the checkpoint, not the output.

    Raises:
        JobError: the job has not published, its output is gone, or there is no checkpoint.
        SwarmError: what has to be read cannot be.
    """
    if partial:
        with settled_results(make_plan(spec).plan) as results:
            yield results
        return
    finished = status in (JobStatus.SUCCEEDED, JobStatus.PARTIAL)
    place = place_of(spec.output, sharded=spec.shard_output, writer=Writer(""))
    manifest = place.manifest()
    if manifest is None or not _is_of(manifest, spec, finished=finished):
        what = (
            f"has no output at {spec.output} any more"
            if finished
            else "has not published its output"
        )
        raise JobError(
            f"The job {spec.job_id} {what}.",
            hint="--partial (in Python partial=True) reads what is settled from its checkpoint.",
        )
    yield written_results(manifest, place)


def _is_of(manifest: Manifest, spec: JobSpec, *, finished: bool) -> bool:
    if manifest.job.id == spec.job_id:
        return True
    if not finished or manifest.input.path != spec.input:
        return False
    job, _, _ = load_work(spec)
    return manifest.job.identity == identity_of(spec, job).digest
