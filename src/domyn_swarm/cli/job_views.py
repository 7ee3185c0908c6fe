"""What the commands about jobs print."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from domyn_swarm.cli.console import say
from domyn_swarm.cli.options import Format
from domyn_swarm.cli.rendering import State, moment, print_pairs, print_record, print_table
from domyn_swarm.model import JobStatus
from domyn_swarm.swarm.snapshot import JobList

if TYPE_CHECKING:
    from domyn_swarm.batch.verification import OutputVerification
    from domyn_swarm.jobs.dry_run import DryRun
    from domyn_swarm.model import JobAccount, ReplyVerdict
    from domyn_swarm.services.requests import JobFailures, JobResults
    from domyn_swarm.swarm.snapshot import JobSnapshot, Whereabouts

_CELL_CHARACTERS = 200  # of a row's value; --export and --json have all of it


def show_job(job: JobSnapshot, output: Format) -> None:
    """One job."""
    if output is not Format.TABLE:
        print_record(job, output)
        return
    pairs = [
        ("job", f"{job.job_id} ({job.name})"),
        ("status", job.status.value + (f": {job.message}" if job.message else "")),
        ("swarm", job.swarm or "-"),
        *([("where", where_text(job.whereabouts))] if job.whereabouts else []),
        ("rows", rows_text(job) + split_text(job)),
        *([("answers", verdicts_text(job.verdicts))] if verdicts_text(job.verdicts) else []),
        *[("note", remark) for remark in job.remarks],
        ("tokens", tokens_text(job)),
        *([("cost", account_text(job.account))] if job.account else []),
        ("input", job.input),
        ("output", job.output or "-"),
        ("log", job.log_path),
    ]
    print_pairs(pairs)


def show_jobs(jobs: Sequence[JobSnapshot], left_out: int, output: Format) -> None:
    """Jobs, a line each; `left_out` are older ones."""
    if output is Format.TABLE:
        print_jobs(jobs)
    else:
        print_record(JobList(jobs=tuple(jobs), left_out=left_out), output)


def show_failures(failures: JobFailures, output: Format) -> None:
    """The failed rows of a job, by what their errors have in common, and answers that count though
    they are not complete.
    """
    if output is not Format.TABLE:
        print_record(failures, output)
        return
    print_table(
        ("rows", "answers", "status", "example row", "example"),
        [
            (
                str(group.rows),
                f"{group.verdict.value}, kept" if group.kept else group.verdict.value,
                "-" if group.status is None else str(group.status),
                str(group.example_row),
                group.example_message,
            )
            for group in failures.groups
        ],
    )


def say_what_is_left(failures: JobFailures) -> None:
    """Which command asks the failed rows again, and those that have no result yet."""
    job_id, left = failures.job_id, failures.rows_unsettled
    if lasting := failures.rows_failed - failures.rows_failed_unsettled:
        say(f"{lasting} rows failed; `domyn-swarm job retry-failed {job_id}` asks them again.")
    elif not failures.rows_failed:
        say("No row failed.")
    if failures.rows_failed_unsettled:
        say(
            f"{failures.rows_failed_unsettled} rows failed as a run gave up: their errors do not "
            "count, and any run of the job asks them again."
        )
    if left:
        say(
            f"{left} rows are not settled; once the job has ended, `domyn-swarm job resume "
            f"{job_id}` asks them."
        )


def show_verification(found: OutputVerification, output: Format) -> None:
    """What of an output was checked; what is wrong with it is for stderr."""
    if output is not Format.TABLE:
        print_record(found, output)
        return
    written_by = "" if found.written_by == found.job_id else f", written by {found.written_by}"
    print_pairs(
        [
            ("output", found.output + written_by),
            ("files", f"{found.files}, {found.bytes} bytes, by their checksums"),
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
        print_table(names, [[_cell(row[name]) for name in names] for row in results.first_rows])


def show_dry_run(found: DryRun, output: Format) -> None:
    """What a job would be, what its first row sent and came to, and what the rest may take."""
    if output is not Format.TABLE:
        print_record(found, output)
        return
    settled = "?" if found.rows_settled is None else str(found.rows_settled)
    print_pairs(
        [
            ("job", found.job),
            ("swarm", found.swarm or "-"),
            ("endpoint", f"{found.endpoint} ({found.model})"),
            ("input", found.input),
            ("output", found.output),
            ("rows", f"{found.rows_total}, {settled} of them settled"),
            *_first_row(found),
            ("estimate", _estimate_text(found)),
        ]
    )


def _first_row(found: DryRun) -> list[tuple[str, str]]:
    if found.latency_s is None:
        return [("first row", "there is none: nothing was sent")]
    tokens = f"{found.prompt_tokens} tokens in, {found.completion_tokens} out"
    pairs = [("sent", f"POST {one.path} {_json(one.body)}") for one in found.requests]
    pairs += [(name, _cell(value)) for name, value in (found.answer or {}).items()]
    if found.error is not None:
        pairs.append(("error", f"{found.error.type}: {found.error.message}"))
    verdict = "?" if found.verdict is None else found.verdict.value
    pairs.append(("first row", f"{verdict}; {tokens}, {found.latency_s:.2f} s"))
    return [*pairs, *[("note", remark) for remark in found.remarks]]


def _estimate_text(found: DryRun) -> str:
    estimate = found.estimate
    if estimate is None:
        return "none"
    if estimate.prompt_tokens is None:
        return f"{estimate.requests} requests; the endpoint does not tell its tokens"
    return (
        f"roughly {estimate.requests} requests, {estimate.prompt_tokens} tokens in and "
        f"{estimate.completion_tokens} out, as the first row and the length of "
        f"{estimate.inputs_compared} inputs have it"
    )


def _json(value: Any) -> str:  # noqa: ANN401 - JSON
    return json.dumps(value, ensure_ascii=False)


def _cell(value: Any) -> str:  # noqa: ANN401 - JSON
    text = value if isinstance(value, str) else _json(value)
    text = "-" if value is None else " ".join(text.split())
    return text if len(text) <= _CELL_CHARACTERS else text[: _CELL_CHARACTERS - 1] + "…"


def where_text(where: Whereabouts) -> str:
    """Where something runs, in words; of what is elsewhere, as of when it is shown."""
    place = f"the {where.kind} {where.name}"
    if not where.elsewhere or where.known_at is None:
        return place
    return f"{place}; what was known at {moment(where.known_at)} is shown"


def rows_text(job: JobSnapshot, *, speed: bool = True) -> str:
    """How far a job is, in words."""
    total = "?" if job.rows_total is None else str(job.rows_total)
    failed = f", {job.rows_failed} failed" if job.rows_failed else ""
    moves = speed and job.rows_per_s and not job.status.final
    return f"{job.rows_done}/{total}{failed}" + (f", {job.rows_per_s:.1f} rows/s" if moves else "")


def split_text(job: JobSnapshot) -> str:
    """Which of a job's rows this run asked, in words; nothing where it asked all that are done."""
    if not job.rows_resumed:
        return ""
    now = job.rows_done - job.rows_resumed
    return f" ({now} asked now, {job.rows_resumed} before)"


