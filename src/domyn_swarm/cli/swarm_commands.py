"""Commands that change swarms: up, down, scale; and the group `swarm`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from domyn_swarm.cli import candidates
from domyn_swarm.cli.console import (
    Terminated,
    confirm,
    interactive,
    say,
    termination_interrupts,
)
from domyn_swarm.cli.logs_command import logs
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
    named_swarm,
)
from domyn_swarm.cli.status import NameArgument, describe, list_swarms
from domyn_swarm.errors import EXIT_INTERRUPTED, PlatformError, SwarmNotFound

if TYPE_CHECKING:
    from domyn_swarm.services.requests import UpResult
    from domyn_swarm.swarm.launch import Launch

swarm_app = typer.Typer(help="All swarms, and more about one.", no_args_is_help=True)


def up(
    file: FileArgument = None,
    config: ConfigOption = None,
    replicas: ReplicasOption = None,
    name: NameOption = None,
    settings: OverridesOption = None,
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

    One of that name and configuration that is coming up is waited for, and one that is up is taken
    as it is: the same command again starts nothing twice. With another configuration it is refused,
    with what differs.

    Example: NAME=$(domyn-swarm up config.yaml -r 2 --set watchdog.max_restarts=5)
    """
    from domyn_swarm.cli.views import show_plan, show_up
    from domyn_swarm.services.requests import UpRequest
    from domyn_swarm.services.swarms import SwarmService

    form = chosen_format(output, as_json, as_yaml)
    request = UpRequest(
        config=chosen_file(file, config),
        name=name,
        replicas=replicas,
        overrides=tuple(settings or ()),
    )
    launch = SwarmService.prepare(request)
    if dry_run:
        show_plan(SwarmService.report(launch), form)
        return
    result = _up_or_ask(launch, wait=wait, timeout_s=timeout)
    if result.ready:
        other = "" if result.launched else "; nothing was started, it was up or coming up"
        say(f"{result.name} is ready at {result.endpoint}{other}")
    else:
        say(f"{result.name} is on its way: `domyn-swarm wait {result.name}` waits for it")
    show_up(result, form)


def _up_or_ask(launch: Launch, *, wait: bool, timeout_s: float | None) -> UpResult:
    """Bring it up. On Ctrl-C the user decides what happens to the started parts; a caller that ends
    the command by another signal is informed of what keeps running.
    """
    from domyn_swarm.cli.console import phases
    from domyn_swarm.services.swarms import SwarmService

    service = SwarmService()
    name = launch.name
    try:
        with termination_interrupts(), phases(name) as on_change:
            return service.up(launch, wait=wait, timeout_s=timeout_s, on_change=on_change)
    except KeyboardInterrupt as interruption:
        ended = interruption if isinstance(interruption, Terminated) else None
        asked = ended is None and interactive()
        if asked and confirm(f"\nInterrupted. Stop {name} and free what it holds?"):
            _down_quietly(name)
        else:
            say(
                f"Interrupted: what was started of {name} keeps running.\n"
                f"See it with `domyn-swarm status {name}`, stop it with `domyn-swarm down {name}`; "
                f"`domyn-swarm wait {name}` returns once it is ready."
            )
        raise typer.Exit(EXIT_INTERRUPTED if ended is None else ended.exit_code) from None


def _down_quietly(name: str) -> None:
    from domyn_swarm.services.swarms import SwarmService

    try:
        results = SwarmService().down([name])
    except SwarmNotFound:
        say(f"Nothing of {name} had been started.")
        return
    for result in results:
        say(f"{name} is stopped." if result.stopped else f"{name}: {result.error}")


def wait(
    name: NameArgument = None,
    timeout: Annotated[
        float | None, typer.Option("--timeout", min=0, metavar="S", help="Give up after so long.")
    ] = None,
    output: FormatOption = Format.TABLE,
    as_json: JsonOption = False,
    as_yaml: YamlOption = False,
) -> None:
    """Wait until a swarm is ready; print its name.

    For `up --no-wait`, and after a lost connection. Ends as `up` does: 0 once it is ready, 5 when
    it does not come up, with the cause and everything stopped. Giving up after --timeout leaves the
    swarm alone, and exits with 124.

    Example: domyn-swarm wait my-swarm --timeout 3600
    """
    from domyn_swarm.cli.console import phases
    from domyn_swarm.cli.views import show_up
    from domyn_swarm.services.swarms import SwarmService

    form = chosen_format(output, as_json, as_yaml)
    service = SwarmService()
    chosen = name or service.only_live()
    try:
        with phases(chosen) as on_change:
            result = service.wait(chosen, timeout_s=timeout, on_change=on_change)
    except KeyboardInterrupt:
        say(f"Interrupted: {chosen} keeps coming up.")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    say(f"{result.name} is ready at {result.endpoint}")
    show_up(result, form)


def down(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME|FILE",
            help="The swarms, by name or by their YAML files.",
            autocompletion=candidates.swarms,
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every live swarm.")] = False,
    config: ConfigOption = None,
    forget: Annotated[
        bool,
        typer.Option(
            "--forget",
            help="Stop nothing: record as stopped what nobody can ask any more, because its host, "
            "container or cluster is gone for good.",
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    output: FormatOption = Format.TABLE,
    as_json: JsonOption = False,
    as_yaml: YamlOption = False,
) -> None:
    """Stop swarms, and verify that nothing of them runs any more.

    A terminal is asked first, unless -y is given; without a terminal, --all needs -y.
    One that runs on another host or cluster is refused with where to go; with --forget it is
    written off, when that place is gone for good.
    When something could not be stopped its record stays, and the exit code is 4.

    Example: domyn-swarm down my-swarm -y
    """
    from domyn_swarm.cli.views import show_down
    from domyn_swarm.config import swarm_name
    from domyn_swarm.services.swarms import SwarmService

    form = chosen_format(output, as_json, as_yaml)
    wanted = [
        *(swarm_name(Path(one)) if one.endswith((".yaml", ".yml")) else one for one in names or ()),
        *([swarm_name(config)] if config else ()),
    ]
    if bool(wanted) == everything:
        raise typer.BadParameter("name the swarms, or their YAML files, or give --all.")
    if forget and everything:
        raise typer.BadParameter("--forget takes the names of swarms.")
    what = "every live swarm" if everything else ", ".join(wanted)
    if not yes and not _agreed(what, everything, forget):
        say("Nothing was forgotten." if forget else "Nothing was stopped.")
        raise typer.Exit(1)
    results = SwarmService().down(wanted, all_swarms=everything, forget=forget)
    show_down(results, form)
    if not results:
        say("No swarm is live: nothing was stopped.")
    left = [result for result in results if not (result.stopped or result.forgotten)]
    if left:
        raise PlatformError(
            "; ".join(f"{one.name}: {one.error or 'parts of it still run'}" for one in left),
            hint=next((one.hint for one in left if one.hint), "Run the same command again."),
        )


def scale(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="The swarm, or its YAML file.",
            callback=named_swarm,
            autocompletion=candidates.swarms,
        ),
    ],
    replicas: Annotated[
        int, typer.Argument(min=1, metavar="N", help="How many it should run, at least 1.")
    ],
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


def _agreed(what: str, everything: bool, forget: bool) -> bool:
    if interactive():
        question = f"Forget {what}, and stop nothing that may run there?"
        return confirm(question if forget else f"Stop {what}?")
    if everything:
        raise typer.BadParameter("--all without a terminal needs -y.")
    return True


swarm_app.command("list")(list_swarms)
swarm_app.command("describe")(describe)
swarm_app.command("logs")(logs)
