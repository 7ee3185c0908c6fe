"""The `dashboard` command."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from domyn_swarm.cli import candidates
from domyn_swarm.cli.console import interactive, say

if TYPE_CHECKING:
    from domyn_swarm.cli.dashboard.board import Board
    from domyn_swarm.cli.dashboard.server import Address


def dashboard(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="Open the page of this swarm; by default that of all swarms.",
            autocompletion=candidates.swarms,
        ),
    ] = None,
    host: Annotated[
        str,
        typer.Option("--host", metavar="ADDRESS", help="Address to listen on; 0.0.0.0: all."),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0: a free one.")
    ] = 0,
    browse: Annotated[
        bool | None,
        typer.Option(
            "--open/--no-open",
            help="Open a browser; by default if there is a display.",
            show_default=False,
        ),
    ] = None,
    every: Annotated[
        float,
        typer.Option("--every", min=0.5, max=3600, metavar="S", help="Seconds between refreshes."),
    ] = 2.0,
) -> None:
    """Serve a live page about the swarms of this home, until Ctrl-C; print its URL.

    Shows swarms, replicas over time, jobs with rows per second, ETA and failures, and reports. It
    changes nothing. The URL contains a token that every request needs: keep it secret.

    Example: domyn-swarm dashboard my-swarm
    """
    import asyncio

    from domyn_swarm.cli.dashboard.board import Board
    from domyn_swarm.cli.dashboard.pages import swarm_path
    from domyn_swarm.cli.dashboard.server import Address
    from domyn_swarm.services.swarms import SwarmService
    from domyn_swarm.state import SwarmStore

    store = SwarmStore.open()
    path = "/"
    if name is not None:
        path = swarm_path(SwarmService(store).status(name).name)
    browse = _has_screen() if browse is None else browse
    number = asyncio.run(_serve(Board(store, every), Address(host, port), every, path, browse))
    say("The dashboard has ended; swarms and jobs go on.")
    raise typer.Exit(128 + number)


async def _serve(board: Board, address: Address, every_s: float, path: str, browse: bool) -> int:
    from domyn_swarm import paths
    from domyn_swarm.cli.dashboard.server import Dashboard, listening, stop_signal

    served = Dashboard(board, address, every_s)
    async with listening(served, address) as port:
        url = f"http://{address.reached_at}:{port}{path}?token={served.token}"
        # A browser is given a file to open: the URL has a key, and arguments are public.
        opener = paths.home() / f"dashboard-{port}.html"
        try:
            if browse:
                _open(url, opener)
            _explain(address, port)
            typer.echo(url)
            sys.stdout.flush()
            return await stop_signal()
        finally:
            opener.unlink(missing_ok=True)


def _explain(address: Address, port: int) -> None:
    import getpass
    import socket

    if address.public:
        say(
            f"It listens on {address.host}: everyone with this URL can read it, and the connection "
            "is not encrypted."
        )
    else:
        login = f"{getpass.getuser()}@{socket.gethostname()}"
        say(f"From another machine: ssh -N -L {port}:127.0.0.1:{port} {login}, then the same URL.")
    say("Ctrl-C ends it; swarms and jobs go on.")


def _open(url: str, opener: Path) -> None:
    """Open the URL in a browser through a private file: other users can read arguments."""
    import webbrowser

    from domyn_swarm.paths import write_private

    page = f'<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0;url={url}">'
    write_private(opener, page)
    if not webbrowser.open(opener.as_uri()):
        say("No browser could be started: open the URL yourself.")


def _has_screen() -> bool:
    screen = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    return interactive() and bool(screen) and "SSH_CONNECTION" not in os.environ
