"""Commands that look at swarms: status, list, endpoint."""

from __future__ import annotations

from typing import Annotated

import typer

from domyn_swarm.cli.options import (
    Format,
    FormatOption,
    JsonOption,
    YamlOption,
    chosen_format,
    complete_swarm,
)

NameArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[NAME]",
        help="The swarm; may be left out when only one is live.",
        autocompletion=complete_swarm,
    ),
]


def status(
    name: NameArgument = None,
    output: FormatOption = Format.TABLE,
    as_json: JsonOption = False,
    as_yaml: YamlOption = False,
) -> None:
    """Show a swarm's phase, endpoint, replicas and jobs.

    Example: domyn-swarm status my-swarm --json
    """
    from domyn_swarm.cli.views import show_swarm
    from domyn_swarm.services.swarms import SwarmService

    form = chosen_format(output, as_json, as_yaml)
    show_swarm(SwarmService().status(name), form)


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
    name: Annotated[str, typer.Argument(help="The swarm.", autocompletion=complete_swarm)],
    env: Annotated[
        bool, typer.Option("--env", help="Print exports for curl and the OpenAI clients.")
    ] = False,
    show_key: Annotated[
        bool, typer.Option("--show-key", help="With --env: the key itself, not its file.")
    ] = False,
    scrape: Annotated[
        bool, typer.Option("--scrape", help="Print what Prometheus is to be told, as YAML.")
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
    key = shlex.quote(info.key_file.read_text().strip()) if show_key else f'"$(cat {path})"'
    typer.echo(f"export OPENAI_BASE_URL={shlex.quote(info.url + '/v1')}")
    typer.echo(f"export OPENAI_API_KEY={key}")
    typer.echo(f"export MODEL={shlex.quote(info.model)}")
