"""The commands init config, init defaults, config schema and config check."""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from domyn_swarm.cli.console import ask, interactive, say
from domyn_swarm.cli.shared_options import (
    ConfigOption,
    FileArgument,
    Format,
    FormatOption,
    JsonOption,
    NameOption,
    YamlOption,
    chosen_file,
    chosen_format,
)
from domyn_swarm.errors import ConfigError

if TYPE_CHECKING:
    from domyn_swarm.services.config_files import ConfigReport, NewFileRequest

init_app = typer.Typer(help="Write a first configuration or the defaults.", no_args_is_help=True)
config_app = typer.Typer(help="Check configurations; their JSON Schema.", no_args_is_help=True)


class Platform(StrEnum):
    """Platforms on which swarms run."""

    LOCAL = "local"
    SLURM = "slurm"
    LEPTON = "lepton"


PlatformOption = Annotated[Platform, typer.Option("--platform", help="Platform to run on.")]
EngineOption = Annotated[
    str | None, typer.Option("--engine", help="Program that serves the model.")
]
ImageOption = Annotated[str | None, typer.Option("--image", help="Container image.")]
GpusOption = Annotated[
    int | None, typer.Option("--gpus-per-node", min=0, help="GPUs of one machine.")
]
PartitionOption = Annotated[
    str | None, typer.Option("--partition", help="Slurm: partition of the replicas.")
]
AccountOption = Annotated[
    str | None, typer.Option("--account", help="Slurm: account that pays for the GPU hours.")
]
QosOption = Annotated[str | None, typer.Option("--qos", help="Slurm: quality of service.")]
LimitOption = Annotated[
    str | None,
    typer.Option("--time-limit", help="Slurm: time limit of each replica, such as 36:00:00."),
]
ContainerOption = Annotated[
    str | None, typer.Option("--container", help="Slurm: container program that runs the image.")
]
WorkspaceOption = Annotated[
    str | None, typer.Option("--workspace-id", metavar="ID", help="Lepton: your workspace.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any other key; repeatable."),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace a file that exists.")]


@init_app.command("config")
def init_config(
    platform: PlatformOption = Platform.LOCAL,
    model: Annotated[str | None, typer.Option("--model", help="Name or path.")] = None,
    name: NameOption = None,
    replicas: Annotated[int | None, typer.Option("--replicas", "-r", min=1)] = None,
    engine: EngineOption = None,
    image: ImageOption = None,
    gpus_per_node: GpusOption = None,
    partition: PartitionOption = None,
    account: AccountOption = None,
    qos: QosOption = None,
    time_limit: LimitOption = None,
    container: ContainerOption = None,
    workspace_id: WorkspaceOption = None,
    settings: SetOption = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="FILE", help="Write to this file, not to stdout."),
    ] = None,
    force: ForceOption = False,
) -> None:
    """Write a commented configuration with every key; it is valid without changes.

    Prints the configuration; with --output the path of the file. An existing file is replaced only
    with --force. Exits with 2 if a flag is invalid or the file exists.

    Example: domyn-swarm init config --platform slurm --partition gpu --output swarm.yaml
    """
    from domyn_swarm.services.config_files import NewFileRequest, new_config

    request = NewFileRequest(
        platform=platform.value,
        flags=_given(
            {
                "model": model,
                "name": name,
                "replicas": replicas,
                "engine": engine,
                "image": image,
                "gpus_per_node": gpus_per_node,
                "backend.partition": partition,
                "backend.account": account,
                "backend.qos": qos,
                "backend.time_limit": time_limit,
                "backend.container": container,
                "backend.workspace_id": workspace_id,
            }
        ),
        overrides=tuple(settings or ()),
        output=output,
        force=force,
    )
    text = new_config(request)
    if platform is Platform.SLURM and not any("partition" in key for key in _keys(request)):
        say("backend.partition is a guess: `sinfo` lists the partitions.")
    if output is None:
        typer.echo(text, nl=False)
        return
    say(f"Start it with: domyn-swarm up {output}")
    typer.echo(output)


@init_app.command("defaults")
def init_defaults(
    platform: Annotated[
        Platform | None, typer.Option("--platform", help="Platform of your swarms.")
    ] = None,
    engine: EngineOption = None,
    image: ImageOption = None,
    gpus_per_node: GpusOption = None,
    partition: PartitionOption = None,
    account: AccountOption = None,
    qos: QosOption = None,
    time_limit: LimitOption = None,
    container: ContainerOption = None,
    workspace_id: WorkspaceOption = None,
    venv_path: Annotated[
        str | None, typer.Option("--venv-path", help="Slurm: Python environment on the nodes.")
    ] = None,
    mail_user: Annotated[
        str | None,
        typer.Option("--mail-user", metavar="ADDRESS", help="Slurm: recipient of mails."),
    ] = None,
    hf_home: Annotated[
        str | None, typer.Option("--hf-home", metavar="DIR", help="Folder of cached models.")
    ] = None,
    home_directory: Annotated[
        str | None, typer.Option("--home-directory", metavar="DIR", help="Folder of swarms' files.")
    ] = None,
    settings: SetOption = None,
    force: ForceOption = False,
    output: FormatOption = Format.TABLE,
    as_json: JsonOption = False,
    as_yaml: YamlOption = False,
) -> None:
    """Write the defaults of all your swarms; print the file's path.

    On a terminal, without flags, it asks; an empty answer keeps the built-in default. The file is
    $DOMYN_SWARM_DEFAULTS, else defaults.yaml in the home. `domyn-swarm config check FILE
    --provenance` shows which values come from it. Exits with 2 if an answer is invalid, or if the
    file exists and --force is not given.

    Example: domyn-swarm init defaults --platform slurm --partition gpu --account my-project
    """
    from domyn_swarm.cli.rendering import print_record
    from domyn_swarm.services.config_files import NewFileRequest, new_defaults

    form = chosen_format(output, as_json, as_yaml)
    flags = _given(
        {
            "engine": engine,
            "image": image,
            "gpus_per_node": gpus_per_node,
            "backend.partition": partition,
            "backend.account": account,
            "backend.qos": qos,
            "backend.time_limit": time_limit,
            "backend.container": container,
            "backend.workspace_id": workspace_id,
            "backend.venv_path": venv_path,
            "backend.mail_user": mail_user,
            "env.HF_HOME": hf_home,
            "home_directory": home_directory,
        }
    )
    if platform is None and not flags and not settings:
        platform, flags = _answers(force=force)
    request = NewFileRequest(
        platform=(platform or Platform.LOCAL).value,
        flags=flags,
        overrides=tuple(settings or ()),
        force=force,
    )
    written = new_defaults(request)
    say("Written. A swarm's own file and --set override it.")
    if form is Format.TABLE:
        typer.echo(written.path)
    else:
        print_record(written, form)


