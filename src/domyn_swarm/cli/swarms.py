"""Commands about swarms: up, status, down, list, endpoint, logs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from domyn_swarm.cli.console import confirm, interactive, say
from domyn_swarm.cli.options import (
    ConfigOption,
    Format,
    FormatOption,
    JsonOption,
    YamlOption,
    chosen_format,
    complete_swarm,
    swarm_name,
)
from domyn_swarm.errors import EXIT_INTERRUPTED, PlatformError, SwarmNotFound

if TYPE_CHECKING:
    from domyn_swarm.services.requests import UpRequest, UpResult

swarm_app = typer.Typer(help="All swarms, and more about one.", no_args_is_help=True)

NameArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[NAME]",
        help="The swarm; may be left out when only one is live.",
        autocompletion=complete_swarm,
    ),
]


def up(
    config: Annotated[
        Path, typer.Option("--config", "-c", help="The swarm's YAML file.", metavar="FILE")
    ],
    replicas: Annotated[
        int | None, typer.Option("--replicas", "-r", min=1, help="How many replicas.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="The swarm's name.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the file; repeatable."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan; start nothing.")
    ] = False,
    wait: Annotated[
        bool,
        typer.Option("--wait/--no-wait", help="Return when enough replicas answer, or at once."),
    ] = True,
    timeout: Annotated[
        float | None,
        typer.Option("--timeout", min=0, metavar="S", help="Seconds for all, the queue included."),
    ] = None,
    output: FormatOption = Format.TABLE,
    as_json: JsonOption = False,
    as_yaml: YamlOption = False,
) -> None:
    """Bring a swarm up; print its name.

    Example: NAME=$(domyn-swarm up -c config.yaml -r 2 --set watchdog.max_restarts=5)
    """
    from domyn_swarm.cli.views import show_plan, show_up
    from domyn_swarm.services.requests import UpRequest
    from domyn_swarm.services.swarms import SwarmService

    form = chosen_format(output, as_json, as_yaml)
    request = UpRequest(
        config=config,
        name=name,
        replicas=replicas,
        overrides=tuple(settings or ()),
        wait=wait,
        timeout_s=timeout,
    )
    plan = SwarmService().plan(request)
    if dry_run:
        show_plan(SwarmService().report(request), form)
        return
    # A generated name is fixed here, so that an interruption can say what keeps running.
    result = _up_or_ask(request.model_copy(update={"name": plan.name}))
    if result.ready:
        say(f"{result.name} is ready at {result.endpoint}")
    else:
        say(f"{result.name} is on its way: domyn-swarm status {result.name}")
    show_up(result, form)


def _up_or_ask(request: UpRequest) -> UpResult:
    """Bring it up; on Ctrl-C a person decides what becomes of what was started."""
    from domyn_swarm.cli.progress import phases
    from domyn_swarm.services.swarms import SwarmService

    service = SwarmService()
    name = str(request.name)
    try:
        with phases(name) as on_change:
            return service.up(request, on_change=on_change)
    except KeyboardInterrupt:
        if interactive() and confirm(f"\nInterrupted. Stop {name} and free what it holds?"):
            _down_quietly(name)
        else:
            say(
                f"Interrupted: what was started of {name} keeps running.\n"
                f"See it with `domyn-swarm status {name}`, stop it with `domyn-swarm down {name}`."
            )
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _down_quietly(name: str) -> None:
    from domyn_swarm.services.swarms import SwarmService

    try:
        results = SwarmService().down([name])
    except SwarmNotFound:
        say(f"Nothing of {name} had been started.")
        return
    for result in results:
        say(f"{name} is stopped." if result.stopped else f"{name}: {result.error}")


def status(
    name: NameArgument = None,
    output: FormatOption = Format.TABLE,
    as_json: JsonOption = False,
    as_yaml: YamlOption = False,
) -> None:
    """Show a swarm's phase, endpoint, replicas and jobs.

    Example: domyn-swarm status my-swarm --json
    """
    from domyn_swarm.cli.views import show_swarm
    from domyn_swarm.services.swarms import SwarmService

    form = chosen_format(output, as_json, as_yaml)
    show_swarm(SwarmService().status(name), form)


def down(
    names: Annotated[
        list[str] | None, typer.Argument(help="The swarms.", autocompletion=complete_swarm)
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every live swarm.")] = False,
    config: ConfigOption = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    output: FormatOption = Format.TABLE,
    as_json: JsonOption = False,
    as_yaml: YamlOption = False,
) -> None:
    """Stop swarms, and verify that nothing of them runs any more.

    A terminal is asked first, unless -y is given; without a terminal, --all needs -y.
    When something could not be stopped its record stays, and the exit code is 4.

    Example: domyn-swarm down my-swarm -y
    """
    from domyn_swarm.cli.views import show_down
    from domyn_swarm.services.swarms import SwarmService

    form = chosen_format(output, as_json, as_yaml)
    wanted = [*(names or ()), *([swarm_name(config)] if config else ())]
    if bool(wanted) == everything:
        raise typer.BadParameter("name the swarms, or give a file with -c, or --all.")
    if not yes and not _agreed("every live swarm" if everything else ", ".join(wanted), everything):
        say("Nothing was stopped.")
        raise typer.Exit(1)
    results = SwarmService().down(wanted, all_swarms=everything)
    show_down(results, form)
    left = [result for result in results if not result.stopped]
    if left:
        raise PlatformError(
            "; ".join(f"{one.name}: {one.error or 'something of it still runs'}" for one in left),
            hint=next((one.hint for one in left if one.hint), "Run the same command again."),
        )


def scale(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The swarm.", autocompletion=complete_swarm)
    ],
    replicas: Annotated[int, typer.Argument(min=1, metavar="N", help="How many it shall run.")],
    output: FormatOption = Format.TABLE,
    as_json: JsonOption = False,
    as_yaml: YamlOption = False,
) -> None:
    """Have a live swarm run N replicas; print how it stands.

    Added ones join as they become ready; those beyond N finish their requests and give back their
    GPUs. Neither is waited for: see `domyn-swarm status --watch`.

    Example: domyn-swarm scale my-swarm 8
    """
    from domyn_swarm.cli.views import show_swarm
    from domyn_swarm.services.swarms import SwarmService

    form = chosen_format(output, as_json, as_yaml)
    show_swarm(SwarmService().scale(name, replicas), form)


def _agreed(what: str, everything: bool) -> bool:
    if interactive():
        return confirm(f"Stop {what}?")
    if everything:
        raise typer.BadParameter("--all without a terminal needs -y.")
    return True


def list_swarms(
    probe: Annotated[
        bool,
        typer.Option("--probe/--no-probe", help="Ask the platforms, or read the records only."),
    ] = True,
    output: FormatOption = Format.TABLE,
    as_json: JsonOption = False,
    as_yaml: YamlOption = False,
) -> None:
    """List the swarms.

    Example: domyn-swarm swarm list --no-probe
    """
    from domyn_swarm.cli.views import show_swarms
    from domyn_swarm.services.swarms import SwarmService

    form = chosen_format(output, as_json, as_yaml)
    show_swarms(SwarmService().list(probe=probe), form)


def endpoint(
    name: Annotated[str, typer.Argument(help="The swarm.", autocompletion=complete_swarm)],
    env: Annotated[
        bool, typer.Option("--env", help="Print exports for curl and the OpenAI clients.")
    ] = False,
    show_key: Annotated[
        bool, typer.Option("--show-key", help="With --env: the key itself, not its file.")
    ] = False,
    output: FormatOption = Format.TABLE,
    as_json: JsonOption = False,
    as_yaml: YamlOption = False,
) -> None:
    """Print where a swarm answers and how to call it.

    Example: eval "$(domyn-swarm endpoint my-swarm --env)"
    """
    import shlex

    from domyn_swarm.cli.views import show_endpoint
    from domyn_swarm.services.swarms import SwarmService

    if show_key and not env:
        raise typer.BadParameter("--show-key goes with --env.")
    form = chosen_format(output, as_json, as_yaml)
    info = SwarmService().endpoint(name)
    if not env:
        show_endpoint(info, form)
        return
    path = shlex.quote(str(info.key_file))
    key = shlex.quote(info.key_file.read_text().strip()) if show_key else f'"$(cat {path})"'
    typer.echo(f"export OPENAI_BASE_URL={shlex.quote(info.url + '/v1')}")
    typer.echo(f"export OPENAI_API_KEY={key}")
    typer.echo(f"export MODEL={shlex.quote(info.model)}")


def logs(
    name: Annotated[str, typer.Argument(help="The swarm.", autocompletion=complete_swarm)],
    replica: Annotated[
        int | None, typer.Argument(min=0, help="One replica; all when left out.")
    ] = None,
    of_endpoint: Annotated[
        bool, typer.Option("--endpoint", help="The endpoint's log: router and collector.")
    ] = False,
    of_watchdog: Annotated[bool, typer.Option("--watchdog", help="The watchdogs' logs.")] = False,
    job: Annotated[str | None, typer.Option("--job", metavar="ID", help="A job's log.")] = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on as it grows.")] = False,
    last_lines: Annotated[
        int, typer.Option("-n", "--lines", min=0, help="How many lines from the end.")
    ] = 200,
) -> None:
    """Print the logs of a swarm: its replicas', or another part's.

    Example: domyn-swarm logs my-swarm 0 -f
    """
    from domyn_swarm.services.requests import LogRequest
    from domyn_swarm.services.swarms import SwarmService

    if sum((of_endpoint, of_watchdog, job is not None)) > 1:
        raise typer.BadParameter("--endpoint, --watchdog and --job exclude each other.")
    source = (
        "endpoint" if of_endpoint else "watchdog" if of_watchdog else "job" if job else "replica"
    )
    request = LogRequest.model_validate(
        {
            "name": name,
            "source": source,
            "replica": replica,
            "job_id": job,
            "last_lines": last_lines,
            "follow": follow,
        }
    )
    for line in SwarmService().logs(request):
        typer.echo(line.rstrip("\n"))
        if follow:
            sys.stdout.flush()


swarm_app.command("list")(list_swarms)
swarm_app.command("logs")(logs)
