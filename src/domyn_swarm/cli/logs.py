"""The command `logs`, and what commands that print logs share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from domyn_swarm.cli import candidates
from domyn_swarm.cli.status import NameArgument

FollowOption = Annotated[bool, typer.Option("-f", "--follow", help="Go on as it grows.")]
LinesOption = Annotated[
    int, typer.Option("-n", "--lines", min=0, help="How many lines from the end.")
]


def logs(
    name: NameArgument = None,
    replica: Annotated[
        int | None, typer.Argument(min=0, help="One replica, from 0; all when left out.")
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
    """Print the logs of a swarm: its replicas', or another part's.

    Those of several replicas are merged in the order of time, each line with its replica; what the
    watchdogs say of the replicas' states stands between. -n counts lines of each replica. With -f
    it goes on until the swarm has ended; Ctrl-C exits with 130. A job's log needs no swarm.

    Example: domyn-swarm logs my-swarm 0 -f
    """
    from domyn_swarm.services.logs import swarm_logs
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
    """Print lines as they come: whoever reads a pipe sees each at once. Return how many."""
    printed = 0
    for line in lines:
        typer.echo(line)
        sys.stdout.flush()
        printed += 1
    return printed
