"""The `db` commands, and what they print."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from domyn_swarm.cli.console import confirm, interactive, say
from domyn_swarm.cli.rendering import Column, moment, print_pairs, print_record, print_table
from domyn_swarm.cli.shared_options import (
    Format,
    FormatOption,
    JsonOption,
    YamlOption,
    chosen_format,
)
from domyn_swarm.errors import quantity

if TYPE_CHECKING:
    from domyn_swarm.services.database import DatabaseRevision
    from domyn_swarm.swarm.pruning import PruneReport


def show_revision(revision: DatabaseRevision, output: Format) -> None:
    """Print the database's revision before and after an operation."""
    if output is not Format.TABLE:
        print_record(revision, output)
        return
    before = revision.before or "none"
    print_pairs([("database", revision.path), ("was", before), ("revision", revision.now)])


def show_prune(report: PruneReport, output: Format) -> None:
    """Print what is removed, or would be, and what is kept."""
    if output is not Format.TABLE:
        print_record(report, output)
        return
    going = "removed" if report.removed else "would be removed"
    rows = [
        (
            swarm.name,
            going,
            f"stopped {moment(swarm.stopped_at)}, {jobs}, {swarm.swarm_dir}",
        )
        for swarm in report.swarms
        for jobs in [quantity(len(swarm.jobs), "ended job")]
    ]
    kept = [(swarm.name, "kept", swarm.why) for swarm in report.kept]
    if rows or kept:
        print_table((Column("swarm", whole=True), "", "what"), [*rows, *kept])
    jobs = [
        (job.job_id, going, f"{job.name}, ended {moment(job.ended_at)}, {job.job_dir}")
        for job in report.jobs
    ]
    kept_jobs = [(one.job_id, "kept", one.why) for one in report.kept_jobs]
    if not (rows or jobs):
        say("There is nothing to forget.")
    if jobs or kept_jobs:
        columns = (Column("job without a swarm", whole=True), "", "what")
        print_table(columns, [*jobs, *kept_jobs])


db_app = typer.Typer(help="The state database.", no_args_is_help=True)


@db_app.command()
def upgrade(
    output: FormatOption = Format.TABLE,
    as_json: JsonOption = False,
    as_yaml: YamlOption = False,
) -> None:
    """Upgrade the state database to the newest revision, as every command does on first use.

    A database of a newer domyn-swarm is refused, and not changed.

    Example: domyn-swarm db upgrade
    """
    from domyn_swarm.services.database import DatabaseService

    form = chosen_format(output, as_json, as_yaml)
    show_revision(DatabaseService().upgrade(), form)


@db_app.command()
def stamp(
    revision: Annotated[
        str | None,
        typer.Argument(metavar="[REVISION]", help="By default the newest."),
    ] = None,
    output: FormatOption = Format.TABLE,
    as_json: JsonOption = False,
    as_yaml: YamlOption = False,
) -> None:
    """Record the revision of a database in which it is missing; its tables must match.

    Example: domyn-swarm db stamp
    """
    from domyn_swarm.services.database import DatabaseService

    form = chosen_format(output, as_json, as_yaml)
    show_revision(DatabaseService().stamp(revision), form)


@db_app.command()
def prune(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove without asking.")] = False,
    older_than: Annotated[
        float,
        typer.Option(
            "--older-than",
            min=0,
            metavar="DAYS",
            help="Remove jobs without a swarm that ended this many days ago.",
        ),
    ] = 30.0,
    output: FormatOption = Format.TABLE,
    as_json: JsonOption = False,
    as_yaml: YamlOption = False,
) -> None:
    """Remove stopped swarms (records, folders with logs, keys and scripts, ended jobs), and jobs
    without a swarm that ended long ago.

    Shows what would be removed, and asks; without a terminal --yes is required. What is live, or
    cannot be checked, is kept. Outputs and checkpoints are never removed.

    Example: domyn-swarm db prune
    """
    from domyn_swarm.services.database import DatabaseService

    form = chosen_format(output, as_json, as_yaml)
    service = DatabaseService()
    prunable = service.prunable(jobs_older_than_days=older_than)
    if not yes:
        show_prune(prunable, form)
        any_prunable = bool(prunable.swarms or prunable.jobs)
        asks = any_prunable and interactive() and form is Format.TABLE
        swarms, jobs = quantity(len(prunable.swarms), "swarm"), quantity(len(prunable.jobs), "job")
        what = f"{swarms} and {jobs} without one"
        if not (asks and confirm(f"Remove {what}?")):
            say("Nothing was removed." + (" Add --yes to remove them." if any_prunable else ""))
            return
    show_prune(service.prune(prunable), form)
