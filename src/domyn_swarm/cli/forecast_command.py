"""A job's forecast on the command line: a sample is sent and shown, then all rows if wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from domyn_swarm.cli.console import say
from domyn_swarm.cli.rendering import Column, figure, print_pairs, print_record, print_table
from domyn_swarm.cli.shared_options import Format
from domyn_swarm.cli.trials import submitted_if_wanted, tried
from domyn_swarm.errors import quantity
from domyn_swarm.model import TimeLeft

if TYPE_CHECKING:
    from domyn_swarm.jobs.forecasting import Choice, JobForecast
    from domyn_swarm.services.requests import JobRequest

_COLUMNS = (
    Column("replicas", whole=True),
    Column("rows/s", whole=True),
    Column("time", whole=True),
    Column("GPU-hours", whole=True),
    Column("in flight", whole=True, spare=2),
    Column("start", spare=1),
)


def forecast_then_submit(
    request: JobRequest,
    *,
    rows: int | None,
    yes: bool,
    detach: bool,
    no_progress: bool,
    output: Format,
) -> None:
    """Send a sample, show what the rest takes, and continue as `job preview` does."""
    from domyn_swarm.jobs.forecasting import check_answered

    found = asked_forecast(request, rows)
    show_forecast(found, output)
    check_answered(found)
    submitted_if_wanted(request, yes=yes, output=output, detach=detach, no_progress=no_progress)


def asked_forecast(request: JobRequest, rows: int | None) -> JobForecast:
    """Send a sample; see `tried`."""
    from domyn_swarm.services.jobs import JobService

    say("A sample of the job's rows is asked; its answers are kept.")
    return tried(lambda: JobService().forecast(request, say, rows=rows))


def show_forecast(found: JobForecast, output: Format) -> None:
    """What a job takes, by the number of replicas."""
    if output is not Format.TABLE:
        print_record(found, output)
        return
    failed = f", {found.rows_failed} failed" if found.rows_failed else ""
    took = f"{quantity(found.rows_asked, 'row')} in {found.sample_s:.1f} s{failed}"
    tokens = "-" if not found.rows_left else "unknown: the endpoint does not count them"
    if found.prompt_tokens_left is not None:
        tokens = f"{found.prompt_tokens_left} in, {found.completion_tokens_left} out"
    print_pairs(
        [
            ("job", found.job),
            ("swarm", found.swarm or "-"),
            ("endpoint", f"{found.endpoint} ({found.model})"),
            ("input", found.input),
            ("output", found.output),
            ("sample", took),
            ("rows left", f"{found.rows_left} of {found.rows_total}"),
            ("tokens left", tokens),
        ]
    )
    if found.choices:
        typer.echo()
        print_table(
            _COLUMNS, [_line(one, now=one.replicas == found.replicas) for one in found.choices]
        )
    elif not found.rows_left:
        say("No row is left to ask.")
    else:
        say("Too few rows were asked to say what the others take: --sample ROWS asks more.")
    for note in found.notes:
        say(note)


def _line(one: Choice, *, now: bool) -> tuple[str, ...]:
    replicas = "as it is" if one.replicas is None else f"{one.replicas}{' (now)' if now else ''}"
    hours = "-"
    if one.gpu_hours is not None:
        low, high = figure(one.gpu_hours_low or 0.0), figure(one.gpu_hours_high or 0.0)
        hours = f"{figure(one.gpu_hours)} ({low}-{high})"
    return (
        replicas,
        figure(one.rows_per_s),
        str(TimeLeft(one.duration_s, one.duration_low_s, one.duration_high_s)),
        hours,
        str(one.in_flight),
        one.start or ("up" if now else "-"),
    )
