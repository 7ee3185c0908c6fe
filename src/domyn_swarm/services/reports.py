"""Gathers the report of a job from its files, its checkpoint, and its swarm's history."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from domyn_swarm.backends.endpoint.view import ReplicaEvent, read_history
from domyn_swarm.backends.gpu_time import Span
from domyn_swarm.batch.checkpoint.accounting import RunAccount, read_accounts, sum_up
from domyn_swarm.batch.outcomes.histograms import (
    LatencyHistogram,
    ReplicaShares,
    SizeHistogram,
    SlowestRows,
)
from domyn_swarm.batch.outcomes.tally import FailureExample, counted_group
from domyn_swarm.errors import JobNotFound, SwarmError, SwarmNotFound
from domyn_swarm.jobs.worker_spec import JobSpec
from domyn_swarm.model import FailureGroup, Histogram, JobProgress, ReplyVerdict, utc_now
from domyn_swarm.paths import JobPaths, SwarmPaths
from domyn_swarm.planning.plan import Layout
from domyn_swarm.services.report_records import (
    EventReport,
    JobReport,
    RedoneReport,
    RunReport,
    ShareReport,
    SlowRowReport,
)
from domyn_swarm.services.time_series import JobTimeSeries, TraceLine, read_trace, time_series_of
from domyn_swarm.services.usage import UsageService
from domyn_swarm.state import JobRecord, SwarmStore
from domyn_swarm.swarm.factory import rehydrate
from domyn_swarm.swarm.job_ends import spec_of
from domyn_swarm.swarm.survey import job_snapshot, with_what_it_asks
from domyn_swarm.swarm.whereabouts import is_elsewhere

_GROUPS_SHOWN = 50
_BINS = 40


@dataclass(frozen=True)
class GatheredReport:
    """The figures of a report, and the time series for its plots."""

    report: JobReport
    time_series: JobTimeSeries
    replica_spans: Mapping[int, Sequence[Span]] = field(default_factory=dict)  # during the job


class ReportGatherer:
    """Gathers one report. It only reads files, and the replica history of the swarm's collector."""

    def __init__(self, store: SwarmStore, record: JobRecord, output: Path | None) -> None:
        self._store = store
        self._record = record
        self._paths = JobPaths(Path(record.job_dir))
        self._output = output or self._paths.report

    def gather(self, *, failures: bool = True) -> GatheredReport:
        """The report of a job, which may still run.

        Args:
            failures: also group the failed rows, which reads all results and the input.

        Raises:
            StateError: the job's files are gone, or it was a script.
        """
        spec = spec_of(self._record)
        accounts = self._accounts()
        runs = [self._run(account) for account in accounts]
        if runs and not self._record.status.final:  # a run that still runs has lost nothing
            runs[-1] = runs[-1].model_copy(update={"lost_in_flight": 0})
        shares = ReplicaShares()
        for account in accounts:
            shares.add(account.counters.replicas)
        history = self._history()
        events = [event for event in history if _during_run(event.reported_at, accounts)]
        groups, note = self._failures(spec, accounts) if failures else ([], None)
        report = JobReport(
            path=self._output.absolute(),
            written_at=utc_now(),
            job=with_what_it_asks(job_snapshot(self._record), self._record),
            model=spec.model,
            job_class=spec.job,
            account=sum_up(accounts) if accounts else None,
            replica_hours=_sum(
                None if run.replicas is None else run.replicas * run.wall_s / 3600 for run in runs
            ),
            gpu_hours=_sum(run.gpu_hours for run in runs),
            runs=tuple(runs),
            failures=tuple(groups),
            failures_note=note,
            redone=_redone(accounts),
            shares=_shares(shares, history),
            slowest=_named(_slowest(accounts), spec),
            latency_s=_latency(accounts),
            completion_sizes=_sizes(accounts),
            events=tuple(_event_report(event) for event in events),
        )
        time_series = time_series_of(accounts, self._traces(accounts))
        return GatheredReport(
            report, time_series, self._replica_spans(accounts) if failures else {}
        )

    def _accounts(self) -> list[RunAccount]:
        """The accounts of all runs on the job's checkpoint, also of the jobs that it continued."""
        try:
            progress = JobProgress.model_validate_json(self._paths.progress.read_text("utf-8"))
            folder = None if progress.checkpoint is None else Path(progress.checkpoint)
            return [] if folder is None else read_accounts(folder)
        except (OSError, ValueError):  # the job has not started, or its checkpoint was removed
            return []

    def _traces(self, accounts: Sequence[RunAccount]) -> list[list[TraceLine]]:
        traces: list[list[TraceLine]] = []
        for job_id in dict.fromkeys(account.job_id for account in accounts):
            record = self._job(job_id)
            if record is not None:
                traces.extend(read_trace(Path(record.job_dir)))
        return traces

    def _job(self, job_id: str) -> JobRecord | None:
        if job_id == self._record.job_id:
            return self._record
        try:
            return self._store.job(job_id)
        except JobNotFound:  # submitted from another home
            return None

    def _run(self, account: RunAccount) -> RunReport:
        counted, layout = account.counters, self._layout(account)
        hours = account.wall_s / 3600
        gpus = None if layout is None else layout.replicas * layout.gpus_per_replica
        return RunReport(
            job_id=account.job_id,
            began_at=account.began_at,
            wall_s=account.wall_s,
            ended=account.ended,
            rows_answered=counted.rows_answered,
            rows_failed=counted.rows_failed,
            requests=counted.requests,
            lost_in_flight=0 if account.ended else counted.in_flight,
            retry_failed=account.retry_failed,
            override=account.override,
            replicas=None if layout is None else layout.replicas,
            gpu_hours=None if gpus is None else gpus * hours,
        )

    def _layout(self, account: RunAccount) -> Layout | None:
        """The layout of the run's swarm; None if another swarm has its name now, or if it is
        elastic: its number of replicas during the run is not in its plan.
        """
        record = self._job(account.job_id)
        if record is None or record.swarm is None or account.began_at is None:
            return None
        try:
            swarm = self._store.swarm(record.swarm)
        except SwarmNotFound:
            return None
        plan = rehydrate(swarm).plan
        known = swarm.created_at <= account.began_at and plan.elastic is None
        return plan.layout if known else None

    def _history(self) -> tuple[ReplicaEvent, ...]:
        """The recorded state changes of the replicas of the job's swarm."""
        if self._record.swarm is None or self._swarm_is_elsewhere(self._record.swarm):
            return ()
        return read_history(
            SwarmPaths(self._paths.root.parents[1]), datetime.min.replace(tzinfo=UTC)
        )

    def _replica_spans(self, accounts: Sequence[RunAccount]) -> Mapping[int, Sequence[Span]]:
        """The use of the replicas' time from the start of the first run to the end of the last."""
        began = [run.began_at.timestamp() for run in accounts if run.began_at is not None]
        if self._record.swarm is None or not began:
            return {}
        ended = max(begin + run.wall_s for begin, run in zip(began, accounts, strict=False))
        return UsageService(self._store).spans(self._record.swarm, min(began), ended)

    def _swarm_is_elsewhere(self, name: str) -> bool:
        """Whether the swarm runs where this process cannot reach its collector."""
        try:
            return is_elsewhere(self._store.swarm(name))
        except SwarmNotFound:
            return False

    def _failures(
        self, spec: JobSpec, accounts: Sequence[RunAccount]
    ) -> tuple[list[FailureGroup], str | None]:
        from domyn_swarm.batch.inspection.settled import group_failures
        from domyn_swarm.jobs.preparation import make_plan

        if not set(job_snapshot(self._record).verdicts) - {ReplyVerdict.COMPLETE}:
            return [], None
        try:
            return group_failures(make_plan(spec).plan)[:_GROUPS_SHOWN], None
        except (SwarmError, OSError) as error:
            counted: Counter[str] = Counter()
            examples: dict[str, FailureExample] = {}
            for account in accounts:
                counted.update(account.counters.failures)
                examples |= account.counters.examples
            groups = [
                counted_group(name, rows, examples.get(name))
                for name, rows in counted.most_common()
            ]
            return groups[:_GROUPS_SHOWN], f"As the runs counted them: {error}"


