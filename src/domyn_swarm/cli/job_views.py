"""The output of the commands about jobs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING

from domyn_swarm.cli.console import say
from domyn_swarm.cli.rendering import (
    Column,
    State,
    age,
    cell_text,
    moment,
    print_note,
    print_pairs,
    print_record,
    print_table,
)
from domyn_swarm.cli.shared_options import Format
from domyn_swarm.errors import quantity
from domyn_swarm.model import JobStatus, utc_now
from domyn_swarm.swarm.snapshot import JobList

if TYPE_CHECKING:
    from domyn_swarm.batch.inspection.verification import OutputVerification
    from domyn_swarm.model import JobAccount, ReplyVerdict
    from domyn_swarm.services.requests import JobFailures, JobResults
    from domyn_swarm.swarm.snapshot import JobSnapshot, Whereabouts

_FAILURE_COLUMNS = (
    Column("rows"),
    Column("answers"),
    Column("status", spare=2),  # the error names it, too
    Column("row"),
    Column("id", whole=True, spare=1),
    Column("input"),
    Column("error"),
)
_FAILED_SHOWN = 3  # jobs, below a list of them
_JOB_COLUMNS = (
    Column("job", whole=True),
    Column("external", whole=True, spare=4),  # id
    Column("input", whole=True, spare=6),
    Column("status", least=10),
    Column("rows", whole=True, spare=1),
    Column("failed", whole=True, spare=2),
    Column("rows/s", whole=True, spare=5),
    Column("age", whole=True, spare=3),
    Column("swarm", whole=True, spare=7),
    Column("name", whole=True, spare=8),
    Column("output", whole=True, spare=9),
)


def show_job(job: JobSnapshot, output: Format) -> None:
    """One job."""
    if output is not Format.TABLE:
        print_record(job, output)
        return
    pairs = [
        ("job", f"{job.job_id} ({job.name})"),
        *([("external id", job.external_id)] if job.external_id else []),
        ("status", job.status.value + (f": {job.message}" if job.message else "")),
        ("swarm", job.swarm or "-"),
        *([("where", where_text(job.whereabouts))] if job.whereabouts else []),
        *([] if job.output is None else [("rows", rows_text(job) + split_text(job))]),
        *([("left", str(job.time_left))] if job.time_left else []),
        *([("failed", failed_text(job))] if failed_text(job) else []),
        *([("answers", verdicts_text(job.verdicts))] if verdicts_text(job.verdicts) else []),
        *[("note", remark) for remark in job.remarks],
        *([] if job.output is None else [("tokens", tokens_text(job))]),
        *([("runs", f"{job.runs} since {moment(job.began_at)}")] if job.began_at else []),
        *([("GPU-hours", gpu_hours_text(job))] if job.gpu_hours is not None else []),
        *([("cost", account_text(job.account))] if job.account else []),
        *_asked(job),
        ("input", job.input),
        ("output", job.output or "-"),
        ("log", job.log_path),
    ]
    print_pairs(pairs)


def _asked(job: JobSnapshot) -> list[tuple[str, str]]:
    """The request of a job, with long texts cut."""
    asked = [("model", job.model), ("class", job.job_class)]
    asked += [("prompt", job.prompt), ("system", job.system)]
    pairs = [(name, cell_text(text)) for name, text in asked if text is not None]
    settings = [("parameters", job.parameters), ("retried with", job.retry_parameters)]
    return [*pairs, *((name, cell_text(value)) for name, value in settings if value)]


def show_jobs(jobs: Sequence[JobSnapshot], left_out: int, output: Format) -> None:
    """Jobs, a line each; `left_out` is the number of older ones."""
    if output is not Format.TABLE:
        print_record(JobList(jobs=tuple(jobs), left_out=left_out), output)
    elif jobs:
        print_jobs(jobs)
        for note in failure_notes(jobs):
            print_note(note)
    else:
        print_note("No such job yet: domyn-swarm job submit --help")


def show_failures(failures: JobFailures, output: Format) -> None:
    """The failed rows of a job, grouped by their errors, and answers that count although they are
    incomplete.
    """
    if output is not Format.TABLE:
        print_record(failures, output)
        return
    if not failures.groups:
        return  # stderr says that no row failed
    print_table(
        _FAILURE_COLUMNS,
        [
            (
                str(group.rows),
                f"{group.verdict.value}, kept" if group.kept else group.verdict.value,
                "-" if group.status is None else str(group.status),
                str(group.example_row),
                group.example_id or "-",
                "-" if group.example_input is None else cell_text(group.example_input, 60),
                group.example_message,
            )
            for group in failures.groups
        ],
    )


def say_what_is_left(failures: JobFailures) -> None:
    """The command that sends the failed rows again, and those that have no result yet."""
    job_id, left = failures.job_id, failures.rows_unsettled
    if lasting := failures.rows_failed - failures.rows_failed_unsettled:
        failed, them = quantity(lasting, "row"), "it" if lasting == 1 else "them"
        say(f"{failed} failed; `domyn-swarm job retry-failed {job_id}` asks {them} again.")
    elif not failures.rows_failed:
        say("No row failed.")
    if failures.rows_failed_unsettled:
        say(
            f"{quantity(failures.rows_failed_unsettled, 'row')} failed as a run gave up: such "
            "errors do not count, and any run of the job asks again."
        )
    if left:
        say(
            f"{quantity(left, 'row is', 'rows are')} not settled; once the job has ended, "
            f"`domyn-swarm job resume {job_id}` asks {'it' if left == 1 else 'them'}."
        )


def show_verification(found: OutputVerification, output: Format) -> None:
    """The checked parts of an output; errors are printed to stderr."""
    if output is not Format.TABLE:
        print_record(found, output)
        return
    written_by = "" if found.written_by == found.job_id else f", written by {found.written_by}"
    print_pairs(
        [
            ("output", found.output + written_by),
            ("files", f"{found.files}, {quantity(found.bytes, 'byte')}, by their checksums"),
            ("rows", f"{found.rows}, {found.rows_failed} of them failed"),
            ("compared", ", ".join(found.columns_compared) or "no column is the input's"),
            ("whole", "yes" if found.whole else "NO"),
        ]
    )


def show_results(results: JobResults, output: Format) -> None:
    """The first rows of a job's output."""
    if output is not Format.TABLE:
        print_record(results, output)
        return
    if results.first_rows:
        names = tuple(results.columns)
        print_table(names, [[cell_text(row[name]) for name in names] for row in results.first_rows])


