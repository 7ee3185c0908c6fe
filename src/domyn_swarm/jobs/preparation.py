"""Checks everything about a job that can be wrong, before anything is recorded or sent."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from domyn_swarm.batch.checkpoint.job_store import Asker, check_free, input_key
from domyn_swarm.batch.checkpoint.request_identity import JobIdentity
from domyn_swarm.batch.input.dataset import Dataset, TableDataset, check_columns
from domyn_swarm.batch.input.file_facts import InputFacts
from domyn_swarm.batch.input.row_keys import RowKeys, check_ids
from domyn_swarm.batch.inspection.settled import asks_again
from domyn_swarm.batch.output.manifest import JobFacts, without_secrets
from domyn_swarm.batch.output.output_plan import OutputPlan
from domyn_swarm.batch.run.asking import RetryPolicy
from domyn_swarm.batch.run.engine import BatchPlan
from domyn_swarm.batch.run.runner import RunPolicy
from domyn_swarm.batch.run.standing import FailureLimit
from domyn_swarm.batch.run.worker_processes import WorkPlan
from domyn_swarm.errors import ConfigError, NothingToRetry
from domyn_swarm.jobs.base import SwarmJob
from domyn_swarm.jobs.inputs import open_input, writer_of
from domyn_swarm.jobs.job_loading import load_job
from domyn_swarm.jobs.run_options import failure_limit
from domyn_swarm.jobs.worker_spec import JobSpec
from domyn_swarm.model import Dedup

_FIRST_ROWS = 16  # of which a job that can ask none is refused


@dataclass(frozen=True)
class Prepared:
    """A checked job: ready to run in this process, or to be submitted."""

    job: SwarmJob
    plan: BatchPlan

    @property
    def rows(self) -> int:
        """The number of rows of the job."""
        return self.plan.rows


def prepare(spec: JobSpec, facts: InputFacts | None = None, *, begun: bool = False) -> Prepared:
    """Check a job against its input and output. `facts`: recorded facts of their files; `begun`:
    it has been submitted before.

    Raises:
        ConfigError: the job class or a parameter is not usable.
        InvalidInput: the input cannot be read, lacks a column, or has null or duplicate ids.
        OutputExists: a file of another owner is at the path of the output.
    """
    prepared = make_plan(spec, facts)
    check_rows(prepared.job, prepared.plan)
    _check_output(prepared.plan, begun=begun)
    return prepared


def _check_output(plan: BatchPlan, *, begun: bool) -> None:
    plan.output.check(plan.dataset, plan.limit, begun=begun)


def check_submitted(spec: JobSpec, facts: InputFacts, *, begun: bool = False) -> Path | None:
    """All checks of a job that is being submitted. `begun`: not for the first time.

    Returns:
        The folder of its answers, which no other job may write at the same time; None: it keeps
            none.

    Raises:
        SwarmError: as `prepare`.
        CheckpointBusy: another job is sending the same rows now.
        NothingToRetry: it should send rows again, and there are none.
    """
    prepared = make_plan(spec, facts)
    plan = prepared.plan
    check_rows(prepared.job, plan)
    _check_retried(plan)
    _check_output(plan, begun=begun)
    if not spec.checkpointing:
        return None
    check_free(plan.folder)
    return plan.folder


def check_rows(job: SwarmJob, plan: BatchPlan) -> None:
    """The checks that read rows: the first ones, and all ids.

    Raises:
        ConfigError: the job can ask none of the first rows.
        InvalidInput: ids are null, or not unique.
    """
    keys = plan.output.keys
    limit = _FIRST_ROWS if plan.limit is None else min(_FIRST_ROWS, plan.limit)
    for batch in plan.dataset.batches(keys.columns, limit=limit):
        job.check_items(keys.items(batch))
    id_column = plan.output.keys.id_column
    if id_column is not None:
        check_ids(plan.dataset, id_column, limit=plan.limit)


def _check_retried(plan: BatchPlan) -> None:
    """Refuse to retry rows if there are none; reads the input up to the first such row."""
    if plan.again is None or (plan.folder.is_dir() and asks_again(plan)):
        return
    what = f"is {' or '.join(sorted(plan.again))}" if plan.again else "has failed"
    raise NothingToRetry(
        f"There is nothing to retry: no row of {plan.output.job.name} {what}. Nothing was started.",
        hint="`domyn-swarm job failures` shows its rows by class; --class NAME sends those of one "
        "again, and `domyn-swarm job resume` those that were never sent.",
    )


def make_plan(spec: JobSpec, facts: InputFacts | None = None) -> Prepared:
    """The job and its plan, after the checks that cost nothing.

    Raises:
        ConfigError: the job class or a parameter is not usable.
        InvalidInput: the input cannot be read, or lacks a column.
    """
    job = _load_for(spec)
    return _prepared(spec, job, open_input(spec, job.lines, facts), facts)


def load_plan(spec: JobSpec, dataset: Dataset) -> Prepared:
    """The job and its plan over rows.

    Raises:
        ConfigError: the job class or a parameter is not usable.
        InvalidInput: the rows lack a column.
    """
    return _prepared(spec, _load_for(spec), dataset)


def _prepared(
    spec: JobSpec, job: SwarmJob, dataset: Dataset, facts: InputFacts | None = None
) -> Prepared:
    first = _as_first_asked(spec, job)
    return Prepared(job, plan_of(spec, job, dataset, first=first, facts=facts))


def plan_of(
    spec: JobSpec,
    job: SwarmJob,
    dataset: Dataset,
    *,
    first: SwarmJob | None = None,
    facts: InputFacts | None = None,
) -> BatchPlan:
    """The plan of a job over rows, after the checks that cost nothing.

    Args:
        spec: the other settings.
        job: the job of this run.
        dataset: the rows.
        first: the job with its original parameters, if this run has others.
        facts: recorded facts of the files of an existing output.

    Raises:
        ConfigError: a parameter is not usable.
        InvalidInput: the input lacks a column.
    """
    spec = filled(spec, job)
    keys, work = _work_of(spec, job)
    if not dataset.rows and not dataset.schema.names:  # as libraries return empty selections
        dataset = TableDataset.without_rows(keys.columns)
    job.check_columns(dataset.schema.names)
    check_columns(dataset, keys.input_columns, "--input-column")
    if keys.id_column is not None:
        check_columns(dataset, [keys.id_column], "--id-column")
    _check_sent(job)
    check_dedup(spec.dedup, job)
    identity = identity_of(spec, first or job)
    output = OutputPlan(
        target=spec.output,
        mode=spec.output_mode or "append",
        keys=keys,
        schema=job.schema(),
        job=_facts(spec, identity),
        input_path=spec.input,
        sharded=spec.shard_output,
        write=writer_of(spec),
        lines=None if job.lines is None else job.lines.form,
        infer_types=spec.infer_types,
        recursive=spec.recursive,
        overwrite=spec.overwrite,
        facts=InputFacts() if facts is None else facts,
    )
    return BatchPlan(
        dataset=dataset,
        output=output,
        identity=identity,
        checkpoint_root=Path(spec.checkpoint_root),
        job_key=spec.job_key or input_key(spec.input),
        asker=Asker(spec.job_id, spec.name, spec.external_id, spec.input),
        work=work,
        limit=spec.limit,
        resume=spec.resume,
        again=frozenset(spec.retry_classes) if spec.retry_failed else None,
        no_others=spec.retry_failed,
        dedup=spec.dedup is not None,
        sent_columns=job.sent_columns,
        override=spec.override,
    )


def _check_sent(job: SwarmJob) -> None:
    unknown = [name for name in job.sent_columns if name not in job.input_columns]
    if unknown:
        raise ConfigError(
            f"sent_columns of {job.label} names {unknown[0]!r}, which is no input column.",
            hint=f"Its input columns are: {', '.join(job.input_columns)}.",
        )


def check_dedup(dedup: Dedup | None, job: SwarmJob) -> None:
    """Refuse to share answers that are sampled, unless that is requested.

    Raises:
        ConfigError: with `greedy`, the job may send another temperature than 0.
    """
    if dedup != "greedy" or job.is_greedy:
        return
    raise ConfigError(
        f"--dedup greedy: {job.label} may send a temperature other than 0, so that equal rows "
        "would get different answers.",
        hint="Set temperature to 0 (--job-kwargs), or let equal rows share one answer that was "
        "drawn by chance: --dedup always.",
    )


def load_work(spec: JobSpec) -> tuple[SwarmJob, RowKeys, WorkPlan]:
    """The job and the settings of its workers; the input is not read.

    Raises:
        ConfigError: the job class or a parameter is not usable.
    """
    job = _load_for(spec)
    return job, *_work_of(filled(spec, job), job)


def _work_of(spec: JobSpec, job: SwarmJob) -> tuple[RowKeys, WorkPlan]:
    concurrency = spec.max_concurrency if isinstance(spec.max_concurrency, int) else None
    retry = RetryPolicy()
    work = WorkPlan(
        run_policy=RunPolicy(
            concurrency=concurrency,
            rows_per_call=job.rows_per_call,
            accept=spec.accept,
            failure_limit=_failure_limit(spec.max_failures),
        ),
        retry_policy=RetryPolicy(
            retries=retry.retries if spec.retries is None else spec.retries,
            timeout_s=spec.timeout_s or retry.timeout_s,
            timeout_retries=(
                retry.timeout_retries if spec.timeout_retries is None else spec.timeout_retries
            ),
        ),
        encode=job.encoder(),
        sync_rows=spec.checkpoint_interval or WorkPlan.sync_rows,
        sync_s=spec.checkpoint_seconds or WorkPlan.sync_s,
    )
    return RowKeys(
        tuple(job.input_columns), spec.id_column, spec.fingerprint, as_request=job.as_request
    ), work


def _failure_limit(text: str | None) -> FailureLimit:
    return FailureLimit() if text is None else FailureLimit(*failure_limit(text))


def filled(spec: JobSpec, job: SwarmJob) -> JobSpec:
    """The spec with the job's own options where the submitter set none."""
    options = job.options.model_dump(exclude_none=True, exclude={"name", "keep"})
    left = {name: value for name, value in options.items() if getattr(spec, name) is None}
    return spec.model_copy(update=left)