def _during_run(moment: datetime, accounts: Sequence[RunAccount]) -> bool:
    at = moment.timestamp()
    spans = ((run.began_at, run.wall_s) for run in accounts)
    return any(
        begin is not None and 0 <= at - begin.timestamp() <= wall_s + 1 for begin, wall_s in spans
    )


def _sum(hours: Iterable[float | None]) -> float | None:
    """The sum of all runs' hours; None if a run's hours are unknown, or there is no run."""
    values = list(hours)
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None


def _event_report(event: ReplicaEvent) -> EventReport:
    at = event.reported_at.astimezone(UTC)
    return EventReport(at=at, replica=event.replica, state=event.state, reason=event.reason)


def _redone(accounts: Sequence[RunAccount]) -> tuple[RedoneReport, ...]:
    lost = sum(run.counters.in_flight for run in accounts[:-1] if not run.ended)
    busy = sum(run.counters.turned_away for run in accounts)
    repeated: Counter[str] = Counter()
    for run in accounts:
        repeated.update(run.counters.repeated)
    causes = [
        RedoneReport(cause="in flight when a run was killed", requests=lost),
        RedoneReport(
            cause="turned away by a busy server, and sent when it had room", requests=busy
        ),
        *(
            RedoneReport(cause="after an error", requests=count, example=signature)
            for signature, count in repeated.most_common(_GROUPS_SHOWN)
        ),
    ]
    return tuple(cause for cause in causes if cause.requests)


