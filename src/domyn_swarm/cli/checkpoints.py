"""Commands about checkpoints: what lies there, and removing it."""

from __future__ import annotations

import itertools
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated

import typer

from domyn_swarm.cli.console import confirm, interactive, say
from domyn_swarm.cli.options import Format, FormatOption, JsonOption, YamlOption, chosen_format
from domyn_swarm.cli.rendering import Column, moment, print_record, print_table
from domyn_swarm.errors import StateError, quantity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from domyn_swarm.services.checkpoints import CheckpointList, CheckpointQuery, JobEntry

_SHOWN = 40  # characters of a prompt
_NAMED = 20  # jobs, where nobody is asked

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

checkpoints_app = typer.Typer(help="What jobs have left to go on with.", no_args_is_help=True)

RefsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[REF…]",
        help="A job's id, for what it left; or the beginning of an identity, for all jobs with the "
        "same requests.",
    ),
]
OlderOption = Annotated[
    float | None,
    typer.Option("--older-than", min=0, metavar="DAYS", help="Not written to for so long."),
]
FolderOption = Annotated[
    Path | None,
    typer.Option("--checkpoint-dir", metavar="DIR", help="Where they lie, if not in the home."),
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
    """List checkpoints, job by job: over which rows, how many, how large, when written, held by
    whom. Jobs of one identity ask the same, and find each other's answers.

    A lease is `held` by a process of this machine that runs, `claimed` by another machine's, of
    which only `rm` finds out whether it still runs. Exits with 3 when a REF means none or several.

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
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    output: FormatOption = Format.TABLE,
    as_json: JsonOption = False,
    as_yaml: YamlOption = False,
) -> None:
    """Remove checkpoints: those rows would be asked again. One that is held stays.

    A job's id removes what that job was answered, and names the other jobs that took answers from
    there; an identity removes what all its jobs were answered.

    A terminal is asked first, unless -y is given; without a terminal -y is needed. Exits with 3
    when a REF means none or several, or when one is held, and with 1 when you answered no.

    Example: domyn-swarm checkpoints rm --older-than 90 -y
    """
    from domyn_swarm.services.checkpoints import list_checkpoints, remove_checkpoints

    form = chosen_format(output, as_json, as_yaml)
    if not refs and older_than is None:
        raise typer.BadParameter("say which: by identity, by a job's id, or with --older-than.")
    if not yes and not interactive():
        raise typer.BadParameter("without a terminal it needs -y.")
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
        for one in report.checkpoints:
            what = one.identity if one.key is None else f"{one.identity}/{one.key}"
            typer.echo(f"{what} {'removed' if one.removed else 'NOT removed'}")
    else:
        print_record(report, form)
    say(f"{_size(report.bytes_freed)} are free again.")
    kept = [one for one in report.checkpoints if not one.removed]
    if kept:
        raise StateError("\n".join(str(one.error) for one in kept), hint=kept[0].hint or "")


def _query(
    refs: list[str] | None, older_than: float | None, folder: Path | None
) -> CheckpointQuery:
    from domyn_swarm.services.checkpoints import CheckpointQuery

    return CheckpointQuery(refs=tuple(refs or ()), older_than_days=older_than, root=folder)


def show_checkpoints(listed: CheckpointList, output: Format) -> None:
    """What jobs have left, a line for each."""
    if output is not Format.TABLE:
        print_record(listed, output)
        return
    rows = [
        (
            one.identity,
            (one.job or "?") + (f" ({one.tag})" if one.tag else ""),
            one.model or "?",
            _start(one.prompt or "-"),
            *cells,
        )
        for one in listed.checkpoints
        for cells in (map(_job_cells, one.jobs) if one.jobs else [("-",) * 6])
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
    """Whose answers are listed, a line each."""
    for job in (job for checkpoint in listed.checkpoints for job in checkpoint.jobs):
        name = _named(job.job_ids[-1] if job.job_ids else job.key, job.external_id)
        rows = quantity(job.rows_done, "finished row goes", "finished rows go")
        yield f"{name} over {job.input or '?'}: {rows}."


def _touched(listed: CheckpointList) -> Iterator[str]:
    """Who else would miss answers of what is listed, a line each."""
    for one in (one for checkpoint in listed.checkpoints for one in checkpoint.touched):
        name = _named(one.job_id or one.key, one.external_id)
        rows = quantity(one.rows, "row")
        yield f"{name} over {one.input or '?'} has {rows} from there, and would ask again."


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
