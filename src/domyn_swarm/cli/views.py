"""The rendering layer: what a service returns, as a table for people or as JSON or YAML.

JSON and YAML are the record itself, with its `schema_version`; tables may change at any time.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import typer

from domyn_swarm.cli.options import Format

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from domyn_swarm.batch.verification import OutputVerification
    from domyn_swarm.model import JobAccount, Record
    from domyn_swarm.services.doctor import Examination
    from domyn_swarm.services.requests import (
        DownResult,
        EndpointInfo,
        JobFailures,
        JobResults,
        PlanReport,
        UpResult,
    )
    from domyn_swarm.swarm.snapshot import JobSnapshot, ReplicaSnapshot, SwarmSnapshot

_PIPED_WIDTH = 1000  # columns of a table nobody looks at in a terminal
_CELL_CHARACTERS = 200  # of a row's value; --export and --json have all of it
_COLOURS = {
    **dict.fromkeys(("ready", "succeeded", "ok"), "green"),
    **dict.fromkeys(("starting", "launching", "running", "pending", "queued"), "yellow"),
    "warning": "yellow",
    **dict.fromkeys(("restarting", "draining", "partial", "stopping"), "yellow"),
    **dict.fromkeys(("failed", "unhealthy", "timed_out", "out_of_memory"), "red"),
}


def print_data(data: Mapping[str, Any], output: Format) -> None:
    """Print one document as JSON or YAML."""
    if output is Format.JSON:
        typer.echo(json.dumps(data, indent=2, ensure_ascii=False))
        return
    import yaml

    typer.echo(yaml.safe_dump(dict(data), sort_keys=False, allow_unicode=True), nl=False)


def show_facts(facts: Mapping[str, str], output: Format) -> None:
    """Named values that belong together."""
    if output is Format.TABLE:
        _print(_pairs(facts.items()))
    else:
        print_data({"schema_version": 1, **facts}, output)


def show_plan(report: PlanReport, output: Format) -> None:
    """What `up` would do."""
    if output is not Format.TABLE:
        print_data(_plain(report), output)
        return
    plan, layout = report.plan, report.plan.layout
    hours = "no time limit" if report.gpu_hours is None else f"{report.gpu_hours:g} GPU-hours"
    _print(
        _pairs(
            [
                ("name", plan.name),
                ("backend", plan.backend),
                ("engine", plan.engine),
                ("model", plan.model),
                ("replicas", f"{layout.replicas} ({plan.min_ready} must answer)"),
                ("GPUs", f"{report.gpus}, {layout.gpus_per_replica} per replica ({hours})"),
                ("nodes, at most", str(layout.nodes)),
                ("engine's command", shlex.join(report.engine_command)),
                ("engine ports from", str(plan.port_from)),
                ("waits at most", f"{plan.wait_endpoint_s:g} s"),
                ("folder", str(plan.home_directory / "swarms" / plan.name)),
                *(("the scheduler says", said) for said in report.test or ()),
            ]
        )
    )
    for name, text in report.scripts.items():
        typer.echo(f"\n# {name}\n{text}")


def show_examination(found: Examination, output: Format) -> None:
    """What `doctor` found."""
    if output is not Format.TABLE:
        print_data(_plain(found), output)
        return
    table = _table("check", "", "found", "what to do")
    for check in found.checks:
        table.add_row(check.name, _coloured(check.status), check.detail, check.fix or "")
    _print(table)


def show_up(result: UpResult, output: Format) -> None:
    """A swarm that came up; as a table its name alone, so that `$(domyn-swarm up …)` works."""
    if output is Format.TABLE:
        typer.echo(result.name)
    else:
        print_data({"schema_version": 1, **_plain(result)}, output)


def show_swarm(swarm: SwarmSnapshot, output: Format) -> None:
    """One swarm with its replicas and jobs."""
    if output is not Format.TABLE:
        print_data(_plain(swarm), output)
        return
    ready = f"{swarm.replicas_ready} of {swarm.replicas_wanted} ready, {swarm.min_ready} needed"
    _print(
        _pairs(
            [
                ("swarm", swarm.name),
                ("phase", _phase(swarm) + (f": {swarm.detail}" if swarm.detail else "")),
                ("endpoint", swarm.endpoint or "-"),
                ("model", f"{swarm.model} ({swarm.engine} on {swarm.backend})"),
                ("replicas", ready),
                *([("expires", _moment(swarm.expires_at))] if swarm.expires_at else []),
            ]
        )
    )
    if swarm.replicas:
        _print(_replicas(swarm.replicas))
    if swarm.jobs:
        _print(_jobs(swarm.jobs))


def show_swarms(swarms: Sequence[SwarmSnapshot], output: Format) -> None:
    """All swarms, a line each."""
    if output is not Format.TABLE:
        print_data({"schema_version": 1, "swarms": [_plain(swarm) for swarm in swarms]}, output)
        return
    table = _table("name", "phase", "replicas", "model", "backend", "endpoint", "since")
    for swarm in swarms:
        asked = swarm.observed != "not_probed"
        table.add_row(
            swarm.name,
            _coloured(_phase(swarm)),
            f"{swarm.replicas_ready if asked else '?'}/{swarm.replicas_wanted}",
            swarm.model,
            swarm.backend,
            swarm.endpoint or "-",
            _moment(swarm.created_at),
        )
    _print(table)


def show_down(results: Sequence[DownResult], output: Format) -> None:
    """What `down` did, a line for each swarm."""
    if output is not Format.TABLE:
        print_data({"schema_version": 1, "swarms": [_plain(result) for result in results]}, output)
        return
    for result in results:
        typer.echo(f"{result.name} {'stopped' if result.stopped else 'NOT stopped'}")


def show_endpoint(info: EndpointInfo, output: Format) -> None:
    """How to talk to a swarm; the key stays in its file."""
    if output is not Format.TABLE:
        print_data(_plain(info), output)
        return
    curl = (
        f'curl -H "Authorization: Bearer $(cat {info.key_file})" {info.url}/v1/chat/completions '
        "-H 'Content-Type: application/json' -d "
        f'\'{{"model": "{info.model}", "messages": [{{"role": "user", "content": "Hello"}}]}}\''
    )
    _print(
        _pairs(
            [
                ("base URL", f"{info.url}/v1"),
                ("model", info.model),
                ("key file", str(info.key_file)),
            ]
        )
    )
    typer.echo(f"\n{curl}")


def show_job(job: JobSnapshot, output: Format) -> None:
    """One job."""
    if output is not Format.TABLE:
        print_data(_plain(job), output)
        return
    pairs = [
        ("job", f"{job.job_id} ({job.name})"),
        ("status", job.status.value + (f": {job.message}" if job.message else "")),
        ("swarm", job.swarm or "-"),
        ("rows", rows_text(job)),
        ("tokens", f"{job.prompt_tokens} in, {job.completion_tokens} out"),
        *([("cost", account_text(job.account))] if job.account else []),
        ("input", job.input),
        ("output", job.output or "-"),
        ("log", job.log_path),
    ]
    _print(_pairs(pairs))


def show_jobs(jobs: Sequence[JobSnapshot], output: Format) -> None:
    """Jobs, a line each."""
    if output is Format.TABLE:
        _print(_jobs(jobs))
    else:
        print_data({"schema_version": 1, "jobs": [_plain(job) for job in jobs]}, output)


def show_failures(failures: JobFailures, output: Format) -> None:
    """The failed rows of a job, by what their errors have in common."""
    if output is not Format.TABLE:
        print_data(_plain(failures), output)
        return
    table = _table("rows", "status", "example row", "example")
    for group in failures.groups:
        status = "-" if group.status is None else str(group.status)
        table.add_row(str(group.rows), status, str(group.example_row), group.example_message)
    _print(table)


def show_verification(found: OutputVerification, output: Format) -> None:
    """What of an output was checked; what is wrong with it is for stderr."""
    if output is not Format.TABLE:
        print_data(_plain(found), output)
        return
    written_by = "" if found.written_by == found.job_id else f", written by {found.written_by}"
    _print(
        _pairs(
            [
                ("output", found.output + written_by),
                ("files", f"{found.files}, {found.bytes} bytes, by their checksums"),
                ("rows", f"{found.rows}, {found.rows_failed} of them failed"),
                ("compared", ", ".join(found.columns_compared) or "no column is the input's"),
                ("whole", "yes" if found.whole else "NO"),
            ]
        )
    )


def show_results(results: JobResults, output: Format) -> None:
    """The first rows of a job's output."""
    if output is not Format.TABLE:
        print_data(_plain(results), output)
        return
    if results.first_rows:
        table = _table(*results.columns)
        for row in results.first_rows:
            table.add_row(*(_cell(row[name]) for name in results.columns))
        _print(table)


