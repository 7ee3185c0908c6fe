"""The command `logs`, and the options of all commands that print logs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from domyn_swarm.cli import candidates
from domyn_swarm.cli.status import NameArgument

FollowOption = Annotated[bool, typer.Option("-f", "--follow", help="Also print new lines.")]
LinesOption = Annotated[
    int, typer.Option("-n", "--lines", min=0, help="Number of lines from the end.")
]


def logs(
    name: NameArgument = None,
    replica: Annotated[
        int | None, typer.Argument(min=0, help="One replica, from 0; by default all.")
    ] = None,
    of_endpoint: Annotated[
        bool, typer.Option("--endpoint", help="The endpoint's log: router and collector.")
    ] = False,
    of_watchdog: Annotated[bool, typer.Option("--watchdog", help="The watchdogs' logs.")] = False,
    job: Annotated[
        str | None,
        typer.Option(
            "--job",
            metavar="ID",
            help="A job's log.",
            autocompletion=candidates.jobs_of_swarm,
        ),
    ] = None,
    follow: FollowOption = False,
    last_lines: LinesOption = 200,
) -> None:
    """Print the logs of a swarm's replicas, or of its endpoint, its watchdogs or a job.

    The logs of several replicas are merged in the order of time, each line with its replica, and
    with the changes of state that the watchdogs report. -n counts lines per replica. With -f it
    prints new lines until the swarm has ended; Ctrl-C exits with 130. A job's log needs no swarm.

    Example: domyn-swarm logs my-swarm 0 -f
    """
    from domyn_swarm.services.merged_logs import swarm_logs
    from domyn_swarm.services.requests import LogRequest

    if sum((of_endpoint, of_watchdog, job is not None)) > 1:
        raise typer.BadParameter("--endpoint, --watchdog and --job exclude each other.")
    if replica is not None and (of_endpoint or job is not None):
        raise typer.BadParameter("a replica goes with --watchdog only.")
    source = (
        "endpoint" if of_endpoint else "watchdog" if of_watchdog else "job" if job else "replica"
    )
    request = LogRequest.model_validate(
        {
            "name": name,
            "source": source,
            "replica": replica,
            "job_id": job,
            "last_lines": last_lines,
            "follow": follow,
        }
    )
    print_lines(swarm_logs(request))


def print_lines(lines: Iterator[str]) -> int:
    """Print and flush each line, so that a reader of a pipe gets it at once; the line count."""
    printed = 0
    for line in lines:
        typer.echo(line)
        sys.stdout.flush()
        printed += 1
    return printed
