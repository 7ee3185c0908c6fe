"""Commands that run a job again: resume, retry-failed."""

from __future__ import annotations

from typing import Annotated

import typer

from domyn_swarm.cli import candidates
from domyn_swarm.cli.console import say
from domyn_swarm.cli.flags import taking_flags
from domyn_swarm.cli.following import follow
from domyn_swarm.cli.job_flags import ResumeFlags, RetryFlags
from domyn_swarm.cli.shared_options import (
    DetachOption,
    ExternalIdOption,
    HandleOption,
    NoProgressOption,
    RefArgument,
    SwarmOption,
    chosen_job,
    parse_json_object,
)


@taking_flags
def resume(
    ref: RefArgument = None,
    external_id: ExternalIdOption = None,
    handle_json: HandleOption = None,
    name: SwarmOption = None,
    *,
    flags: ResumeFlags,
    detach: DetachOption = False,
    no_progress: NoProgressOption = False,
) -> None:
    """Submit the same job once more; rows that are settled are not asked again.

    It goes to its own swarm, or with --name to another one that serves the same model. How it runs
    may be changed; what it asks may not.

    Example: domyn-swarm job resume nightly-run --name tomorrows-swarm
    """
    from domyn_swarm.services.jobs import JobService
    from domyn_swarm.swarm.job_file import read_changes

    changes = read_changes(flags.layer(), command="job resume", detached=detach)
    which = chosen_job(ref, external_id, handle_json)
    handle = JobService().resume(which, swarm=name, changes=changes)
    limit_s = changes.resources.time_limit_s
    follow(handle, detach=detach, no_progress=no_progress, time_limit_s=limit_s)


@taking_flags
def retry_failed(
    ref: RefArgument = None,
    external_id: ExternalIdOption = None,
    handle_json: HandleOption = None,
    name: SwarmOption = None,
    classes: Annotated[
        list[str] | None,
        typer.Option(
            "--class",
            metavar="NAME[,NAME]",
            help="Rows whose answers are cut, empty, refused, tool_calls or error; repeatable. "
            "Left out: all that failed.",
            autocompletion=candidates.verdicts,
        ),
    ] = None,
    job_kwargs: Annotated[
        str,
        typer.Option(
            "--job-kwargs", metavar="JSON", help="Parameters to change, for these rows alone."
        ),
    ] = "{}",
    *,
    flags: RetryFlags,
    detach: DetachOption = False,
    no_progress: NoProgressOption = False,
) -> None:
    """Ask the rows again that a job gave up, and no others; other parameters may help them.

    With --class those whose answers are so, failed or not. What a row has stays until something
    better comes. Rows that were never asked stay so: `job resume` asks them. Where there is nothing
    to retry it says so, starts nothing and exits with 0.

    Example: domyn-swarm job retry-failed nightly --class cut --job-kwargs '{"max_tokens": 4000}'
    """
    from domyn_swarm.errors import NothingToRetry
    from domyn_swarm.model import verdicts_named
    from domyn_swarm.services.jobs import JobService
    from domyn_swarm.swarm.job_file import read_changes

    changes = read_changes(flags.layer(), command="job retry-failed", detached=detach)
    changes = changes.model_copy(
        update={
            "retry_classes": verdicts_named(classes or ()),
            "override": parse_json_object(job_kwargs, "--job-kwargs"),
        }
    )
    which = chosen_job(ref, external_id, handle_json)
    try:
        handle = JobService().retry_failed(which, swarm=name, changes=changes)
    except NothingToRetry as nothing:
        say(f"{nothing.message}\n{nothing.hint}")
        return
    limit_s = changes.resources.time_limit_s
    follow(handle, detach=detach, no_progress=no_progress, time_limit_s=limit_s)
