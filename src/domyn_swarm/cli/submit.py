"""The commands `job submit` and `job submit-script`: submit, follow, and exit as the job ends."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from domyn_swarm.cli.console import say
from domyn_swarm.cli.flags import taking_flags
from domyn_swarm.cli.following import follow
from domyn_swarm.cli.job_flags import JobFlags, ScriptFlags
from domyn_swarm.cli.rendering import cell_text, json_text, print_pairs, print_record
from domyn_swarm.cli.shared_options import (
    ConfigOption,
    DetachOption,
    ExternalIdOption,
    Format,
    NoProgressOption,
    SwarmOption,
)
from domyn_swarm.errors import quantity

if TYPE_CHECKING:
    from domyn_swarm.jobs.dry_run import DryRun
    from domyn_swarm.services.requests import JobRequest


@taking_flags
def submit(
    *,
    flags: JobFlags,
    detach: DetachOption = False,
    no_progress: NoProgressOption = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Check all, ask the first row, estimate the rest; submit nothing."
        ),
    ] = False,
    print_job: Annotated[
        bool, typer.Option("--print-job", help="Check and print the job as YAML; submit nothing.")
    ] = False,
    forecast: Annotated[
        bool,
        typer.Option(
            "--forecast",
            help="Send a sample of the rows first and keep its answers; forecast the others, and "
            "ask whether to continue.",
        ),
    ] = False,
    sample: Annotated[
        int | None,
        typer.Option("--sample", min=1, metavar="ROWS", help="Rows that --forecast asks."),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="With --forecast: continue without asking.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what --dry-run or --forecast found as JSON.")
    ] = False,
) -> None:
    """Push a dataset through a swarm; print the job's handle as one line of JSON.

    Follows the job until it ends and exits with its code: 0 all rows answered, 7 some rows failed,
    6 it did not finish. The same command again continues where the last one stopped.

    Example: domyn-swarm job submit --input in.parquet --output out.parquet --input-column prompt
    """
    from domyn_swarm.services.jobs import JobService
    from domyn_swarm.swarm.job_file import layer_of, read_job

    if dry_run and (detach or flags.values["down_after"]):
        raise typer.BadParameter("--dry-run submits nothing: leave --detach and --down-after out.")
    if as_json and not (dry_run or forecast):
        raise typer.BadParameter(
            "--json is for --dry-run and --forecast: the handle of a job is JSON anyway."
        )
    _check_forecast(forecast, others=dry_run or print_job, said=yes or sample is not None)
    if forecast and as_json and yes:
        raise typer.BadParameter("-y submits the job: leave --json out.")
    request = read_job(flags.file, flags.layer(), detached=detach)
    if print_job:
        from domyn_swarm.config.sources import yaml_text

        typer.echo(yaml_text(layer_of(flags.file, flags.layer())), nl=False)
    elif forecast:
        from domyn_swarm.cli.forecast_command import forecast_then_submit

        forecast_then_submit(
            request,
            rows=sample,
            yes=yes,
            detach=detach,
            no_progress=no_progress,
            output=Format.JSON if as_json else Format.TABLE,
        )
    elif dry_run:
        _rehearse(request, Format.JSON if as_json else Format.TABLE)
    else:
        follow(
            JobService().submit(request),
            detach=detach,
            no_progress=no_progress,
            time_limit_s=request.resources.time_limit_s,
        )


def _check_forecast(forecast: bool, *, others: bool, said: bool) -> None:
    if forecast and others:
        raise typer.BadParameter(
            "--forecast, --dry-run and --print-job exclude each other: take one of them."
        )
    if said and not forecast:
        raise typer.BadParameter("--sample and -y are for --forecast: add it, or leave them out.")


def _rehearse(request: JobRequest, output: Format) -> None:
    """Print the result of a dry run; exit with 6 if the row failed."""
    from domyn_swarm.errors import JobError
    from domyn_swarm.services.jobs import JobService

    found = JobService().dry_run(request)
    show_dry_run(found, output)
    if found.error is not None:
        say(f"The first row failed: {found.error.message}")
        raise typer.Exit(JobError.exit_code)
    say("Nothing was submitted.")


def show_dry_run(found: DryRun, output: Format) -> None:
    """The job, the request and the answer of its first row, and what the rest may take."""
    if output is not Format.TABLE:
        print_record(found, output)
        return
    settled = "?" if found.rows_settled is None else str(found.rows_settled)
    print_pairs(
        [
            ("job", found.job),
            ("swarm", found.swarm or "-"),
            ("endpoint", f"{found.endpoint} ({found.model})"),
            ("input", found.input),
            ("output", found.output),
            ("rows", f"{found.rows_total}, {settled} of them settled"),
            *_first_row(found),
            ("estimate", _estimate_text(found)),
        ]
    )


def _first_row(found: DryRun) -> list[tuple[str, str]]:
    if found.latency_s is None:
        return [("first row", "there is none: nothing was sent")]
    tokens = f"{quantity(found.prompt_tokens, 'token')} in, {found.completion_tokens} out"
    pairs = [("sent", f"POST {one.path} {json_text(one.body)}") for one in found.requests]
    pairs += [(name, cell_text(value)) for name, value in (found.answer or {}).items()]
    if found.error is not None:
        pairs.append(("error", f"{found.error.type}: {found.error.message}"))
    verdict = "?" if found.verdict is None else found.verdict.value
    pairs.append(("first row", f"{verdict}; {tokens}, {found.latency_s:.2f} s"))
    return [*pairs, *[("note", remark) for remark in found.remarks]]


def _estimate_text(found: DryRun) -> str:
    estimate = found.estimate
    if estimate is None:
        return "none"
    requests = quantity(estimate.requests, "request")
    if estimate.prompt_tokens is None:
        return f"{requests}; the endpoint does not tell its tokens"
    return (
        f"roughly {requests}, {quantity(estimate.prompt_tokens, 'token')} in and "
        f"{estimate.completion_tokens} out, estimated from the first row and the lengths of "
        f"{quantity(estimate.inputs_compared, 'input')}"
    )


@taking_flags
def submit_script(
    script: Annotated[
        Path, typer.Argument(metavar="FILE", help="A .py file, or anything executable.")
    ],
    args: Annotated[
        list[str] | None, typer.Argument(metavar="[-- ARGS…]", help="What it is called with.")
    ] = None,
    swarm: SwarmOption = None,
    config: ConfigOption = None,
    external_id: ExternalIdOption = None,
    *,
    flags: ScriptFlags,
    detach: DetachOption = False,
    no_progress: NoProgressOption = False,
) -> None:
    """Run a program of yours beside a swarm; print its handle as one line of JSON.

    It finds the URL in ENDPOINT, the model's name in MODEL, and the key in the file that
    DOMYN_SWARM_API_KEY_FILE names. It is followed to its end, and 0 is success.

    Example: domyn-swarm job submit-script evaluate.py --name my-swarm -- --split test
    """
    from domyn_swarm.config import swarm_name
    from domyn_swarm.services.jobs import JobService
    from domyn_swarm.services.requests import ScriptRequest
    from domyn_swarm.swarm.job_file import read_resources

    if swarm is not None and config is not None:
        raise typer.BadParameter("--name and --config exclude each other.")
    request = ScriptRequest(
        script=script,
        args=tuple(args or ()),
        swarm=swarm_name(config) if config else swarm,
        name=flags.values["name"],
        external_id=external_id,
        resources=read_resources(flags.layer(), command="job submit-script", detached=detach),
        down_after=flags.values["down_after"],
    )
    follow(JobService().submit_script(request), detach=detach, no_progress=no_progress)
