"""What the commands about the state database print."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from domyn_swarm.cli.console import confirm, interactive, say
from domyn_swarm.cli.options import Format, FormatOption, JsonOption, YamlOption, chosen_format
from domyn_swarm.cli.rendering import Column, moment, print_pairs, print_record, print_table
from domyn_swarm.errors import quantity

if TYPE_CHECKING:
    from domyn_swarm.services.database import DatabaseRevision
    from domyn_swarm.swarm.pruning import PruneReport


def show_revision(found: DatabaseRevision, output: Format) -> None:
    """Of which revision the database was, and is."""
    if output is not Format.TABLE:
        print_record(found, output)
        return
    print_pairs(
        [("database", found.path), ("was", found.before or "none"), ("revision", found.now)]
    )


def show_prune(report: PruneReport, output: Format) -> None:
    """What is forgotten, or would be, and what stays."""
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
    kept = [(one.name, "kept", one.why) for one in report.kept]
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
    """Bring the state database to the newest revision, as every command does on first use.

    One of a newer domyn-swarm is refused, and left alone.

    Example: domyn-swarm db upgrade
    """
    from domyn_swarm.services.database import DatabaseService

    form = chosen_format(output, as_json, as_yaml)
    show_revision(DatabaseService().upgrade(), form)


@db_app.command()
def stamp(
    revision: Annotated[
        str | None,
        typer.Argument(metavar="[REVISION]", help="The newest when left out."),
    ] = None,
    output: FormatOption = Format.TABLE,
    as_json: JsonOption = False,
    as_yaml: YamlOption = False,
) -> None:
    """Write down of which revision the database is, when it lost that; its tables must agree.

    Example: domyn-swarm db stamp
    """
    from domyn_swarm.services.database import DatabaseService

    form = chosen_format(output, as_json, as_yaml)
    show_revision(DatabaseService().stamp(revision), form)


@db_app.command()
def prune(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove, and do not ask.")] = False,
    older_than: Annotated[
        float,
        typer.Option(
            "--older-than",
            min=0,
            metavar="DAYS",
            help="How long ago jobs without a swarm have ended that go.",
        ),
    ] = 30.0,
    output: FormatOption = Format.TABLE,
    as_json: JsonOption = False,
    as_yaml: YamlOption = False,
) -> None:
    """Forget swarms that are over: their records, folders (logs, keys, scripts) and ended jobs;
    and jobs without a swarm that ended long ago.

    Shows what would go, and asks; without a terminal it removes only with --yes. What lives, or
    could not be asked, stays. Outputs and checkpoints are never touched.

    Example: domyn-swarm db prune
    """
    from domyn_swarm.services.database import DatabaseService

    form = chosen_format(output, as_json, as_yaml)
    service = DatabaseService()
    found = service.prunable(jobs_older_than_days=older_than)
    if not yes:
        show_prune(found, form)
        something = bool(found.swarms or found.jobs)
        asked = something and interactive() and form is Format.TABLE
        swarms, jobs = quantity(len(found.swarms), "swarm"), quantity(len(found.jobs), "job")
        what = f"{swarms} and {jobs} without one"
        if not (asked and confirm(f"Remove {what}?")):
            say("Nothing was removed." + (" Add --yes to remove them." if something else ""))
            return
    show_prune(service.prune(found), form)