def where_text(where: Whereabouts) -> str:
    """Where something runs, as words; elsewhere, with the time of the shown values."""
    place = f"the {where.kind} {where.name}"
    if not where.elsewhere or where.known_at is None:
        return place
    return f"{place}; what was known at {moment(where.known_at)} is shown"


def rows_text(job: JobSnapshot, *, speed: bool = True) -> str:
    """A job's progress as words."""
    total = "?" if job.rows_total is None else str(job.rows_total)
    failed = f", {job.rows_failed} failed" if job.rows_failed else ""
    moves = speed and job.rows_per_s and not job.status.final
    dated = "" if job.old_figures_s is None else f", as of {age(job.old_figures_s)} ago"
    pace = f", {job.rows_per_s:.1f} rows/s" if moves else ""
    return f"{job.rows_done}/{total}{failed}{pace}{dated}"


def failed_text(job: JobSnapshot) -> str:
    """The most frequent error of a job's failed rows, with an example, and the command that shows
    all; empty if none failed, and if the job's own message says it.
    """
    found = job.commonest_failure
    is_named = found is not None and found.signature in (job.message or "")
    if not job.rows_failed or is_named:
        return ""
    every = f"`domyn-swarm job failures {job.job_id}` shows every cause"
    none = "no row was answered; " if job.rows_failed == job.rows_done else ""
    if found is None:
        return f"{none}{quantity(job.rows_failed, 'row')}, in earlier runs; {every}"
    known = found.status is None or str(found.status) in found.example_message
    error = cell_text(("" if known else f"HTTP {found.status}: ") + found.example_message)
    example = f", such as row {found.example_row}" if found.example_row >= 0 else ""
    those = f"{found.rows} of {quantity(job.rows_failed, 'failed row')}{example}"
    return f"{none}{those}: {error.rstrip('.')}; {every}"


def _first_line(text: str | None) -> str:
    return (text or "").partition("\n")[0]


