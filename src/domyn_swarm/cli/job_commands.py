"""Commands about jobs that exist: status, list, wait, cancel, logs; and the group `job`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from domyn_swarm.cli import candidates
from domyn_swarm.cli.command_tree import Entry, LazyGroup, lazy
from domyn_swarm.cli.console import say
from domyn_swarm.cli.logs_command import FollowOption, LinesOption
from domyn_swarm.cli.shared_options import (
    ExternalIdOption,
    Format,
    FormatOption,
    HandleOption,
    JsonOption,
    RefArgument,
    YamlOption,
    chosen_format,
    chosen_job,
)
from domyn_swarm.cli.status import EveryOption, WatchOption
from domyn_swarm.errors import EXIT_INTERRUPTED

_CLI = "domyn_swarm.cli"
_OTHER_MODULES = (
    Entry(
        "submit",
        f"{_CLI}.submit:submit",
        "Push a dataset through a swarm; print the job's handle as one line of JSON.",
    ),
    Entry(
        "preview",
        f"{_CLI}.preview_command:preview",
        "Send the first rows of a job and show their answers; then submit it, if that is wanted.",
    ),
    Entry(
        "submit-script",
        f"{_CLI}.submit:submit_script",
        "Run a program of yours beside a swarm; print its handle as one line of JSON.",
    ),
    Entry(
        "resume",
        f"{_CLI}.resubmit:resume",
        "Submit the same job once more; rows that are settled are not asked again.",
    ),
    Entry(
        "retry-failed",
        f"{_CLI}.resubmit:retry_failed",
        "Ask the rows again that a job gave up, and no others; other parameters may help them.",
    ),
    Entry(
        "failures",
        f"{_CLI}.job_results:failures",
        "Group a job's failed rows by their errors, with an example of each; say how "
        "many rows are not settled, and which command asks them.",
    ),
    Entry(
        "report",
        f"{_CLI}.job_results:report",
        "Write a page about a job, one HTML file with plots; print where it is.",
    ),
    Entry(
        "verify",
        f"{_CLI}.job_results:verify",
        "Check that a job's output is whole: every file intact, every input row once and in order.",
    ),
    Entry(
        "results",
        f"{_CLI}.job_results:results",
        "Show the first rows of a job's output, or write all of them to a file.",
    ),
)
job_app = typer.Typer(
    cls=lazy(LazyGroup, _OTHER_MODULES),
    help="Jobs: a dataset through a swarm.",
    no_args_is_help=True,
)


_ON_TERMINAL, _ELSEWHERE = 15, 50  # jobs that are listed

RefreshOption = Annotated[
    bool,
    typer.Option("--refresh", help="Ask the scheduler, too; else the records and files are read."),
]


@job_app.command()
def status(
    ref: RefArgument = None,
    external_id: ExternalIdOption = None,
    handle_json: HandleOption = None,
    refresh: RefreshOption = False,
    watch: WatchOption = False,
    every: EveryOption = 1.0,
    output: FormatOption = Format.TABLE,
    as_json: JsonOption = False,
    as_yaml: YamlOption = False,
) -> None:
    """Show how far a job is, or how it ended.

    Read from its record and its own files; --refresh asks the scheduler, which knows of a node that
    died. --watch does so, too, and follows it to its end.

    Example: domyn-swarm job status nightly-run --watch
    """
    from domyn_swarm.cli.job_views import job_line, show_job
    from domyn_swarm.cli.status import Watch
    from domyn_swarm.services.jobs import JobService

    form = chosen_format(output, as_json, as_yaml)
    which = chosen_job(ref, external_id, handle_json)
    service = JobService()
    if not watch:
        show_job(service.status(which, refresh=refresh), form)
        return
    Watch(
        look=lambda: service.status(which, refresh=True),
        show=lambda seen: show_job(seen, Format.TABLE),
        line=job_line,
        ended=lambda seen: seen.status.final,
        every_s=every,
    ).run(form)


@job_app.command("list")
def list_jobs(
    name: Annotated[  # without the `-n` of other commands
        str | None,
        typer.Option(
            "--name",
            metavar="SWARM",
            help="Of this swarm only.",
            autocompletion=candidates.swarms,
        ),
    ] = None,
    newest: Annotated[
        int | None,
        typer.Option(
            "-n",
            "--newest",
            min=0,
            metavar="N",
            help="So many, the newest; 0: all. Left out: 50, and 15 on a terminal.",
        ),
    ] = None,
    refresh: RefreshOption = False,
    output: FormatOption = Format.TABLE,
    as_json: JsonOption = False,
    as_yaml: YamlOption = False,
) -> None:
    """List the jobs, of one swarm or of all.

    A table has those of live swarms first, and the newest last; JSON and YAML have the newest
    first. Below the table it says why the latest jobs failed, or their rows.

    Example: domyn-swarm job list --name my-swarm --refresh
    """
    from domyn_swarm.cli.job_views import show_jobs
    from domyn_swarm.services.jobs import JobService

    form = chosen_format(output, as_json, as_yaml)
    service = JobService()
    table = form is Format.TABLE
    if newest is None:
        newest = _ON_TERMINAL if table and sys.stdout.isatty() else _ELSEWHERE
    jobs = service.list(swarm=name, refresh=refresh, newest=newest or None)
    left_out = service.count(name) - len(jobs) if len(jobs) == newest else 0
    show_jobs(service.current_first(jobs) if table else jobs, left_out, form)
    if left_out:
        say(f"jobs before these: {left_out}; -n 0 shows all")


@job_app.command()
def logs(
    ref: RefArgument = None,
    external_id: ExternalIdOption = None,
    handle_json: HandleOption = None,
    follow: FollowOption = False,
    last_lines: LinesOption = 200,
) -> None:
    """Print a job's log; with -f go on until the job has ended.

    Rows that failed are not in it: that they did, and why, is said behind it, on stderr.

    Example: domyn-swarm job logs nightly-run -f
    """
    from domyn_swarm.cli.job_views import failed_text
    from domyn_swarm.cli.logs_command import print_lines
    from domyn_swarm.services.jobs import JobService
    from domyn_swarm.services.merged_logs import job_log

    which = chosen_job(ref, external_id, handle_json)
    printed = print_lines(job_log(which, last_lines=last_lines, follow=follow))
    job = JobService().status(which, refresh=False)
    if not printed and last_lines:
        say(f"Nothing is in {job.log_path}: {job.job_id} is {job.status.value}.")
    if text := failed_text(job):
        say(f"failed: {text}")


@job_app.command()
def wait(
    ref: RefArgument = None,
    external_id: ExternalIdOption = None,
    handle_json: HandleOption = None,
    timeout: Annotated[
        float | None, typer.Option("--timeout", min=0, metavar="S", help="Give up after so long.")
    ] = None,
    no_progress: Annotated[bool, typer.Option("--no-progress", help="Show no bar.")] = False,
    output: FormatOption = Format.TABLE,
    as_json: JsonOption = False,
    as_yaml: YamlOption = False,
) -> None:
    """Wait for a job's end and exit with its code: 0, 7 some rows failed, 6 did not finish.

    Giving up after --timeout leaves the job alone, and exits with 6 too.

    Example: domyn-swarm job submit … -d | domyn-swarm job wait --handle-json -
    """
    from domyn_swarm.cli.console import rows
    from domyn_swarm.cli.job_views import show_job
    from domyn_swarm.services.jobs import JobService

    form = chosen_format(output, as_json, as_yaml)
    which = chosen_job(ref, external_id, handle_json)
    try:
        with rows(bar=not no_progress) as on_progress:
            seen = JobService().wait(which, timeout_s=timeout, on_progress=on_progress)
    except KeyboardInterrupt:
        say("\nInterrupted: the job keeps running. The same command waits for it again.")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    show_job(seen, form)
    if not seen.status.final:
        say(f"{seen.job_id} has not ended yet.")
    raise typer.Exit(seen.status.exit_code)


@job_app.command()
def cancel(
    ref: RefArgument = None,
    external_id: ExternalIdOption = None,
    handle_json: HandleOption = None,
    forget: Annotated[
        bool,
        typer.Option(
            "--forget",
            help="Stop nothing: record as failed a job that nobody can ask about any more, because "
            "its host, container or cluster is gone for good.",
        ),
    ] = False,
    output: FormatOption = Format.TABLE,
    as_json: JsonOption = False,
    as_yaml: YamlOption = False,
) -> None:
    """Stop one job; rows that are done stay done.

    One that runs on another host or cluster is refused with where to go; with --forget it is
    written off, when that place is gone for good.

    Example: domyn-swarm job cancel nightly-run
    """
    from domyn_swarm.cli.job_views import show_job
    from domyn_swarm.services.jobs import JobService

    form = chosen_format(output, as_json, as_yaml)
    which = chosen_job(ref, external_id, handle_json)
    service = JobService()
    if not forget and (ended := service.status(which)).status.final:
        say(f"{ended.job_id} has ended already: nothing was cancelled.")
    show_job(service.cancel(which, forget=forget), form)
