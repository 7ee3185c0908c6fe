"""Commands that only read: plan, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from domyn_swarm.cli.shared_options import (
    ConfigOption,
    FileArgument,
    Format,
    FormatOption,
    JsonOption,
    NameOption,
    OverridesOption,
    ReplicasOption,
    YamlOption,
    chosen_file,
    chosen_format,
)
from domyn_swarm.errors import PlatformError


def plan(
    file: FileArgument = None,
    config: ConfigOption = None,
    replicas: ReplicasOption = None,
    name: NameOption = None,
    settings: OverridesOption = None,
    test: Annotated[
        bool, typer.Option("--test", help="Ask the scheduler whether it would take it, and when.")
    ] = False,
    job: Annotated[
        Path | None,
        typer.Option(
            "--job",
            metavar="FILE",
            help="A job's file: ask a sample of its rows at its live swarm, keep the answers, and "
            "say what the others take.",
        ),
    ] = None,
    output: FormatOption = Format.TABLE,
    as_json: JsonOption = False,
    as_yaml: YamlOption = False,
) -> None:
    """Show what `up` would do: layout, GPUs, GPU-hours, the engine's command, every script.

    With --job what that job takes, by a sample of its rows: time, GPU-hours and tokens, for 1, 2, 4
    and more replicas; as JSON that alone. No job is submitted.

    Example: domyn-swarm plan config.yaml --test
    """
    from domyn_swarm.cli.views import show_plan
    from domyn_swarm.services.requests import UpRequest
    from domyn_swarm.services.swarms import SwarmService

    form = chosen_format(output, as_json, as_yaml)
    if job is not None and file is None and config is None:
        _forecast(job, None, form)
        return
    request = UpRequest(
        config=chosen_file(file, config),
        name=name,
        replicas=replicas,
        overrides=tuple(settings or ()),
    )
    report = SwarmService.report(SwarmService.prepare(request), test=test)
    if job is None or form is Format.TABLE:
        show_plan(report, form)
    if job is not None:
        _forecast(job, report.plan.name, form)


def _forecast(job: Path, swarm: str | None, output: Format) -> None:
    """What a job's file takes, on the swarm that it names, or that of the plan."""
    from domyn_swarm.cli.forecast_command import asked_forecast, show_forecast
    from domyn_swarm.config.sources import Layer
    from domyn_swarm.swarm.job_file import read_job

    request = read_job(job, Layer())
    if request.swarm is None and request.endpoint is None:
        request = request.model_copy(update={"swarm": swarm})
    show_forecast(asked_forecast(request, None), output)


def doctor(
    file: FileArgument = None,
    config: ConfigOption = None,
    rehearse: Annotated[
        bool,
        typer.Option(
            "--rehearse",
            help="Run a program on a node for a moment (on two where a replica spans several), "
            "and check what it reports.",
        ),
    ] = False,
    gpus: Annotated[
        bool, typer.Option("--gpus", help="Rehearse with the GPUs of a replica.")
    ] = False,
    timeout_s: Annotated[
        float | None,
        typer.Option(
            "--timeout",
            min=1,
            metavar="SECONDS",
            help="How long the rehearsal may wait its turn; 600 when left out.",
        ),
    ] = None,
    output: FormatOption = Format.TABLE,
    as_json: JsonOption = False,
    as_yaml: YamlOption = False,
) -> None:
    """Check this machine, and with FILE the site, for what a swarm needs; name each problem's fix.

    Exits with 4 when something would go wrong. Nothing is started but the rehearsal, on request:
    on Slurm a job of one task, one CPU and two minutes.

    Example: domyn-swarm doctor config.yaml --rehearse
    """
    from domyn_swarm.backends.rehearsal import Rehearsal
    from domyn_swarm.cli.views import show_examination
    from domyn_swarm.services.doctor import examine

    form = chosen_format(output, as_json, as_yaml)
    rehearsal = None
    if rehearse or gpus:
        rehearsal = Rehearsal(gpus, timeout_s or 600.0, lambda said: typer.echo(said, err=True))
    elif timeout_s is not None:
        raise typer.BadParameter("--timeout is for a rehearsal: add --rehearse, or leave it out.")
    chosen = None if file is None and config is None else chosen_file(file, config)
    found = examine(chosen, rehearsal)
    show_examination(found, form)
    if not found.well:
        raise typer.Exit(PlatformError.exit_code)