def failure_notes(jobs: Iterable[JobSnapshot]) -> Iterator[str]:
    """Why the latest of some jobs did not finish all their rows, a line each."""
    bad = [job for job in jobs if job.rows_failed or (job.status.final and job.message)]
    latest = sorted(bad, key=lambda job: job.submitted_at)[-_FAILED_SHOWN:]
    for job in latest:
        yield f"{job.job_id}: {failed_text(job) or _first_line(job.message)}"
    if len(bad) > len(latest):
        yield f"Earlier jobs that failed, or whose rows did: {len(bad) - len(latest)}"


def split_text(job: JobSnapshot) -> str:
    """Which of a job's rows this run sent, as words; empty if it sent all that are settled."""
    if not job.rows_resumed:
        return ""
    now = job.rows_done - job.rows_resumed
    return f" ({now} asked now, {job.rows_resumed} before)"


def verdicts_text(verdicts: Mapping[ReplyVerdict, int]) -> str:
    """The verdicts of a job's answers, as words; empty if all are complete."""
    found = {name: rows for name, rows in verdicts.items() if rows}
    if not found.keys() - {"complete"}:
        return ""
    return ", ".join(f"{rows} {name.value}" for name, rows in sorted(found.items()))


def job_line(job: JobSnapshot) -> str:
    """One job in a line."""
    said = f": {job.message}" if job.message else ""
    where = job.whereabouts
    elsewhere = f" on {where.name}" if where is not None and where.elsewhere else ""
    return f"{job.job_id} {job.status.value}{elsewhere}: {rows_text(job, speed=False)} rows{said}"


def tokens_text(job: JobSnapshot) -> str:
    """The tokens of a job's requests: over all its runs, once one has ended."""
    tokens = job.account or job
    return f"{tokens.prompt_tokens} in, {tokens.completion_tokens} out"


def gpu_hours_text(job: JobSnapshot) -> str:
    """The GPU-hours of a job so far, and its budget."""
    budget = "" if job.max_gpu_hours is None else f" of {job.max_gpu_hours:g} (--max-gpu-hours)"
    return f"{job.gpu_hours:.3g}{budget}"


def account_text(account: JobAccount) -> str:
    """The sum of a job's runs, as words."""
    if not account.runs:
        return "0 requests in 0 runs"
    parts = [f"{quantity(account.requests, 'request')} in {account.wall_s:.1f} s"]
    if account.runs > 1:
        parts[0] += f" and {account.runs} runs"
    if account.rows_per_s:
        parts.append(f"{account.rows_per_s:.1f} rows/s")
    if account.completion_tokens_per_s:
        parts.append(f"{account.completion_tokens_per_s:.0f} tokens/s")
    if account.latency_p50_s is not None and account.latency_p99_s is not None:
        middle, slow = account.latency_p50_s, account.latency_p99_s
        parts.append(
            f"median latency {middle:.2f} s, the server's queue included (99 %: {slow:.2f} s)"
        )
    if account.dispatch is not None and account.dispatch.cached_share is not None:
        parts.append(f"{account.dispatch.cached_share:.0%} of prompt tokens were cached")
    again = account.retries + account.turned_away + account.lost_in_flight
    if again:
        parts.append(f"{again} sent again")
    return ", ".join(parts)


def _status_text(job: JobSnapshot) -> str:
    where = job.whereabouts
    if where is None or not where.elsewhere:
        if job.status is JobStatus.PENDING and job.message:
            return f"{job.status.value}: {job.message}"
        old = job.old_figures_s
        return job.status.value + ("" if old is None else f" ({age(old)} ago)")
    as_of = f" as of {moment(where.known_at)}" if where.known_at else ""
    return f"{job.status.value} on {where.name}{as_of}"


def _rowscell_text(job: JobSnapshot) -> str:
    return f"{job.rows_done}/{'?' if job.rows_total is None else job.rows_total}"


def print_jobs(jobs: Iterable[JobSnapshot]) -> None:
    """The table of jobs, in the given order."""
    now = utc_now()
    print_table(
        _JOB_COLUMNS,
        [
            (
                job.job_id,
                job.external_id or "-",
                PurePath(job.input).name,
                State(_status_text(job)),
                "-" if job.output is None else _rowscell_text(job),
                str(job.rows_failed or "-"),
                "-" if job.rows_per_s is None else f"{job.rows_per_s:.1f}",
                age((now - job.submitted_at).total_seconds()),
                job.swarm or "-",
                job.name,
                job.output or "-",
            )
            for job in jobs
        ],
    )
