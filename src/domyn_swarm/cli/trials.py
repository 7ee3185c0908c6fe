"""Rows that a command sends before it submits a job, and whether it continues with all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import typer

from domyn_swarm.cli.console import confirm, interactive, say
from domyn_swarm.cli.following import follow
from domyn_swarm.cli.shared_options import Format
from domyn_swarm.errors import EXIT_INTERRUPTED

if TYPE_CHECKING:
    from domyn_swarm.services.requests import JobRequest

_T = TypeVar("_T")


def tried(ask: Callable[[], _T]) -> _T:
    """The result of sending some rows; Ctrl-C ends it after the rows in flight, and the command."""
    try:
        return ask()
    except KeyboardInterrupt:
        say("\nInterrupted: the answers so far are kept, and no job was submitted.")
        raise typer.Exit(EXIT_INTERRUPTED) from None


def submitted_if_wanted(
    request: JobRequest, *, yes: bool, output: Format, detach: bool, no_progress: bool
) -> bool:
    """Submit the job and follow it: with `yes`, or after a confirmation on a terminal; return
    whether it was submitted. Without a terminal it is not; a refusal ends the command with 1.
    """
    from domyn_swarm.services.jobs import JobService

    if not (yes or (output is Format.TABLE and interactive())):
        say("No job was submitted: `job submit` with the same flags continues, and so does -y.")
        return False
    if not (yes or confirm("full run?")):
        say("No job was submitted. The answers are kept.")
        raise typer.Exit(1)
    # If every row is to be sent anew, the rows that were sent here are the first of them.
    follow(
        JobService().submit(request.model_copy(update={"resume": True})),
        detach=detach,
        no_progress=no_progress,
        time_limit_s=request.resources.time_limit_s,
    )
    return True
