"""The `version` command."""

from __future__ import annotations

from typing import Annotated

import typer

from domyn_swarm import __version__
from domyn_swarm.cli.shared_options import (
    Format,
    FormatOption,
    JsonOption,
    YamlOption,
    chosen_format,
)


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
    from domyn_swarm.cli.rendering import plain, print_pairs, print_record
    from domyn_swarm.services.versions import versions

    form = chosen_format(output, as_json, as_yaml)
    found = versions()
    if form is not Format.TABLE:
        print_record(found, form)
        return
    facts = plain(found)
    del facts["schema_version"]
    print_pairs((name, value or "not installed") for name, value in facts.items())
