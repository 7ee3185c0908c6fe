"""Rows that a command asks before it submits a job, and whether it goes on with all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import typer

from domyn_swarm.cli.console import confirm, interactive, say
from domyn_swarm.cli.following import follow
from domyn_swarm.cli.options import Format
from domyn_swarm.errors import EXIT_INTERRUPTED

if TYPE_CHECKING:
    from domyn_swarm.services.requests import JobRequest

_T = TypeVar("_T")


def tried(ask: Callable[[], _T]) -> _T:
    """What asking some rows came to; Ctrl-C ends it after the rows in flight, and the command."""
    try:
        return ask()
    except KeyboardInterrupt:
        say("\nInterrupted: what was answered is kept, and no job was submitted.")
        raise typer.Exit(EXIT_INTERRUPTED) from None


def submitted_if_wanted(
    request: JobRequest, *, yes: bool, output: Format, detach: bool, no_progress: bool
) -> bool:
    """Submit the job and follow it: with `yes`, or on a terminal that agrees; return whether it
    was. Where nobody can be asked it is not, and a terminal that refuses ends the command with 1.
    """
    from domyn_swarm.services.jobs import JobService

    if not (yes or (output is Format.TABLE and interactive())):
        say("No job was submitted: `job submit` with the same flags goes on, and so does -y.")
        return False
    if not (yes or confirm("full run?")):
        say("No job was submitted. What was answered is kept.")
        raise typer.Exit(1)
    # Where every row was to be asked anew, the rows that were asked here have begun with that.
    follow(
        JobService().submit(request.model_copy(update={"resume": True})),
        detach=detach,
        no_progress=no_progress,
        time_limit_s=request.resources.time_limit_s,
    )
    return True
