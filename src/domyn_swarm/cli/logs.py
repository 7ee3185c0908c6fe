"""The command `logs`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from domyn_swarm.cli.options import complete_swarm


def logs(
    name: Annotated[str, typer.Argument(help="The swarm.", autocompletion=complete_swarm)],
    replica: Annotated[
        int | None, typer.Argument(min=0, help="One replica; all when left out.")
    ] = None,
    of_endpoint: Annotated[
        bool, typer.Option("--endpoint", help="The endpoint's log: router and collector.")
    ] = False,
    of_watchdog: Annotated[bool, typer.Option("--watchdog", help="The watchdogs' logs.")] = False,
    job: Annotated[str | None, typer.Option("--job", metavar="ID", help="A job's log.")] = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on as it grows.")] = False,
    last_lines: Annotated[
        int, typer.Option("-n", "--lines", min=0, help="How many lines from the end.")
    ] = 200,
) -> None:
    """Print the logs of a swarm: its replicas', or another part's.

    Example: domyn-swarm logs my-swarm 0 -f
    """
    from domyn_swarm.services.requests import LogRequest
    from domyn_swarm.services.swarms import SwarmService

    if sum((of_endpoint, of_watchdog, job is not None)) > 1:
        raise typer.BadParameter("--endpoint, --watchdog and --job exclude each other.")
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
    for line in SwarmService().logs(request):
        typer.echo(line.rstrip("\n"))
        if follow:
            sys.stdout.flush()
