"""The `job submit` command: submit a job, follow it, end as it ends."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from domyn_swarm.cli.following import follow
from domyn_swarm.cli.options import (
    AcceptOption,
    ConcurrencyOption,
    ConfigOption,
    CpusOption,
    DataBackendOption,
    DelimiterOption,
    DetachOption,
    DownAfterOption,
    EncodingOption,
    Format,
    MailOption,
    MaxFailuresOption,
    MemOption,
    NoProgressOption,
    OverwriteOption,
    PlacementOption,
    RayAddressOption,
    ReadKwargsOption,
    RecursiveOption,
    RetriesOption,
    RunHereOption,
    SwarmOption,
    TimeOption,
    TimeoutOption,
    TimeoutRetriesOption,
    TypesOption,
    WorkersOption,
    WriteKwargsOption,
    concurrency_of,
    parse_json_object,
    reading_options,
    resources_of,
    swarm_name,
)

if TYPE_CHECKING:
    from domyn_swarm.services.requests import JobRequest

_CHAT, _TEMPLATE = "domyn_swarm.jobs:ChatCompletionJob", "domyn_swarm.jobs:TemplateJob"


class OutputMode(StrEnum):
    """What becomes of the input's columns in the output."""

    APPEND = "append"
    REPLACE = "replace"
    IO_ONLY = "io_only"


class Fingerprint(StrEnum):
    """How many rows' inputs are compared with those that were answered."""

    FULL = "full"
    SAMPLE = "sample"
    OFF = "off"


class Dedup(StrEnum):
    """Which rows of one value share a request."""

    GREEDY = "greedy"
    ALWAYS = "always"