def _shares(shares: ReplicaShares, events: Sequence[ReplicaEvent]) -> tuple[ShareReport, ...]:
    whole = sum(share.answers for share in shares.values())
    indices = {event.url: event.replica for event in events if event.url}
    reports = [
        ShareReport(
            url=url,
            replica=indices.get(url),
            answers=share.answers,
            share=share.answers / whole,
            prompt_tokens=share.prompt_tokens,
            completion_tokens=share.completion_tokens,
            latency_mean_s=share.latency_s / share.answers,
        )
        for url, share in shares.items()
        if share.answers
    ]
    return tuple(sorted(reports, key=lambda report: -report.answers))


def _slowest(accounts: Sequence[RunAccount]) -> tuple[SlowRowReport, ...]:
    slowest = SlowestRows()
    for run in accounts:
        slowest.merge(run.counters.slowest)
    return tuple(
        SlowRowReport(
            row=row.row,
            latency_s=row.latency_s,
            attempts=row.attempts,
            completion_tokens=row.completion_tokens,
            failed=row.failed,
        )
        for row in slowest.rows
    )


def _named(slowest: tuple[SlowRowReport, ...], spec: JobSpec) -> tuple[SlowRowReport, ...]:
    """The slowest rows with their ids, if the job has an id column and the input is readable."""
    from domyn_swarm.batch.inspection.settled import ids_of
    from domyn_swarm.jobs.preparation import make_plan

    if spec.id_column is None or not slowest:
        return slowest
    try:
        ids = ids_of(make_plan(spec).plan, {report.row for report in slowest})
    except (SwarmError, OSError):  # the input was deleted
        return slowest
    return tuple(row.model_copy(update={"row_id": ids.get(row.row)}) for row in slowest)


def _latency(accounts: Sequence[RunAccount]) -> Histogram | None:
    """The latency in at most `_BINS` bins, of equal width on a logarithmic scale."""
    counted: Counter[int] = Counter()
    for run in accounts:
        counted.update(run.counters.latency)
    if not counted:
        return None
    first, last = min(counted), max(counted)
    width = -(-(last - first + 1) // _BINS)
    bins = range(first + width - 1, last + width, width)
    latency = LatencyHistogram()
    latency.merge(counted)
    total = sum(run.counters.latency_s for run in accounts)
    return latency.within([LatencyHistogram.upper_s(at) for at in bins], total)


def _sizes(accounts: Sequence[RunAccount]) -> Histogram | None:
    sizes = SizeHistogram()
    for run in accounts:
        sizes.merge(run.counters.completion_sizes)
    if not sizes.counts:
        return None
    bounds = [2.0**power for power in range(max(sizes.counts) + 1)]
    return sizes.within(bounds, sum(run.counters.completion_tokens for run in accounts))
