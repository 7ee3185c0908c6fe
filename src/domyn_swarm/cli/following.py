"""Follows a job that was just submitted: its id, its progress bar, its end, Ctrl-C."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

from domyn_swarm.cli.console import say
from domyn_swarm.errors import EXIT_INTERRUPTED, quantity

if TYPE_CHECKING:
    from domyn_swarm.model import JobHandle
    from domyn_swarm.swarm.snapshot import JobSnapshot


def follow(
    handle: JobHandle, *, detach: bool, no_progress: bool, time_limit_s: float | None = None
) -> None:
    """Print the job's handle as one line of JSON, or on a terminal its id and the next commands;
    unless detached, end as the job ends. For a job over rows with its own time limit, say what
    happens at the limit.
    """
    if sys.stdout.isatty():
        typer.echo(handle.job_id)
        say("\n".join(_what_next(handle.job_id, detach=detach)))
    else:
        typer.echo(handle.model_dump_json())
    sys.stdout.flush()
    if time_limit_s is not None:
        say(
            f"{handle.job_id} ends after {time_limit_s / 60:g} min (--time), whatever is left: "
            f"domyn-swarm job resume {handle.job_id} --time LIMIT asks the rest"
        )
    if not detach:
        final = _follow(handle, bar=not no_progress)
        _summarise(final)
        raise typer.Exit(final.status.exit_code)


def _what_next(job_id: str, *, detach: bool) -> Iterator[str]:
    yield f"See how far it is:  domyn-swarm job status {job_id} --watch"
    if detach:
        yield f"Wait for its end:   domyn-swarm job wait {job_id}"
    stop = "" if detach else "Ctrl-C, or "
    yield f"Stop it:            {stop}domyn-swarm job cancel {job_id}"


def _follow(handle: JobHandle, *, bar: bool) -> JobSnapshot:
    """Wait for the job's end. Ctrl-C stops the job; a second one leaves it to stop on its own."""
    from domyn_swarm.cli.console import rows
    from domyn_swarm.services.jobs import JobService

    service = JobService()
    try:
        with rows(bar=bar) as on_progress:
            return service.wait(handle, on_progress=on_progress)
    except KeyboardInterrupt:
        say(
            f"\nInterrupted: {handle.job_id} finishes the rows in flight and stops. "
            "Ctrl-C again to leave it alone."
        )
    try:
        stopped = service.cancel(handle)
    except KeyboardInterrupt:
        say(f"Left alone. See how it went: domyn-swarm job status {handle.job_id}")
    else:
        done = quantity(stopped.rows_done, "row")
        say(f"Stopped after {done}. The same command continues from there.")
    raise typer.Exit(EXIT_INTERRUPTED)


def _summarise(job: JobSnapshot) -> None:
    """Print how it ended, and where to read more."""
    from domyn_swarm.cli.job_views import (
        account_text,
        failed_text,
        rows_text,
        split_text,
        verdicts_text,
    )

    if job.output is None:  # a program of the user's has no rows
        say(f"{job.job_id} {job.status.value}" + (f": {job.message}" if job.message else ""))
        say(f"log: {job.log_path}")
        return
    say(f"{job.job_id} {job.status.value}: {rows_text(job)} rows{split_text(job)}")
    if text := failed_text(job):
        say(f"failed: {text}")
    if text := verdicts_text(job.verdicts):
        say(f"answers: {text}; {_asked_again(job)}")
    for remark in job.remarks:
        say(remark)
    if job.account is not None and job.account.requests:
        say(account_text(job.account))
    if job.message:
        say(job.message)
    if job.status.exit_code in (0, 7):
        say(f"output: {job.output}")
    else:
        say(f"log: {job.log_path}")


def _asked_again(job: JobSnapshot) -> str:
    """The command that sends incomplete rows again, as words. A retry of a job that has not
    published would leave out rows that it had not reached.
    """
    if job.status.exit_code not in (0, 7):
        return f"`domyn-swarm job resume {job.job_id}` asks the rows that are left"
    classes = ",".join(sorted({name.value for name in job.verdicts} - {"complete"}))
    return f"`domyn-swarm job retry-failed {job.job_id} --class {classes}` asks those again"
