"""`JobService`: every operation on jobs, once, without printing."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from domyn_swarm.errors import PlatformError
from domyn_swarm.model import JobHandle, JobStatus
from domyn_swarm.services.requests import (
    JobChanges,
    JobFailures,
    JobRequest,
    JobResults,
    ScriptRequest,
)
from domyn_swarm.services.swarms import SwarmService
from domyn_swarm.state import JobRecord, SwarmStore
from domyn_swarm.swarm.job_ends import spec_of
from domyn_swarm.swarm.lifecycle import SwarmLifecycle
from domyn_swarm.swarm.pruning import write_off_job
from domyn_swarm.swarm.snapshot import JobSnapshot
from domyn_swarm.swarm.submitter import JobSubmitter
from domyn_swarm.swarm.survey import (
    asked_snapshots,
    job_snapshot,
    take_snapshot,
    with_what_it_asks,
)

if TYPE_CHECKING:
    import pyarrow as pa

    from domyn_swarm.batch.inspection.results import Results
    from domyn_swarm.batch.inspection.verification import OutputVerification
    from domyn_swarm.jobs.dry_run import DryRun
    from domyn_swarm.jobs.forecasting import JobForecast
    from domyn_swarm.jobs.preview import Preview
    from domyn_swarm.jobs.trial import Trial
    from domyn_swarm.services.report_records import JobReport
    from domyn_swarm.services.reports import GatheredReport
    from domyn_swarm.swarm.factory import LiveSwarm

JobRef = str | JobHandle
_PROGRESS_EVERY_S = 0.5


class JobService:
    """The operations that commands, the live view and the SDK use. A job is named by id, external
    id or handle.
    """

    def __init__(self, store: SwarmStore | None = None) -> None:
        self._store = store or SwarmStore.open()
        self._submitter = JobSubmitter(self._store)

    def submit(self, request: JobRequest) -> JobHandle:
        """Submit a job to its swarm (the only live one if none is named), or to an endpoint.

        Raises:
            SwarmError: something is wrong; see `JobSubmitter.submit`. Nothing was asked.
        """
        return self._submitter.submit(request, self._swarm_of(request))

    def dry_run(self, request: JobRequest) -> DryRun:
        """Check everything that `submit` checks and send the first row once, from this process;
        leaves no files.

        Raises:
            SwarmError: as `submit`; nothing was asked.
            PlatformUnavailable: the endpoint does not answer.
            JobError: the row did not end in time.
        """
        from domyn_swarm.jobs.dry_run import dry_run

        trial, _ = self._trial(request)
        return dry_run(trial)

    def preview(
        self, request: JobRequest, notice: Callable[[str], None], *, rows: int = 10
    ) -> Preview:
        """Check everything that `submit` checks and send the first rows from this process. Their
        answers are kept, and the submitted job uses them.

        Raises:
            SwarmError: as `submit`, before a row was sent; or the run cannot continue, and its
                answers so far are kept.
        """
        from domyn_swarm.jobs.preview import preview

        trial, _ = self._trial(request)
        return preview(trial, notice, rows=rows)

    def forecast(
        self, request: JobRequest, notice: Callable[[str], None], *, rows: int | None = None
    ) -> JobForecast:
        """Check everything that `submit` checks and send a sample of the rows from this process;
        estimate what the other rows take. The answers are kept, and the submitted job uses them. A
        scheduler is asked when it would start more replicas.

        Args:
            request: the job.
            notice: receives the messages of the run.
            rows: size of the sample; None: enough to keep the endpoint busy for a while.

        Raises:
            SwarmError: as `submit`, before a row was sent; or the run cannot continue, and its
                answers so far are kept.
        """
        from domyn_swarm.jobs.forecasting import Fleet, forecast, with_starts

        trial, swarm = self._trial(request)
        if swarm is None:
            return forecast(trial, notice, fleet=Fleet(), rows=rows)
        layout = swarm.plan.layout
        serving = take_snapshot(swarm).replicas_ready or layout.replicas
        fleet = Fleet(serving, layout.gpus_per_replica)
        found = forecast(trial, notice, fleet=fleet, rows=rows)
        counts = [one.replicas for one in found.choices]
        return with_starts(found, SwarmService(self._store).starts(swarm, counts))

    def _trial(self, request: JobRequest) -> tuple[Trial, LiveSwarm | None]:
        """The checked job, whose rows are sent from here, and its swarm. Nothing is written: no
        file contains the key of an endpoint that is not ours.
        """
        from domyn_swarm.config.environment import key_of_environment
        from domyn_swarm.jobs.trial import Trial

        swarm = self._swarm_of(request)
        spec, prepared = self._submitter.check(request, swarm)
        if swarm is not None:
            return Trial(spec, prepared, swarm=swarm.record.name), swarm
        spec = spec.model_copy(update={"api_key_file": None})
        return Trial(spec, prepared, key=key_of_environment()), None

    def _swarm_of(self, request: JobRequest) -> LiveSwarm | None:
        if request.endpoint is not None:
            return None
        name = request.swarm or SwarmService(self._store).only_live()
        return SwarmLifecycle(self._store).attach(name)

    def submit_script(self, request: ScriptRequest) -> JobHandle:
        """Run a program beside a swarm (the only live one if none is named).

        Raises:
            SwarmError: something is wrong; nothing was started.
        """
        name = request.swarm or SwarmService(self._store).only_live()
        return self._submitter.submit_script(request, SwarmLifecycle(self._store).attach(name))

    def status(self, ref: JobRef, *, refresh: bool = True) -> JobSnapshot:
        """A job's present state; without `refresh` only from its record and its own files.

        Raises:
            JobNotFound: there is none of that id.
        """
        record = self._record(ref)
        seen = self._submitter.refresh(record) if refresh else self._submitter.recall(record)
        shown = asked_snapshots([seen])[0] if refresh else job_snapshot(seen)
        return with_what_it_asks(shown, seen)

    def handle(self, ref: JobRef) -> JobHandle | None:
        """The handle of a job; None: its platform has not answered its submission yet.

        Raises:
            JobNotFound: there is none of that id.
            PlatformError: its platform cannot be asked whether it has the job.
        """
        record = self._record(ref)
        return record.handle or self._submitter.refresh(record).handle

    def list(
        self, swarm: str | None = None, *, refresh: bool = True, newest: int | None = None
    ) -> list[JobSnapshot]:
        """All jobs, or those of one swarm, the newest first; the scheduler is asked once for all,
        and without `refresh` not at all. With `newest` only that many are read.
        """
        jobs = self._store.jobs(swarm, newest=newest)[::-1]
        if refresh:
            return asked_snapshots(self._submitter.refresh_all(jobs))
        return [job_snapshot(self._submitter.recall(job)) for job in jobs]

    def current_first(self, jobs: Sequence[JobSnapshot]) -> Sequence[JobSnapshot]:
        """Jobs in the order for people: those of live swarms first, and the newest last."""
        began = {swarm.name: swarm.created_at for swarm in self._store.swarms()}

        def order(job: JobSnapshot) -> tuple[bool, datetime]:
            live = job.swarm in began and job.submitted_at >= began[job.swarm]
            return not live, job.submitted_at

        return sorted(jobs, key=order)

    def count(self, swarm: str | None = None) -> int:
        """The number of jobs, or of those of one swarm."""
        return self._store.count_jobs(swarm)

    def wait(
        self,
        ref: JobRef,
        *,
        timeout_s: float | None = None,
        on_progress: Callable[[JobSnapshot], None] | None = None,
    ) -> JobSnapshot:
        """Wait until the job has ended, or the time is up; report its progress meanwhile."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        record = self._record(ref)
        while True:
            left_s = _PROGRESS_EVERY_S
            if deadline is not None:
                left_s = min(left_s, max(0.0, deadline - time.monotonic()))
            record = self._submitter.wait(record, timeout_s=left_s)
            waits = record.status is JobStatus.PENDING
            seen = asked_snapshots([record])[0] if waits else job_snapshot(record)
            if on_progress is not None:
                on_progress(seen)
            if record.status.final or (deadline is not None and time.monotonic() >= deadline):
                return seen

    def cancel(self, ref: JobRef, *, forget: bool = False) -> JobSnapshot:
        """Stop this job only; settled rows are kept.

        With `forget` nothing is stopped: a job that cannot be asked, because its host or cluster no
        longer exists, is recorded as failed.

        Raises:
            RunsElsewhere: it can only be stopped from another host or cluster.
            PlatformError: it still runs.
            StateError: with `forget`, it can be asked from here.
        """
        record = self._record(ref)
        if forget:
            with contextlib.suppress(PlatformError):  # its files may show how it ended
                record = self._submitter.refresh(record)
            return job_snapshot(write_off_job(self._store, record))
        return job_snapshot(self._submitter.cancel(record), asked=True)

    def resume(
        self, ref: JobRef, *, swarm: str | None = None, changes: JobChanges | None = None
    ) -> JobHandle:
        """Submit the same job again under a new id; settled rows are not sent again.

        It runs on its own swarm, or on another one that serves the same model.

        Raises:
            SwarmError: the job still runs, its files are gone, or the swarm does not fit.
        """
        return self._again(ref, swarm, changes, retry_failed=False)

    def retry_failed(
        self, ref: JobRef, *, swarm: str | None = None, changes: JobChanges | None = None
    ) -> JobHandle:
        """Send the failed rows again, and no others; with `changes.retry_classes` those whose
        answers have one of these verdicts, failed or not.

        With `changes.override` they are sent with other parameters, which the job's checkpoint
        records. A row's earlier result stays until a better one comes.

        Raises:
            NothingToRetry: there is no such row; nothing was started.
            SwarmError: as `resume`.
        """
        return self._again(ref, swarm, changes, retry_failed=True)

    def _again(
        self, ref: JobRef, swarm: str | None, changes: JobChanges | None, *, retry_failed: bool
    ) -> JobHandle:
        record = self._submitter.refresh(self._record(ref))
        name = swarm or record.swarm
        live = None if name is None else SwarmLifecycle(self._store).attach(name)
        return self._submitter.resubmit(
            record, live, changes or JobChanges(), retry_failed=retry_failed
        )

    def failures(self, ref: JobRef, *, export: Path | None = None) -> JobFailures:
        """The failed rows of a job, running or ended, grouped by their errors; and answers that
        count although they are incomplete.

        Args:
            ref: the job.
            export: write the failed rows with their errors to this Parquet file.

        Raises:
            SwarmError: the job's files, input or checkpoint cannot be read.
        """
        from domyn_swarm.batch.inspection.settled import (
            count_unsettled,
            export_failures,
            group_failures,
        )
        from domyn_swarm.jobs.preparation import make_plan

        record = self._record(ref)
        plan = make_plan(spec_of(record)).plan
        groups = group_failures(plan)
        if export is not None:
            export_failures(plan, export)
        unsettled = count_unsettled(plan)
        return JobFailures(
            job_id=record.job_id,
            rows_failed=sum(group.rows for group in groups if not group.kept),
            groups=tuple(groups),
            rows_unsettled=unsettled.rows,
            rows_failed_unsettled=unsettled.failed,
            exported=export,
        )

    def report(self, ref: JobRef, *, output: Path | None = None) -> JobReport:
        """Write a report about a job, running or ended: one self-contained HTML file.

        Args:
            ref: the job.
            output: path of the file; None: in the job's folder.

        Raises:
            SwarmError: the job's files cannot be read, or the page cannot be written.
        """
        from domyn_swarm.services.report_page import write_page

        gathered = self.gathered(ref, output=output)
        write_page(gathered, private=output is None)
        return gathered.report

    def gathered(
        self, ref: JobRef, *, output: Path | None = None, failures: bool = True
    ) -> GatheredReport:
        """The contents of `report`; nothing is written. Without `failures` these are not grouped.

        Raises:
            SwarmError: the job's files cannot be read.
        """
        from domyn_swarm.services.reports import ReportGatherer

        record = self._submitter.refresh(self._record(ref))
        return ReportGatherer(self._store, record, output).gather(failures=failures)

    def verify(self, ref: JobRef) -> OutputVerification:
        """Check that a job's output is complete: files, counts, every input row once and in order.

        Raises:
            SwarmError: the job has not published, or its files or input cannot be read.
        """
        from domyn_swarm.jobs.ends import verify_output

        return verify_output(spec_of(self._record(ref)))

    def results(self, ref: JobRef, *, partial: bool = False) -> pa.Table:
        """A job's output, or with `partial` the rows settled so far, in memory.

        Raises:
            SwarmError: the job has not published (without `partial`), or it cannot be read.
        """
        with self._results(self._record(ref), partial) as results:
            return results.table()

    def show_results(
        self, ref: JobRef, *, partial: bool = False, rows: int = 10, export: Path | None = None
    ) -> JobResults:
        """The first rows of `results`, with all of them written to `export` if it is given.

        The file is Parquet, JSON Lines or CSV, by its suffix; memory does not grow with the rows.

        Raises:
            SwarmError: as `results`, or the file cannot be written.
        """
        from domyn_swarm.batch.inspection.results import check_export
        from domyn_swarm.batch.inspection.results import export as write
        from domyn_swarm.batch.output.publish import columns_of
        from domyn_swarm.batch.output.text_forms import plain_rows

        record = self._record(ref)
        if export is not None:
            check_export(export, [Path(one) for one in (record.input, record.output) if one])
        with self._results(record, partial) as results:
            if export is not None:
                write(results, export)
            return JobResults(
                job_id=record.job_id,
                partial=partial,
                rows=results.rows,
                rows_failed=results.rows_failed,
                rows_total=results.rows_total,
                columns={one.name: one.type for one in columns_of(results.schema)},
                first_rows=tuple(plain_rows(results.table(rows))),
                exported=export,
            )

    def _results(self, record: JobRecord, partial: bool) -> AbstractContextManager[Results]:
        from domyn_swarm.jobs.ends import opened_results

        record = self._submitter.refresh(record)
        return opened_results(spec_of(record), record.status, partial=partial)

    def _record(self, ref: JobRef) -> JobRecord:
        return self._store.job(ref.job_id if isinstance(ref, JobHandle) else ref)
