"""Commands about the results of a job: failures, verify, results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from domyn_swarm.cli.console import say
from domyn_swarm.cli.shared_options import (
    ExternalIdOption,
    Format,
    FormatOption,
    HandleOption,
    JsonOption,
    RefArgument,
    YamlOption,
    chosen_format,
    chosen_job,
)
from domyn_swarm.errors import quantity


def failures(
    ref: RefArgument = None,
    external_id: ExternalIdOption = None,
    handle_json: HandleOption = None,
    export: Annotated[
        Path | None,
        typer.Option("--export", metavar="FILE", help="Write the failed rows as Parquet."),
    ] = None,
    output: FormatOption = Format.TABLE,
    as_json: JsonOption = False,
    as_yaml: YamlOption = False,
) -> None:
    """Group a job's failed rows by their errors, with an example of each; say how many rows are not
    settled, and which command asks them.

    Example: domyn-swarm job failures nightly-run --export failed.parquet
    """
    from domyn_swarm.cli.job_views import say_what_is_left, show_failures
    from domyn_swarm.services.jobs import JobService

    form = chosen_format(output, as_json, as_yaml)
    which = chosen_job(ref, external_id, handle_json)
    found = JobService().failures(which, export=export)
    show_failures(found, form)
    say_what_is_left(found)


def report(
    ref: RefArgument = None,
    external_id: ExternalIdOption = None,
    handle_json: HandleOption = None,
    page: Annotated[
        Path | None,
        typer.Option("--output", metavar="FILE", help="Where to; else into the job's folder."),
    ] = None,
    as_json: JsonOption = False,
    as_yaml: YamlOption = False,
) -> None:
    """Write a page about a job, one HTML file with plots; print where it is.

    Example: domyn-swarm job report nightly-run --output nightly.html
    """
    from domyn_swarm.cli.rendering import print_record
    from domyn_swarm.services.jobs import JobService

    form = chosen_format(Format.TABLE, as_json, as_yaml)
    written = JobService().report(chosen_job(ref, external_id, handle_json), output=page)
    if form is Format.TABLE:
        typer.echo(written.path)
    else:
        print_record(written, form)


def verify(
    ref: RefArgument = None,
    external_id: ExternalIdOption = None,
    handle_json: HandleOption = None,
    output: FormatOption = Format.TABLE,
    as_json: JsonOption = False,
    as_yaml: YamlOption = False,
) -> None:
    """Check that a job's output is whole: every file intact, every input row once and in order.

    Exits with 6 when anything is wrong, and says what.

    Example: domyn-swarm job verify nightly-run
    """
    from domyn_swarm.cli.job_views import show_verification
    from domyn_swarm.errors import JobError
    from domyn_swarm.services.jobs import JobService

    form = chosen_format(output, as_json, as_yaml)
    found = JobService().verify(chosen_job(ref, external_id, handle_json))
    show_verification(found, form)
    for finding in found.findings:
        say(f"error: {finding}")
    if found.findings_left_out:
        say(f"error: and {found.findings_left_out} more.")
    if not found.whole:
        raise typer.Exit(JobError.exit_code)


def results(
    ref: RefArgument = None,
    external_id: ExternalIdOption = None,
    handle_json: HandleOption = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="The rows that are settled by now, from a checkpoint.")
    ] = False,
    export: Annotated[
        Path | None,
        typer.Option(
            "--export", metavar="FILE", help="Write all rows as .parquet, .jsonl or .csv."
        ),
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option("-n", min=0, metavar="ROWS", help="Show so many; 10, or with --export none."),
    ] = None,
    output: FormatOption = Format.TABLE,
    as_json: JsonOption = False,
    as_yaml: YamlOption = False,
) -> None:
    """Show the first rows of a job's output, or write all of them to a file.

    Example: domyn-swarm job results nightly-run --partial --export so-far.jsonl
    """
    from domyn_swarm.cli.job_views import show_results
    from domyn_swarm.services.jobs import JobService

    form = chosen_format(output, as_json, as_yaml)
    which = chosen_job(ref, external_id, handle_json)
    shown = (10 if export is None else 0) if rows is None else rows
    found = JobService().show_results(which, partial=partial, rows=shown, export=export)
    show_results(found, form)
    missing = found.rows_total - found.rows
    say(
        f"{quantity(found.rows, 'row')}, {found.rows_failed} of them failed"
        + (f"; {quantity(missing, 'more has', 'more have')} no result yet" if missing else "")
        + (f"; written to {export}" if export else "")
    )
