"""The `checkpoints` commands: list and remove."""

from __future__ import annotations

import itertools
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated

import typer

from domyn_swarm.cli.console import confirm, interactive, say
from domyn_swarm.cli.rendering import Column, moment, print_record, print_table
from domyn_swarm.cli.shared_options import (
    Format,
    FormatOption,
    JsonOption,
    YamlOption,
    chosen_format,
)
from domyn_swarm.errors import StateError, quantity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from domyn_swarm.services.checkpoints import CheckpointList, CheckpointQuery, JobEntry

_SHOWN = 40  # characters of a prompt
_NAMED = 20  # jobs, when the user is not asked to confirm

_COLUMNS = (
    Column("identity", whole=True),
    Column("job", spare=7),
    Column("model", spare=8),
    Column("prompt", spare=2),
    Column("input", spare=1),
    Column("rows"),
    Column("size", spare=3),
    Column("written", spare=5),
    Column("lease", spare=6),
    Column("last run", whole=True, spare=4),
)

checkpoints_app = typer.Typer(help="Checkpoints of jobs.", no_args_is_help=True)

RefsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[REF…]",
        help="A job's id, for its rows; or the beginning of an identity, for the rows of all jobs "
        "with the same requests.",
    ),
]
OlderOption = Annotated[
    float | None,
    typer.Option("--older-than", min=0, metavar="DAYS", help="Not written for this many days."),
]
FolderOption = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint-dir", metavar="DIR", help="Folder of the checkpoints, if not in the home."
    ),
]


@checkpoints_app.command("list")
def list_command(
    refs: RefsArgument = None,
    older_than: OlderOption = None,
    folder: FolderOption = None,
    output: FormatOption = Format.TABLE,
    as_json: JsonOption = False,
    as_yaml: YamlOption = False,
) -> None:
    """List checkpoints, job by job: input, number of rows, size, last write, and holder of the
    lease. Jobs of one identity send the same requests, and use each other's answers.

    A lease is `held` by a running process of this machine, or `claimed` by a process of another
    machine, and only `rm` checks whether that one still runs. Exits with 3 if a REF matches none
    or several.

    Example: domyn-swarm checkpoints list --older-than 30
    """
    from domyn_swarm.services.checkpoints import list_checkpoints

    form = chosen_format(output, as_json, as_yaml)
    listed = list_checkpoints(_query(refs, older_than, folder))
    show_checkpoints(listed, form)


@checkpoints_app.command("rm")
def remove(
    refs: RefsArgument = None,
    older_than: OlderOption = None,
    folder: FolderOption = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove without asking.")] = False,
    output: FormatOption = Format.TABLE,
    as_json: JsonOption = False,
    as_yaml: YamlOption = False,
) -> None:
    """Remove checkpoints: their rows would be sent again. A checkpoint that is held is kept.

    A job's id removes the answers of that job, and names the other jobs that use answers of it; an
    identity removes the answers of all its jobs.

    Asks first on a terminal, unless -y is given; without a terminal -y is required. Exits with 3 if
    a REF matches none or several, or a checkpoint is held, and with 1 if you answered no.

    Example: domyn-swarm checkpoints rm --older-than 90 -y
    """
    from domyn_swarm.services.checkpoints import list_checkpoints, remove_checkpoints

    form = chosen_format(output, as_json, as_yaml)
    if not refs and older_than is None:
        raise typer.BadParameter("name checkpoints by identity or job id, or use --older-than.")
    if not yes and not interactive():
        raise typer.BadParameter("without a terminal -y is required.")
    listed = list_checkpoints(_query(refs, older_than, folder))
    if yes:
        for line in itertools.islice(_leaving(listed), _NAMED):
            say(line)
    for line in _touched(listed):
        say(line)
    if listed.checkpoints and not yes:
        show_checkpoints(listed, Format.TABLE)
        rows = sum(one.rows_done for one in listed.checkpoints)
        jobs = sum(len(one.jobs) for one in listed.checkpoints)
        left = f"{quantity(jobs, 'job')} left, {quantity(rows, 'finished row')}"
        if not confirm(f"Remove what {left}?"):
            say("Nothing was removed.")
            raise typer.Exit(1)
    report = remove_checkpoints(listed)
    if form is Format.TABLE:
        for removal in report.checkpoints:
            key = "" if removal.key is None else f"/{removal.key}"
            outcome = "removed" if removal.removed else "NOT removed"
            typer.echo(f"{removal.identity}{key} {outcome}")
    else:
        print_record(report, form)
    say(f"{_size(report.bytes_freed)} were freed.")
    kept = [removal for removal in report.checkpoints if not removal.removed]
    if kept:
        message = "\n".join(str(removal.error) for removal in kept)
        raise StateError(message, hint=kept[0].hint or "")


def _query(
    refs: list[str] | None, older_than: float | None, folder: Path | None
) -> CheckpointQuery:
    from domyn_swarm.services.checkpoints import CheckpointQuery

    return CheckpointQuery(refs=tuple(refs or ()), older_than_days=older_than, root=folder)


def show_checkpoints(listed: CheckpointList, output: Format) -> None:
    """The jobs with stored rows, a line each."""
    if output is not Format.TABLE:
        print_record(listed, output)
        return
    rows = [
        (
            checkpoint.identity,
            (checkpoint.job or "?") + (f" ({checkpoint.tag})" if checkpoint.tag else ""),
            checkpoint.model or "?",
            _start(checkpoint.prompt or "-"),
            *cells,
        )
        for checkpoint in listed.checkpoints
        for cells in (map(_job_cells, checkpoint.jobs) if checkpoint.jobs else [("-",) * 6])
    ]
    if rows:
        print_table(_COLUMNS, rows)
    say(f"{len(listed.checkpoints)} in {listed.root}, {_size(listed.bytes)}")


def _job_cells(job: JobEntry) -> tuple[str, ...]:
    return (
        PurePath(job.input).name if job.input else "?",
        f"{job.rows_done}" + (f", {job.rows_failed} failed" if job.rows_failed else ""),
        _size(job.bytes),
        moment(job.last_written_at),
        f"{job.lease} by {job.holder}" if job.holder else job.lease,
        _named(job.job_ids[-1] if job.job_ids else "-", job.external_id),
    )


def _leaving(listed: CheckpointList) -> Iterator[str]:
    """A line for each listed job."""
    for job in (job for checkpoint in listed.checkpoints for job in checkpoint.jobs):
        name = _named(job.job_ids[-1] if job.job_ids else job.key, job.external_id)
        rows = quantity(job.rows_done, "finished row goes", "finished rows go")
        yield f"{name} over {job.input or '?'}: {rows}."


def _touched(listed: CheckpointList) -> Iterator[str]:
    """The other jobs that would lose answers, a line each."""
    for one in (one for checkpoint in listed.checkpoints for one in checkpoint.touched):
        name = _named(one.job_id or one.key, one.external_id)
        rows = quantity(one.rows, "row")
        yield f"{name} over {one.input or '?'} uses {rows} of these, and would send them again."


def _named(job_id: str, external_id: str | None) -> str:
    return f"{job_id} ({external_id})" if external_id else job_id


def _start(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else line[: _SHOWN - 1] + "…"


def _size(size_bytes: int) -> str:
    size, units = float(size_bytes), iter(("B", "kB", "MB", "GB"))
    for unit in units:
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