def submit(
    source: Annotated[str, typer.Option("--input", metavar="PATH", help="The rows to ask.")],
    target: Annotated[str, typer.Option("--output", metavar="PATH", help="Where answers go.")],
    job: Annotated[
        str, typer.Argument(metavar="[MODULE:CLASS]", help="The job; a chat job when left out.")
    ] = _CHAT,
    name: SwarmOption = None,
    config: ConfigOption = None,
    endpoint: Annotated[
        str | None,
        typer.Option("--endpoint", metavar="URL", help="Any OpenAI endpoint instead of a swarm."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="The model's name; needed with --endpoint.")
    ] = None,
    input_column: Annotated[
        list[str] | None, typer.Option("--input-column", help="A column to read; repeatable.")
    ] = None,
    output_column: Annotated[
        list[str] | None, typer.Option("--output-column", help="A column to write; repeatable.")
    ] = None,
    id_column: Annotated[
        str | None,
        typer.Option("--id-column", help="Names each row; its position does when left out."),
    ] = None,
    output_mode: Annotated[
        OutputMode | None,
        typer.Option(
            "--output-mode", help="Add columns, replace same-named ones, or input and answers only."
        ),
    ] = None,
    shard_output: Annotated[
        bool,
        typer.Option("--shard-output", help="Make --output a folder of files, 250,000 rows each."),
    ] = False,
    overwrite: OverwriteOption = False,
    encoding: EncodingOption = "utf-8",
    delimiter: DelimiterOption = None,
    types: TypesOption = "",
    infer_types: Annotated[
        bool,
        typer.Option("--infer-types", help="CSV to Parquet: types for cells that all have one."),
    ] = False,
    recursive: RecursiveOption = False,
    job_kwargs: Annotated[
        str,
        typer.Option("--job-kwargs", metavar="JSON", help="Options of the job and its requests."),
    ] = "{}",
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt", metavar="TEMPLATE", help="What to ask, over the row's {{ columns }}."
        ),
    ] = None,
    system: Annotated[
        str | None, typer.Option("--system", metavar="TEMPLATE", help="The system message.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=0, help="Only the first so many rows.")
    ] = None,
    job_name: Annotated[
        str | None, typer.Option("--job-name", help="A name to list it by.")
    ] = None,
    external_id: Annotated[
        str | None,
        typer.Option("--external-id", metavar="ID", help="An id of yours to find it by."),
    ] = None,
    max_concurrency: ConcurrencyOption = None,
    workers: WorkersOption = None,
    data_backend: DataBackendOption = None,
    backend_read_kwargs: ReadKwargsOption = "{}",
    backend_write_kwargs: WriteKwargsOption = "{}",
    ray_address: RayAddressOption = None,
    retries: RetriesOption = None,
    timeout: TimeoutOption = None,
    timeout_retries: TimeoutRetriesOption = None,
    max_failures: MaxFailuresOption = None,
    accept: AcceptOption = None,
    dedup: Annotated[
        Dedup | None,
        typer.Option(
            "--dedup",
            help="Rows of one value share a request: greedy, with temperature 0 only; or always.",
        ),
    ] = None,
    checkpoint_dir: Annotated[
        Path | None,
        typer.Option("--checkpoint-dir", metavar="DIR", help="Where checkpoints lie."),
    ] = None,
    checkpoint_tag: Annotated[
        str | None, typer.Option("--checkpoint-tag", help="Keeps apart what is else the same job.")
    ] = None,
    checkpoint_interval: Annotated[
        int | None,
        typer.Option("--checkpoint-interval", min=1, metavar="ROWS", help="Rows between fsyncs."),
    ] = None,
    checkpoint_seconds: Annotated[
        float | None,
        typer.Option(
            "--checkpoint-seconds", min=0.001, metavar="S", help="Seconds between fsyncs."
        ),
    ] = None,
    fingerprint: Annotated[
        Fingerprint,
        typer.Option(
            "--fingerprint",
            help="Compare all rows with those that were answered, one in 64, or none (ids alone).",
        ),
    ] = Fingerprint.FULL,
    no_resume: Annotated[bool, typer.Option("--no-resume", help="Ask every row again.")] = False,
    no_checkpointing: Annotated[
        bool, typer.Option("--no-checkpointing", help="Leave no checkpoint behind.")
    ] = False,
    placement: PlacementOption = None,
    run_here: RunHereOption = False,
    cpus: CpusOption = None,
    mem: MemOption = None,
    time: TimeOption = None,
    mail_user: MailOption = None,
    down_after: DownAfterOption = False,
    detach: DetachOption = False,
    no_progress: NoProgressOption = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Check all, ask the first row, estimate the rest; submit nothing."
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what --dry-run found as JSON.")
    ] = False,
) -> None:
    """Push a dataset through a swarm; print the job's handle as one line of JSON.

    Follows the job until it ends and exits with its code: 0 all rows answered, 7 some rows failed,
    6 it did not finish. The same command again goes on where the last one stopped.

    Example: domyn-swarm job submit --input in.parquet --output out.parquet --input-column prompt
    """
    from domyn_swarm.services.jobs import JobService
    from domyn_swarm.services.requests import JobRequest

    if sum(given is not None for given in (name, config, endpoint)) > 1:
        raise typer.BadParameter("--name, --config and --endpoint exclude each other.")
    if dry_run and (detach or down_after):
        raise typer.BadParameter("--dry-run submits nothing: leave --detach and --down-after out.")
    if as_json and not dry_run:
        raise typer.BadParameter("--json is for --dry-run: the handle of a job is JSON anyway.")
    templates = {"prompt": prompt, "system": system}
    request = JobRequest(
        job=_TEMPLATE if job == _CHAT and prompt is not None else job,
        swarm=swarm_name(config) if config else name,
        endpoint=endpoint,
        model=model,
        input=source,
        output=target,
        input_columns=tuple(input_column or ()),
        output_columns=tuple(output_column or ()),
        id_column=id_column,
        fingerprint=fingerprint.value,
        output_mode=None if output_mode is None else output_mode.value,
        shard_output=shard_output,
        infer_types=infer_types,
        overwrite=overwrite,
        **reading_options(encoding, delimiter, types, recursive=recursive),
        job_kwargs={
            **parse_json_object(job_kwargs),
            **{name: text for name, text in templates.items() if text is not None},
        },
        limit=limit,
        name=job_name,
        external_id=external_id,
        max_concurrency=None if max_concurrency is None else concurrency_of(max_concurrency),
        workers=workers,
        data_backend=None if data_backend is None else data_backend.value,
        backend_read_kwargs=parse_json_object(backend_read_kwargs),
        backend_write_kwargs=parse_json_object(backend_write_kwargs),
        ray_address=ray_address,
        retries=retries,
        timeout_s=timeout,
        timeout_retries=timeout_retries,
        max_failures=max_failures,
        accept=None if accept is None else accept.value,
        dedup=None if dedup is None else dedup.value,
        checkpoint_dir=checkpoint_dir,
        checkpoint_tag=checkpoint_tag,
        checkpoint_interval=checkpoint_interval,
        checkpoint_seconds=checkpoint_seconds,
        resume=not no_resume,
        checkpointing=not no_checkpointing,
        down_after=down_after,
        resources=resources_of(
            detached=detach,
            placement=placement,
            run_here=run_here,
            cpus=cpus,
            mem=mem,
            time=time,
            mail_user=mail_user,
        ),
    )
    if dry_run:
        _rehearse(request, Format.JSON if as_json else Format.TABLE)
    else:
        follow(
            JobService().submit(request),
            detach=detach,
            no_progress=no_progress,
            time_limit_s=request.resources.time_limit_s,
        )


def _rehearse(request: JobRequest, output: Format) -> None:
    """Print what a dry run finds; end with 6 when the row failed."""
    from domyn_swarm.cli.console import say
    from domyn_swarm.cli.job_views import show_dry_run
    from domyn_swarm.errors import JobError
    from domyn_swarm.services.jobs import JobService

    found = JobService().dry_run(request)
    show_dry_run(found, output)
    if found.error is not None:
        say(f"The first row failed: {found.error.message}")
        raise typer.Exit(JobError.exit_code)
    say("Nothing was submitted.")
