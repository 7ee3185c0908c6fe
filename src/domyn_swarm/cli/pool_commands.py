"""Commands about pools: several swarms from one file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from domyn_swarm.cli.console import confirm, interactive, say, termination_interrupts
from domyn_swarm.cli.shared_options import (
    Format,
    FormatOption,
    JsonOption,
    YamlOption,
    chosen_format,
)
from domyn_swarm.errors import EXIT_INTERRUPTED, LaunchError, PlatformError

if TYPE_CHECKING:
    from domyn_swarm.probing import Observation
    from domyn_swarm.services.pools import PoolStatus, PoolUpReport

pool_app = typer.Typer(help="Several swarms from one file.", no_args_is_help=True)

FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="The pool's YAML file.")]


@pool_app.command("up")
def up(
    file: FileArgument,
    max_parallel: Annotated[
        int | None,
        typer.Option("--max-parallel", min=1, max=64, metavar="N", help="How many at once."),
    ] = None,
    wait: Annotated[
        bool,
        typer.Option(
            "--wait/--no-wait", help="Return when each one's replicas answer, or at once."
        ),
    ] = True,
    timeout: Annotated[
        float | None,
        typer.Option("--timeout", min=0, metavar="S", help="Seconds for each, the queue included."),
    ] = None,
    all_or_nothing: Annotated[
        bool, typer.Option("--all-or-nothing", help="When one fails, stop what was launched here.")
    ] = False,
    output: FormatOption = Format.TABLE,
    as_json: JsonOption = False,
    as_yaml: YamlOption = False,
) -> None:
    """Bring a pool's swarms up, so many at once; print what became of each.

    What is up already stays as it is, and what an earlier call left half done is completed. When
    some fail the others stay up, and the exit code is 5. Ctrl-C says what keeps running.

    Example: domyn-swarm pool up pool.yaml --max-parallel 2
    """
    from domyn_swarm.cli.rendering import print_record
    from domyn_swarm.services.pools import PoolService, PoolUpRequest

    form = chosen_format(output, as_json, as_yaml)
    request = PoolUpRequest(
        max_parallel=max_parallel,
        wait=wait,
        timeout_s=timeout,
        all_or_nothing=all_or_nothing,
    )
    pool = PoolService.prepare(file)  # before a database is created
    with termination_interrupts():
        report = PoolService().up(pool, request, on_change=_say_change)
    if form is Format.TABLE:
        _show_up(report)
    else:
        print_record(report, form)
    _finish(report, file)


def _say_change(name: str, seen: Observation) -> None:
    detail = f": {seen.detail}" if seen.detail else ""
    say(f"{name}: {seen.phase.name.lower()}{detail}")


def _show_up(report: PoolUpReport) -> None:
    from domyn_swarm.cli.rendering import State, print_table

    rows = [
        (one.name, State(one.outcome), one.endpoint or "-", one.error or one.note or "")
        for one in report.swarms
    ]
    print_table(("swarm", "outcome", "endpoint", "why"), rows)


def _finish(report: PoolUpReport, file: Path) -> None:
    """Print what the user has to know, and exit with the code for it."""
    names = {
        kind: ", ".join(one.name for one in report.swarms if one.outcome in outcomes)
        for kind, outcomes in (
            ("running", ("up", "launched", "already_up", "interrupted")),
            ("failed", ("failed",)),
        )
    }
    if report.interrupted:
        say(
            f"Interrupted. These keep running: {names['running'] or 'none'}.\n"
            f"See them with `domyn-swarm pool status {file}`, stop them with "
            f"`domyn-swarm pool down {file}`."
        )
        raise typer.Exit(EXIT_INTERRUPTED)
    if not report.whole:
        hints = [f"{one.name}: {one.hint}" for one in report.swarms if one.hint]
        raise LaunchError(
            f"{report.pool}: {names['failed'] or 'none'} failed; up: {names['running'] or 'none'}.",
            hint="\n".join([*hints, f"Then run `domyn-swarm pool up {file}` again."]),
        )


@pool_app.command("status")
def status(
    file: FileArgument,
    output: FormatOption = Format.TABLE,
    as_json: JsonOption = False,
    as_yaml: YamlOption = False,
) -> None:
    """Show every swarm of a pool; JSON and YAML carry each one's whole snapshot.

    Example: domyn-swarm pool status pool.yaml --json
    """
    from domyn_swarm.cli.rendering import print_record
    from domyn_swarm.services.pools import PoolService

    form = chosen_format(output, as_json, as_yaml)
    found = PoolService().status(file)
    if form is Format.TABLE:
        _show_status(found)
    else:
        print_record(found, form)


def _show_status(found: PoolStatus) -> None:
    from domyn_swarm.cli.rendering import print_table
    from domyn_swarm.cli.views import SWARM_COLUMNS, swarm_cells

    absent = ("absent", *["-"] * (len(SWARM_COLUMNS) - 2))
    rows = [
        (one.name, *absent) if one.snapshot is None else swarm_cells(one.snapshot)
        for one in found.swarms
    ]
    print_table(SWARM_COLUMNS, rows)


@pool_app.command("down")
def down(
    file: FileArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    output: FormatOption = Format.TABLE,
    as_json: JsonOption = False,
    as_yaml: YamlOption = False,
) -> None:
    """Stop every swarm of a pool, and verify that nothing of them runs any more.

    A terminal is asked first, unless -y is given. When something could not be stopped its record
    stays, and the exit code is 4.

    Example: domyn-swarm pool down pool.yaml -y
    """
    from domyn_swarm.cli.rendering import print_record
    from domyn_swarm.cli.views import show_down
    from domyn_swarm.services.pools import PoolService

    form = chosen_format(output, as_json, as_yaml)
    service = PoolService()
    if not yes and interactive() and not confirm(f"Stop every swarm of {file}?"):
        say("Nothing was stopped.")
        raise typer.Exit(1)
    report = service.down(file)
    if form is Format.TABLE:
        show_down(report.swarms, form)
    else:
        print_record(report, form)
    left = [one for one in report.swarms if not one.stopped]
    if left:
        raise PlatformError(
            "; ".join(f"{one.name}: {one.error or 'parts of it still run'}" for one in left),
            hint=next((one.hint for one in left if one.hint), "Run the same command again."),
        )
