"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer


class Format(StrEnum):
    """How data is printed."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


FormatOption = Annotated[
    Format, typer.Option("--format", "-o", help="How to print it.", show_default=True)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Short for --format json.")]
YamlOption = Annotated[bool, typer.Option("--yaml", help="Short for --format yaml.")]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="The swarm's YAML file.", metavar="FILE")
]


def complete_swarm(incomplete: str) -> list[str]:
    """Names of the live swarms that begin so, for shell completion; nothing is created."""
    from domyn_swarm.paths import database_path

    if not database_path().exists():
        return []
    from domyn_swarm.services.swarms import SwarmService

    return [
        seen.name for seen in SwarmService().list(probe=False) if seen.name.startswith(incomplete)
    ]


SwarmOption = Annotated[
    str | None,
    typer.Option(
        "--name",
        metavar="SWARM",
        help="The swarm; may be left out when only one is live.",
        autocompletion=complete_swarm,
    ),
]


def chosen_format(output: Format, as_json: bool, as_yaml: bool) -> Format:
    """The format that the three options together ask for."""
    if as_json and as_yaml:
        raise typer.BadParameter("--json and --yaml exclude each other.")
    if as_json:
        return Format.JSON
    return Format.YAML if as_yaml else output


def parse_json_object(value: str) -> dict[str, Any]:
    """A JSON object from a flag's value; anything else is a usage error."""
    try:
        parsed = json.loads(value)
    except json.JSONDecodeError as error:
        raise typer.BadParameter(f"not JSON: {error}.") from None
    if not isinstance(parsed, dict):
        raise typer.BadParameter('not a JSON object such as {"temperature": 0.2}.')
    return parsed


def parse_concurrency(value: str) -> str:
    """`auto`, or a whole number of at least 1."""
    if value != "auto" and not (value.isascii() and value.isdecimal() and int(value) >= 1):
        raise typer.BadParameter("must be `auto` or a whole number of at least 1.")
    return value


def swarm_name(config: Path) -> str:
    """The name that a config file gives its swarm.

    Raises:
        ConfigError: the file cannot be read, or names no swarm.
    """
    from domyn_swarm.config import load
    from domyn_swarm.errors import ConfigError

    name = load(config).config.name
    if name is None:
        raise ConfigError(
            f"{config} names no swarm.", hint="Give the swarm's name instead of the file."
        )
    return name
