"""The `top` command."""

from __future__ import annotations

import importlib.util
from typing import Annotated

import typer

from domyn_swarm.cli.console import interactive
from domyn_swarm.cli.status import NameArgument
from domyn_swarm.errors import ConfigError


def top(
    name: NameArgument = None,
    every: Annotated[
        float, typer.Option("--every", min=0.5, metavar="S", help="Seconds between refreshes.")
    ] = 2.0,
) -> None:
    """Watch a swarm live: replicas, tokens per second, queue, jobs with rows per second and ETA.

    Keys open logs, scale the swarm and cancel jobs, after confirmation. Needs a terminal of at
    least 80 columns, and the extra `tui`.

    Example: domyn-swarm top my-swarm
    """
    if importlib.util.find_spec("textual") is None:
        raise ConfigError(
            "The live view needs Textual, which is not installed.",
            hint="pip install 'domyn-swarm[tui]', or use `domyn-swarm status --watch`.",
        )
    if not interactive():
        raise ConfigError(
            "The live view needs a terminal.",
            hint="In programs, use `domyn-swarm status --json`.",
        )
    from domyn_swarm.cli.top.cells import Services
    from domyn_swarm.cli.top.live_view import TopApp
    from domyn_swarm.services.swarms import SwarmService

    service = SwarmService()
    swarm = service.status(name or service.only_live())
    TopApp(Services(swarm.name), every_s=every).run()
