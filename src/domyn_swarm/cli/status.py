"""Commands that show swarms: status, list, describe, endpoint; once, or with `--watch`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Generic, TypeVar

import typer

from domyn_swarm.cli import candidates
from domyn_swarm.cli.rendering import collected, plain, print_line
from domyn_swarm.cli.shared_options import (
    Format,
    FormatOption,
    JsonOption,
    YamlOption,
    chosen_format,
    named_swarm,
)

if TYPE_CHECKING:
    from domyn_swarm.record import Record

_T = TypeVar("_T", bound="Record")
_AGES = frozenset({"known_at", "last_seen_s", "figures_age_s", "eta_s", "rows_per_s"})
_AGES |= {"requests_running", "requests_waiting"}

WatchOption = Annotated[
    bool, typer.Option("--watch", "-w", help="Go on showing it as it changes, until Ctrl-C.")
]
EveryOption = Annotated[
    float,
    typer.Option("--every", min=0.2, metavar="S", help="With --watch: seconds in between."),
]


@dataclass(frozen=True)
class Watch(Generic[_T]):
    """A watched snapshot, and its renderings."""

    look: Callable[[], _T]
    show: Callable[[_T], None]  # as tables
    line: Callable[[_T], str]  # as one line
    ended: Callable[[_T], bool]  # whether it will not change any more
    every_s: float

    def run(self, output: Format) -> None:
        """Show every change until the end; then return.

        Raises:
            SwarmError: the snapshot cannot be taken.
        """
        if output is Format.YAML:
            raise typer.BadParameter("--watch goes with tables and with --json.")
        if output is Format.TABLE and sys.stdout.isatty():
            self._live()
        else:
            self._lines(as_json=output is Format.JSON)

    def _live(self) -> None:
        from rich.console import Console, Group
        from rich.live import Live

        console = Console(markup=False, highlight=False, emoji=False)
        with Live(console=console, auto_refresh=False) as live:
            while True:
                seen = self.look()
                with collected() as tables:
                    self.show(seen)
                live.update(Group(*tables), refresh=True)
                if self.ended(seen):
                    return
                time.sleep(self.every_s)

    def _lines(self, *, as_json: bool) -> None:
        before: object = None
        while True:
            seen = self.look()
            now: object = _lasting(plain(seen)) if as_json else self.line(seen)
            if now != before:
                if as_json:
                    print_line(seen)
                else:
                    typer.echo(self.line(seen))
                    sys.stdout.flush()
            before = now
            if self.ended(seen):
                return
            time.sleep(self.every_s)


def _lasting(value: object) -> object:
    """A record without the values that differ in every snapshot."""
    if isinstance(value, dict):
        return {name: _lasting(one) for name, one in value.items() if name not in _AGES}
    return [_lasting(one) for one in value] if isinstance(value, list) else value


NameArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="NAME",
        help="The swarm, or its YAML file; may be left out when only one is live.",
        callback=named_swarm,
        autocompletion=candidates.swarms,
    ),
]


def status(
    name: NameArgument = None,
    watch: WatchOption = False,
    every: EveryOption = 2.0,
    output: FormatOption = Format.TABLE,
    as_json: JsonOption = False,
    as_yaml: YamlOption = False,
) -> None:
    """Show a swarm's phase, endpoint, replicas and jobs.

    With --watch a terminal shows them live; in a pipe each change is a line, with --json one of
    JSON. It ends with the swarm, or with Ctrl-C (exit 130).

    Example: domyn-swarm status my-swarm --watch
    """
    from domyn_swarm.cli.views import show_swarm, swarm_line
    from domyn_swarm.services.swarms import SwarmService

    form = chosen_format(output, as_json, as_yaml)
    service = SwarmService()
    if not watch:
        show_swarm(service.status(name), form)
        return
    chosen = name or service.only_live()
    Watch(
        look=lambda: service.status(chosen),
        show=lambda seen: show_swarm(seen, Format.TABLE),
        line=swarm_line,
        ended=lambda seen: not seen.phase.live,
        every_s=every,
    ).run(form)


def describe(
    name: NameArgument = None,
    output: FormatOption = Format.TABLE,
    as_json: JsonOption = False,
    as_yaml: YamlOption = False,
) -> None:
    """Show everything about one swarm: configuration, plan, parts, files, replicas, jobs.

    Example: domyn-swarm swarm describe my-swarm --json
    """
    from domyn_swarm.cli.views import show_description
    from domyn_swarm.services.description import describe as describe_swarm

    form = chosen_format(output, as_json, as_yaml)
    show_description(describe_swarm(name), form)


def list_swarms(
    probe: Annotated[
        bool,
        typer.Option("--probe/--no-probe", help="Ask the platforms, or read the records only."),
    ] = True,
    output: FormatOption = Format.TABLE,
    as_json: JsonOption = False,
    as_yaml: YamlOption = False,
) -> None:
    """List the swarms.

    Example: domyn-swarm swarm list --no-probe
    """
    from domyn_swarm.cli.views import show_swarms
    from domyn_swarm.services.swarms import SwarmService

    form = chosen_format(output, as_json, as_yaml)
    show_swarms(SwarmService().list(probe=probe), form)


def endpoint(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="The swarm, or its YAML file.",
            callback=named_swarm,
            autocompletion=candidates.swarms,
        ),
    ],
    env: Annotated[
        bool, typer.Option("--env", help="Print exports for curl and the OpenAI clients.")
    ] = False,
    show_key: Annotated[
        bool, typer.Option("--show-key", help="With --env: the key itself, not its file.")
    ] = False,
    scrape: Annotated[
        bool, typer.Option("--scrape", help="Print the configuration for Prometheus, as YAML.")
    ] = False,
    output: FormatOption = Format.TABLE,
    as_json: JsonOption = False,
    as_yaml: YamlOption = False,
) -> None:
    """Print where a swarm answers and how to call it.

    Example: eval "$(domyn-swarm endpoint my-swarm --env)"
    """
    import shlex

    from domyn_swarm.cli.rendering import print_document
    from domyn_swarm.cli.views import show_endpoint
    from domyn_swarm.services.swarms import SwarmService

    if show_key and not env:
        raise typer.BadParameter("--show-key goes with --env.")
    if scrape:
        print_document(SwarmService().scrape_config(name), Format.YAML)
        return
    form = chosen_format(output, as_json, as_yaml)
    info = SwarmService().endpoint(name)
    if not env:
        show_endpoint(info, form)
        return
    path = shlex.quote(str(info.key_file))
    key = shlex.quote(info.key_file.read_text("utf-8").strip()) if show_key else f'"$(cat {path})"'
    typer.echo(f"export OPENAI_BASE_URL={shlex.quote(info.url + '/v1')}")
    typer.echo(f"export OPENAI_API_KEY={key}")
    typer.echo(f"export MODEL={shlex.quote(info.model)}")
    if info.metrics_url is not None:  # an endpoint of ours, within the site
        host = shlex.quote(info.host)
        typer.echo(f'export NO_PROXY={host}"${{NO_PROXY:+,$NO_PROXY}}${{no_proxy:+,$no_proxy}}"')
        typer.echo('export no_proxy="$NO_PROXY"')
