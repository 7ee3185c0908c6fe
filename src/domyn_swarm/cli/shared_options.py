"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from domyn_swarm.cli import candidates

if TYPE_CHECKING:
    from domyn_swarm.model import JobHandle


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
FileArgument = Annotated[
    Path | None, typer.Argument(metavar="FILE", help="The swarm's YAML file; short for -c FILE.")
]
NameOption = Annotated[
    str | None, typer.Option("--name", "-n", metavar="SWARM", help="The swarm's name.")
]


def chosen_file(file: Path | None, config: Path | None) -> Path:
    """The configuration that an argument or `-c` names; exactly one of them must."""
    if (file is None) == (config is None):
        raise typer.BadParameter("give the swarm's YAML file, once: as FILE or with -c (--config).")
    return file or config or Path()


ReplicasOption = Annotated[
    int | None, typer.Option("--replicas", "-r", min=1, help="How many replicas.")
]
OverridesOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the file; repeatable."),
]
SwarmOption = Annotated[
    str | None,
    typer.Option(
        "--name",
        "-n",
        metavar="SWARM",
        help="The swarm; may be left out when only one is live.",
        autocompletion=candidates.swarms,
    ),
]


RefArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="JOB",
        help="The job's id, or its external id.",
        autocompletion=candidates.jobs,
    ),
]
ExternalIdOption = Annotated[
    str | None,
    typer.Option(
        "--external-id",
        metavar="ID",
        help="The id you gave the job.",
        autocompletion=candidates.external_ids,
    ),
]
HandleOption = Annotated[
    str | None,
    typer.Option(
        "--handle-json", metavar="FILE", help="A handle as `job submit` printed it; - is stdin."
    ),
]
DetachOption = Annotated[bool, typer.Option("--detach", "-d", help="Return once it is submitted.")]
NoProgressOption = Annotated[bool, typer.Option("--no-progress", help="Show no bar.")]


def chosen_format(output: Format, as_json: bool, as_yaml: bool) -> Format:
    """The format that the three options together ask for."""
    if as_json and as_yaml:
        raise typer.BadParameter("--json and --yaml exclude each other.")
    if as_json:
        return Format.JSON
    return Format.YAML if as_yaml else output


def parse_json_object(value: str, flag: str) -> dict[str, Any]:
    """A JSON object from a flag's value; anything else is a usage error that names the flag."""
    example = "write an object such as '{\"temperature\": 0.2}'"
    try:
        parsed = json.loads(value)
    except json.JSONDecodeError as error:
        raise typer.BadParameter(f"{flag} {value!r:.80} is not JSON: {error}; {example}.") from None
    if not isinstance(parsed, dict):
        raise typer.BadParameter(f"{flag} {value!r:.80} is not a JSON object; {example}.")
    return parsed


def named_swarm(context: typer.Context, value: str | None) -> str | None:
    """The swarm's name: the value itself, or the name in its YAML file: `status swarm.yaml`. No
    name of a swarm contains a full stop.
    """
    if value is None or context.resilient_parsing or not value.endswith((".yaml", ".yml")):
        return value
    from domyn_swarm.config import swarm_name

    return swarm_name(Path(value))


def chosen_job(
    ref: str | None, external_id: str | None, handle_json: str | None
) -> str | JobHandle:
    """The job that one of the three options names; exactly one of them must be used."""
    given = [value for value in (ref, external_id, handle_json) if value is not None]
    if len(given) != 1:
        raise typer.BadParameter("name the job by its id, by --external-id or by --handle-json.")
    return given[0] if handle_json is None else _read_handle(handle_json)


def _read_handle(source: str) -> JobHandle:
    from pydantic import ValidationError

    from domyn_swarm.model import JobHandle

    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text("utf-8")
        return JobHandle.model_validate_json(text)
    except OSError as error:
        raise typer.BadParameter(f"{source} cannot be read: {error.strerror}.") from None
    except ValidationError:
        raise typer.BadParameter("not a job's handle, as `job submit` prints it.") from None