def _keys(request: NewFileRequest) -> list[str]:
    return [*request.flags, *(override.partition("=")[0] for override in request.overrides)]


def _given(flags: Mapping[str, str | int | None]) -> dict[str, str]:
    return {key: str(value) for key, value in flags.items() if value is not None}


def _answers(*, force: bool) -> tuple[Platform, dict[str, str]]:
    """Ask for the platform and every key. An invalid answer is reported, and asked for again."""
    from domyn_swarm.services.config_files import asked_keys, check_answers, defaults_place

    if not interactive():
        raise typer.BadParameter("without a terminal, pass --platform and the other settings.")
    defaults_place(force=force)  # refuse an existing file before a dozen questions
    choices = " | ".join(choice.value for choice in Platform)
    while (chosen := ask(f"Where do your swarms run ({choices})")) not in list(Platform):
        say(f"  Answer one of {choices}.")
    platform = Platform(chosen)
    answers: dict[str, str] = {}
    for key, meaning in asked_keys(platform.value).items():
        while answer := ask(f"{key}, {meaning}"):
            mistakes = [
                mistake.message
                for mistake in check_answers(platform.value, {**answers, key: answer})
                if mistake.key == key
            ]
            if not mistakes:
                answers[key] = answer
                break
            say(f"  {'; '.join(mistakes)}")
    return platform, answers


@config_app.command("schema")
def schema(
    job: Annotated[
        bool, typer.Option("--job", help="The schema of a job file, for `job submit -f`.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="FILE", help="Write to this file, not to stdout."),
    ] = None,
) -> None:
    """Print the JSON Schema of a configuration or a job, for editors that complete and check YAML.

    For the YAML language server, the first line of a file names the schema:
    `# yaml-language-server: $schema=domyn-swarm.schema.json`. It is valid for defaults.yaml, too.

    Example: domyn-swarm config schema --output domyn-swarm.schema.json
    """
    from domyn_swarm.cli.job_flags import key_descriptions
    from domyn_swarm.services.config_files import job_schema, json_schema

    text = json.dumps(job_schema(key_descriptions()) if job else json_schema(), indent=2)
    if output is None:
        typer.echo(text)
        return
    try:
        output.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{output} cannot be written: {error.strerror}.", hint="Choose another place."
        ) from error
    typer.echo(output)


@config_app.command("check")
def check(
    file: FileArgument = None,
    config: ConfigOption = None,
    settings: SetOption = None,
    provenance: Annotated[
        bool, typer.Option("--provenance", help="Show every key with the source of its value.")
    ] = False,
    output: FormatOption = Format.TABLE,
    as_json: JsonOption = False,
    as_yaml: YamlOption = False,
) -> None:
    """Report all mistakes in a configuration at once; start nothing.

    Each is reported with file, line and key, what is wrong and what to write instead. Exits with 2
    if there is a mistake. JSON and YAML also contain every key with its value and its source.

    Example: domyn-swarm config check swarm.yaml --provenance
    """
    from domyn_swarm.cli.rendering import print_record
    from domyn_swarm.services.config_files import CheckRequest, check_config

    form = chosen_format(output, as_json, as_yaml)
    config = chosen_file(file, config)
    report = check_config(CheckRequest(config=config, overrides=tuple(settings or ())))
    if form is Format.TABLE:
        _show(report, provenance=provenance)
    else:
        print_record(report, form)
    if not report.valid:
        count = len(report.mistakes)
        say(f"{config}: {count} mistake{'' if count == 1 else 's'}; nothing was started.")
        raise typer.Exit(ConfigError.exit_code)


def _show(report: ConfigReport, *, provenance: bool) -> None:
    from domyn_swarm.cli.rendering import print_table

    if not report.valid:
        rows = [
            (
                f"{mistake.source}:{mistake.line}" if mistake.line else mistake.source,
                mistake.key or "",
                mistake.message,
            )
            for mistake in report.mistakes
        ]
        print_table(("where", "key", "what is wrong, what to write"), rows)
        return
    if not provenance:
        typer.echo(f"{report.config} is valid")
        return
    settings = [
        (setting.key, json.dumps(setting.value, ensure_ascii=False), setting.source)
        for setting in report.settings
    ]
    print_table(("key", "value", "from"), settings)
