"""The `job submit-script` command: a program of the user's beside a swarm."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from domyn_swarm.cli.following import follow
from domyn_swarm.cli.options import (
    ConfigOption,
    CpusOption,
    DetachOption,
    DownAfterOption,
    ExternalIdOption,
    MailOption,
    MemOption,
    NoProgressOption,
    PlacementOption,
    RunHereOption,
    SwarmOption,
    TimeOption,
    resources_of,
)


def submit_script(
    script: Annotated[
        Path, typer.Argument(metavar="FILE", help="A .py file, or anything executable.")
    ],
    args: Annotated[
        list[str] | None, typer.Argument(metavar="[-- ARGS…]", help="What it is called with.")
    ] = None,
    name: SwarmOption = None,
    config: ConfigOption = None,
    job_name: Annotated[
        str | None, typer.Option("--job-name", help="A name to list it by.")
    ] = None,
    external_id: ExternalIdOption = None,
    placement: PlacementOption = None,
    run_here: RunHereOption = False,
    cpus: CpusOption = None,
    mem: MemOption = None,
    time: TimeOption = None,
    mail_user: MailOption = None,
    down_after: DownAfterOption = False,
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

    if name is not None and config is not None:
        raise typer.BadParameter("--name and --config exclude each other.")
    request = ScriptRequest(
        script=script,
        args=tuple(args or ()),
        swarm=swarm_name(config) if config else name,
        name=job_name,
        external_id=external_id,
        resources=resources_of(
            detached=detach,
            placement=placement,
            run_here=run_here,
            cpus=cpus,
            mem=mem,
            time=time,
            mail_user=mail_user,
        ),
        down_after=down_after,
    )
    follow(JobService().submit_script(request), detach=detach, no_progress=no_progress)