def verdicts_text(verdicts: Mapping[ReplyVerdict, int]) -> str:
    """What the answers of a job are, in words; nothing where all are complete."""
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
    """What a job's requests took: over all its runs, once one has ended."""
    told = job.account or job
    return f"{told.prompt_tokens} in, {told.completion_tokens} out"


def account_text(account: JobAccount) -> str:
    """What a job did over all its runs, in words."""
    if not account.runs:
        return "0 requests in 0 runs"
    parts = [f"{account.requests} requests in {account.wall_s:.1f} s"]
    if account.runs > 1:
        parts[0] += f" and {account.runs} runs"
    if account.rows_per_s:
        parts.append(f"{account.rows_per_s:.1f} rows/s")
    if account.completion_tokens_per_s:
        parts.append(f"{account.completion_tokens_per_s:.0f} tokens/s")
    if account.latency_p50_s is not None and account.latency_p99_s is not None:
        parts.append(f"latency {account.latency_p50_s:.2f} s (99 %: {account.latency_p99_s:.2f} s)")
    again = account.retries + account.turned_away + account.lost_in_flight
    if again:
        parts.append(f"{again} sent again")
    return ", ".join(parts)


def _status_text(job: JobSnapshot) -> str:
    where = job.whereabouts
    if where is None or not where.elsewhere:
        waits = job.status is JobStatus.PENDING and job.message
        return f"{job.status.value}: {job.message}" if waits else job.status.value
    as_of = f" as of {moment(where.known_at)}" if where.known_at else ""
    return f"{job.status.value} on {where.name}{as_of}"


def print_jobs(jobs: Iterable[JobSnapshot]) -> None:
    """The table of jobs."""
    print_table(
        ("job", "name", "swarm", "status", "rows", "output"),
        [
            (
                job.job_id,
                job.name,
                job.swarm or "-",
                State(_status_text(job)),
                rows_text(job),
                job.output or "-",
            )
            for job in jobs
        ],
    )
