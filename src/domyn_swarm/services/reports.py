"""The report of a job: from its own files, its checkpoint, and what its swarm remembers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from domyn_swarm.backends.endpoint.view import ReplicaEvent, read_history
from domyn_swarm.backends.gpu_time import Span
from domyn_swarm.batch.checkpoint.accounting import RunAccount, read_accounts, sum_up
from domyn_swarm.batch.run.histograms import (
    LatencyHistogram,
    ReplicaShares,
    SizeHistogram,
    SlowestRows,
)
from domyn_swarm.batch.run.tally import FailureExample, counted_group
from domyn_swarm.errors import JobNotFound, SwarmError, SwarmNotFound
from domyn_swarm.jobs.spec import JobSpec
from domyn_swarm.model import FailureGroup, Histogram, JobProgress, ReplyVerdict, utc_now
from domyn_swarm.paths import JobPaths, SwarmPaths
from domyn_swarm.planning.plan import Layout
from domyn_swarm.services.courses import Course, TraceLine, course_of, read_trace
from domyn_swarm.services.report_records import (
    EventReport,
    JobReport,
    RedoneReport,
    RunReport,
    ShareReport,
    SlowRowReport,
)
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
    """The figures, and the course that the page plots."""

    report: JobReport
    course: Course
    replica_spans: Mapping[int, Sequence[Span]] = field(default_factory=dict)  # during the job


class ReportGatherer:
    """Reads; asks the swarm's collector for the replicas' history, and nobody else."""

    def __init__(self, store: SwarmStore, record: JobRecord, output: Path | None) -> None:
        self._store = store
        self._record = record
        self._paths = JobPaths(Path(record.job_dir))
        self._output = output or self._paths.report

    def gather(self, *, failures: bool = True) -> GatheredReport:
        """All that is known of the job now, whether or not it runs.

        Args:
            failures: group them too, for which all results and the input are read.

        Raises:
            StateError: the job's files are gone, or it was a script.
        """
        spec = spec_of(self._record)
        accounts = self._accounts()
        runs = [self._run(account) for account in accounts]
        if runs and not self._record.status.final:  # it is at work: nothing is lost yet
            runs[-1] = runs[-1].model_copy(update={"lost_in_flight": 0})
        shares = ReplicaShares()
        for one in accounts:
            shares.add(one.counters.replicas)
        history = self._history()
        events = [one for one in history if _at_work(one.reported_at, accounts)]
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
            events=tuple(_told(event) for event in events),
        )
        course = course_of(accounts, self._traces(accounts))
        return GatheredReport(report, course, self._replica_spans(accounts) if failures else {})

    def _accounts(self) -> list[RunAccount]:
        """Of all runs over the job's checkpoint, those of jobs that it went on with included."""
        try:
            progress = JobProgress.model_validate_json(self._paths.progress.read_text("utf-8"))
            folder = None if progress.checkpoint is None else Path(progress.checkpoint)
            return [] if folder is None else read_accounts(folder)
        except (OSError, ValueError):  # not begun, or its checkpoint was removed
            return []

    def _traces(self, accounts: Sequence[RunAccount]) -> list[list[TraceLine]]:
        found: list[list[TraceLine]] = []
        for job_id in dict.fromkeys(account.job_id for account in accounts):
            record = self._job(job_id)
            if record is not None:
                found.extend(read_trace(Path(record.job_dir)))
        return found

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
        """Of the swarm that the run asked, unless another one has taken its name since. None of an
        elastic one: how many replicas it had meanwhile is not in its plan.
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
        """What the replicas of the job's swarm went through, as far as it remembers."""
        if self._record.swarm is None or self._swarm_is_elsewhere(self._record.swarm):
            return ()
        return read_history(
            SwarmPaths(self._paths.root.parents[1]), datetime.min.replace(tzinfo=UTC)
        )

    def _replica_spans(self, accounts: Sequence[RunAccount]) -> Mapping[int, Sequence[Span]]:
        """What the replicas of the job's swarm did while the job was there."""
        began = [one.began_at.timestamp() for one in accounts if one.began_at is not None]
        if self._record.swarm is None or not began:
            return {}
        ended = max(begin + one.wall_s for begin, one in zip(began, accounts, strict=False))
        own = UsageService(self._store)
        return own.spans(self._record.swarm, min(began), ended)

    def _swarm_is_elsewhere(self, name: str) -> bool:
        """Whether its collector's address is one of another host's network."""
        try:
            return is_elsewhere(self._store.swarm(name))
        except SwarmNotFound:
            return False

    def _failures(
        self, spec: JobSpec, accounts: Sequence[RunAccount]
    ) -> tuple[list[FailureGroup], str | None]:
        from domyn_swarm.batch.checkpoint.inspection import group_failures
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