def _cell(value: Any) -> str:  # noqa: ANN401 - JSON
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = "-" if value is None else " ".join(text.split())
    return text if len(text) <= _CELL_CHARACTERS else text[: _CELL_CHARACTERS - 1] + "…"


def rows_text(job: JobSnapshot) -> str:
    """How far a job is, in words."""
    total = "?" if job.rows_total is None else str(job.rows_total)
    failed = f", {job.rows_failed} failed" if job.rows_failed else ""
    speed = f", {job.rows_per_s:.1f} rows/s" if job.rows_per_s and not job.status.final else ""
    return f"{job.rows_done}/{total}{failed}{speed}"


def account_text(account: JobAccount) -> str:
    """What a job did over all its runs, in words."""
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


def _plain(record: Record) -> dict[str, Any]:
    return record.model_dump(mode="json")


def _phase(swarm: SwarmSnapshot) -> str:
    """What was seen just now, where something was; else what the record says."""
    unseen = swarm.observed in ("not_probed", "unknown")
    if unseen or swarm.phase.value in ("failed", "stopping"):
        return swarm.phase.value
    return swarm.observed


def _moment(at: datetime) -> str:
    return f"{at.astimezone():%Y-%m-%d %H:%M}"


def _replicas(replicas: Iterable[ReplicaSnapshot]) -> Table:
    table = _table("replica", "state", "http", "last seen", "restarts", "running", "why")
    for one in replicas:
        state = f"{one.state.value} (stale)" if one.stale else one.state.value
        table.add_row(
            str(one.index),
            _coloured(state),
            "-" if one.http_status is None else str(one.http_status),
            "never" if one.last_seen_s is None else f"{one.last_seen_s:.0f} s ago",
            str(one.restarts),
            "-" if one.requests_running is None else f"{one.requests_running:.0f}",
            one.reason or "",
        )
    return table


def _jobs(jobs: Iterable[JobSnapshot]) -> Table:
    table = _table("job", "name", "swarm", "status", "rows", "output")
    for job in jobs:
        table.add_row(
            job.job_id,
            job.name,
            job.swarm or "-",
            _coloured(job.status.value),
            rows_text(job),
            job.output or "-",
        )
    return table


def _table(*columns: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _pairs(pairs: Iterable[tuple[str, str]]) -> Table:
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    for name, value in pairs:
        table.add_row(name, value)
    return table


def _coloured(word: str) -> Text:
    from rich.text import Text

    return Text(word, style=_COLOURS.get(word, ""))


def _print(table: Table) -> None:
    from rich.console import Console

    width = None if sys.stdout.isatty() else _PIPED_WIDTH
    Console(width=width, markup=False, highlight=False, emoji=False).print(table)
