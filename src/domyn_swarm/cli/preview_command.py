"""The `job preview` command: sends and shows the first rows, then submits all of them if wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from domyn_swarm.cli.console import say
from domyn_swarm.cli.flags import taking_flags
from domyn_swarm.cli.job_flags import JobFlags
from domyn_swarm.cli.rendering import cell_text, print_record, print_table
from domyn_swarm.cli.shared_options import (
    DetachOption,
    Format,
    FormatOption,
    JsonOption,
    NoProgressOption,
    YamlOption,
    chosen_format,
)
from domyn_swarm.cli.trials import submitted_if_wanted, tried
from domyn_swarm.errors import EXIT_FAILED_ROWS, EXIT_OK, quantity

if TYPE_CHECKING:
    from domyn_swarm.jobs.preview import Preview

_CHARACTERS = 100  # of a value: ten rows should fit on a screen


@taking_flags
def preview(
    *,
    flags: JobFlags,
    rows: Annotated[
        int, typer.Option("-n", "--rows", min=1, max=1000, metavar="ROWS", help="How many.")
    ] = 10,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Go on with the full run without asking.")
    ] = False,
    detach: DetachOption = False,
    no_progress: NoProgressOption = False,
    output_format: FormatOption = Format.TABLE,
    as_json: JsonOption = False,
    as_yaml: YamlOption = False,
) -> None:
    """Send the first rows of a job and show their answers; then submit it, if that is wanted.

    The answers are kept: the full run, also as a later `job submit`, sends the other rows, and
    those that failed. On a terminal it asks whether to submit the job; elsewhere it stops there
    unless -y is given. Exits as `job submit` if it submits the job, with 1 if the answer is no,
    else with 0, or with 7 if some rows failed.

    Example: domyn-swarm job preview -f job.yaml
    """
    from domyn_swarm.services.jobs import JobService
    from domyn_swarm.swarm.job_file import read_job

    form = chosen_format(output_format, as_json, as_yaml)
    if form is not Format.TABLE and yes:
        raise typer.BadParameter("-y submits the job: leave --json and --yaml out.")
    request = read_job(flags.file, flags.layer(), detached=detach)
    found = tried(lambda: JobService().preview(request, say, rows=rows))
    show_preview(found, form)
    say_what_the_rest_takes(found)
    if not submitted_if_wanted(
        request, yes=yes, output=form, detach=detach, no_progress=no_progress
    ):
        failed = any(one.error for one in found.rows)
        raise typer.Exit(EXIT_FAILED_ROWS if failed else EXIT_OK)


def show_preview(found: Preview, output: Format) -> None:
    """The first rows of a job: their requests and their results."""
    if output is not Format.TABLE:
        print_record(found, output)
        return
    if not found.rows:
        return
    inputs = list(found.rows[0].input)
    answers = list(dict.fromkeys(name for one in found.rows for name in one.answer or {}))
    odd = ["note"] if any(one.verdict != "complete" for one in found.rows) else []
    lines = []
    for one in found.rows:
        values = [*(one.input[name] for name in inputs)]
        values += [(one.answer or {}).get(name) for name in answers]
        note = one.error.message if one.error else one.verdict.value
        values += [None if note == "complete" else note for _ in odd]
        lines.append([str(one.row), *(cell_text(value, _CHARACTERS) for value in values)])
    print_table(["row", *inputs, *answers, *odd], lines)


def say_what_the_rest_takes(found: Preview) -> None:
    """How many rows of a preview were sent, and what a full run may take."""
    from domyn_swarm.services.charts import duration

    failed = sum(one.error is not None for one in found.rows)
    again = f", {failed} failed: the full run asks again" if failed else ""
    say(f"{quantity(len(found.rows), 'row')}, {found.rows_asked} of them asked now{again}.")
    rest = found.estimate
    said = f"A full run asks {rest.rows} of {quantity(found.rows_total, 'row')}"
    if rest.rows and rest.prompt_tokens is not None:
        said += (
            f", roughly {quantity(rest.prompt_tokens, 'token')} in and {rest.completion_tokens} out"
        )
    if rest.rows and rest.duration_s is not None:
        said += f", {duration(rest.duration_s)} at the pace of these; more in flight are faster"
    say(f"{said}. Output: {found.output}")
