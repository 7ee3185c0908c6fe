"""Commands about checkpoints: what lies there, and removing it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from domyn_swarm.cli.console import confirm, interactive, say
from domyn_swarm.cli.options import Format, FormatOption, JsonOption, YamlOption, chosen_format
from domyn_swarm.errors import StateError

if TYPE_CHECKING:
    from domyn_swarm.services.checkpoints import CheckpointList, CheckpointQuery

checkpoints_app = typer.Typer(help="What jobs have left to go on with.", no_args_is_help=True)

RefsArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="[REF…]", help="The beginning of an identity, or a job's id."),
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
    """List checkpoints: of which job, how large, how many rows, when written, held by whom.

    A lease is `held` by a process of this machine that runs, `claimed` by another machine's, of
    which only `rm` finds out whether it still runs. Exits with 3 when a REF means none or several.

    Example: domyn-swarm checkpoints list --older-than 30
    """
    from domyn_swarm.cli.rendering import print_record
    from domyn_swarm.services.checkpoints import list_checkpoints

    form = chosen_format(output, as_json, as_yaml)
    listed = list_checkpoints(_query(refs, older_than, folder))
    if form is Format.TABLE:
        _show(listed)
    else:
        print_record(listed, form)


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
    """Remove checkpoints: their jobs would ask every row again. One that is held stays.

    A terminal is asked first, unless -y is given; without a terminal -y is needed. Exits with 3
    when a REF means none or several, or when one is held, and with 1 when you answered no.

    Example: domyn-swarm checkpoints rm --older-than 90 -y
    """
    from domyn_swarm.cli.rendering import print_record
    from domyn_swarm.services.checkpoints import list_checkpoints, remove_checkpoints

    form = chosen_format(output, as_json, as_yaml)
    if not refs and older_than is None:
        raise typer.BadParameter("say which: by identity, by a job's id, or with --older-than.")
    if not yes and not interactive():
        raise typer.BadParameter("without a terminal it needs -y.")
    listed = list_checkpoints(_query(refs, older_than, folder))
    if listed.checkpoints and not yes:
        _show(listed)
        rows = sum(one.rows_done for one in listed.checkpoints)
        if not confirm(f"Remove {len(listed.checkpoints)} with {rows} finished rows?"):
            say("Nothing was removed.")
            raise typer.Exit(1)
    report = remove_checkpoints(listed)
    if form is Format.TABLE:
        for one in report.checkpoints:
            typer.echo(f"{one.identity} {'removed' if one.removed else 'NOT removed'}")
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


def _show(listed: CheckpointList) -> None:
    from domyn_swarm.cli.rendering import moment, print_table

    rows = [
        (
            one.identity,
            one.job_name or "-",
            (one.job or "?") + (f" ({one.tag})" if one.tag else ""),
            one.model or "?",
            f"{one.rows_done}" + (f", {one.rows_failed} failed" if one.rows_failed else ""),
            _size(one.bytes),
            moment(one.last_written_at),
            f"{one.lease} by {one.holder}" if one.holder else one.lease,
            one.job_ids[-1] if one.job_ids else "-",
        )
        for one in listed.checkpoints
    ]
    columns = ("identity", "name", "job", "model", "rows", "size", "written", "lease", "last run")
    print_table(columns, rows)
    say(f"{len(rows)} in {listed.root}, {_size(listed.bytes)}")


def _size(size_bytes: int) -> str:
    size, units = float(size_bytes), iter(("B", "kB", "MB", "GB"))
    for unit in units:
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