def _at_work(moment: datetime, accounts: Sequence[RunAccount]) -> bool:
    at = moment.timestamp()
    spans = ((one.began_at, one.wall_s) for one in accounts)
    return any(
        begin is not None and 0 <= at - begin.timestamp() <= wall_s + 1 for begin, wall_s in spans
    )


def _sum(hours: Iterable[float | None]) -> float | None:
    """None: of some run it is not known, or there is none."""
    found = list(hours)
    known = [one for one in found if one is not None]
    return sum(known) if known and len(known) == len(found) else None


def _told(event: ReplicaEvent) -> EventReport:
    at = event.reported_at.astimezone(UTC)
    return EventReport(at=at, replica=event.replica, state=event.state, reason=event.reason)


def _redone(accounts: Sequence[RunAccount]) -> tuple[RedoneReport, ...]:
    lost = sum(one.counters.in_flight for one in accounts[:-1] if not one.ended)
    busy = sum(one.counters.turned_away for one in accounts)
    again: Counter[str] = Counter()
    for one in accounts:
        again.update(one.counters.repeated)
    found = [
        RedoneReport(cause="in flight when a run was killed", requests=lost),
        RedoneReport(
            cause="turned away by a busy server, and sent when it had room", requests=busy
        ),
        *(
            RedoneReport(cause="after an error", requests=count, example=signature)
            for signature, count in again.most_common(_GROUPS_SHOWN)
        ),
    ]
    return tuple(one for one in found if one.requests)


def _shares(shares: ReplicaShares, events: Sequence[ReplicaEvent]) -> tuple[ShareReport, ...]:
    whole = sum(share.answers for share in shares.values())
    indices = {event.url: event.replica for event in events if event.url}
    found = [
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
    return tuple(sorted(found, key=lambda one: -one.answers))


def _slowest(accounts: Sequence[RunAccount]) -> tuple[SlowRowReport, ...]:
    slowest = SlowestRows()
    for one in accounts:
        slowest.merge(one.counters.slowest)
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
    """The same with the rows' ids."""
    from domyn_swarm.batch.checkpoint.inspection import ids_of
    from domyn_swarm.jobs.preparation import make_plan

    if spec.id_column is None or not slowest:
        return slowest
    try:
        ids = ids_of(make_plan(spec).plan, {one.row for one in slowest})
    except (SwarmError, OSError):  # the input is gone
        return slowest
    return tuple(one.model_copy(update={"row_id": ids.get(one.row)}) for one in slowest)


def _latency(accounts: Sequence[RunAccount]) -> Histogram | None:
    """As few bins as people can read, of equal width on a logarithmic scale."""
    counted: Counter[int] = Counter()
    for one in accounts:
        counted.update(one.counters.latency)
    if not counted:
        return None
    first, last = min(counted), max(counted)
    wide = -(-(last - first + 1) // _BINS)
    bins = range(first + wide - 1, last + wide, wide)
    latency = LatencyHistogram()
    latency.merge(counted)
    total = sum(one.counters.latency_s for one in accounts)
    return latency.within([LatencyHistogram.upper_s(at) for at in bins], total)


def _sizes(accounts: Sequence[RunAccount]) -> Histogram | None:
    sizes = SizeHistogram()
    for one in accounts:
        sizes.merge(one.counters.completion_sizes)
    if not sizes.counts:
        return None
    bounds = [2.0**power for power in range(max(sizes.counts) + 1)]
    return sizes.within(bounds, sum(one.counters.completion_tokens for one in accounts))