def _as_first_asked(spec: JobSpec, job: SwarmJob) -> SwarmJob:
    """The job without the overrides of a later run: it identifies the checkpoint."""
    if not spec.override:
        return job
    first = _load(spec, spec.job_kwargs)
    if first.schema().described() != job.schema().described():
        raise ConfigError(
            f"{', '.join(spec.override)} would change the output's columns.",
            hint="Failed rows can be sent again with other parameters, not for other columns.",
        )
    return first


def _load_for(spec: JobSpec) -> SwarmJob:
    """The job with the parameters of this run."""
    return _load(spec, {**spec.job_kwargs, **spec.override})


def _load(spec: JobSpec, job_kwargs: dict[str, Any]) -> SwarmJob:
    return load_job(
        spec.job,
        job_kwargs,
        input_columns=spec.input_columns,
        output_columns=spec.output_columns,
        import_path=spec.import_path,
        source=spec.job_source,
    )


def identity_of(spec: JobSpec, job: SwarmJob) -> JobIdentity:
    """The fields on which answers depend: the request side only."""
    return JobIdentity(
        {
            "job": job.label,
            **job.described(),
            "model": spec.model,
            "revision": spec.revision,
            "id_column": filled(spec, job).id_column,
            "tag": spec.checkpoint_tag,
        }
    )


def _facts(spec: JobSpec, identity: JobIdentity) -> JobFacts:
    return JobFacts(
        id=spec.job_id,
        name=spec.name,
        job_class=spec.job,
        identity=identity.digest,
        identity_fields=without_secrets(identity.fields),
        model=spec.model,
        revision=spec.revision,
    )
