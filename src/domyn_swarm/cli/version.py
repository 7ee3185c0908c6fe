"""The `version` command."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from domyn_swarm import __version__
from domyn_swarm.cli.options import Format, FormatOption, JsonOption, YamlOption, chosen_format

_ENGINES_AND_ROUTER = ("smg", "xllamacpp", "vllm")


def version(
    short: Annotated[bool, typer.Option("--short", help="The version alone.")] = False,
    output: FormatOption = Format.TABLE,
    as_json: JsonOption = False,
    as_yaml: YamlOption = False,
) -> None:
    """Print the version, and those of the programs it works with.

    Example: domyn-swarm version --short
    """
    if short:
        typer.echo(__version__)
        return
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as version_of

    from domyn_swarm.cli.views import show_facts

    facts = {"domyn-swarm": __version__, "python": sys.version.split()[0]}
    for name in _ENGINES_AND_ROUTER:
        try:
            facts[name] = version_of(name)
        except PackageNotFoundError:
            facts[name] = "not installed"
    show_facts(facts, chosen_format(output, as_json, as_yaml))
