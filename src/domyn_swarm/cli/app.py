"""The command line program: the tree of commands, and the only place where errors are printed.

Nothing heavy is imported here or at the top of a command module: `--help` is instant.
"""

from __future__ import annotations

import errno
import os
import sys
from enum import StrEnum
from typing import Annotated, NoReturn

import typer

from domyn_swarm import __version__
from domyn_swarm.cli import completion, console
from domyn_swarm.cli.command_tree import Entry, Root, lazy
from domyn_swarm.cli.completion import InstallOption, ShowOption
from domyn_swarm.cli.console import say
from domyn_swarm.errors import EXIT_BUG, EXIT_INTERRUPTED, PlatformError, SwarmError, words_of
from domyn_swarm.logs import FORMAT_VARIABLE, configure

_CLI = "domyn_swarm.cli"
_NO_BUG = frozenset(
    {
        *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
        *(errno.EIO, errno.ESTALE, errno.ENAMETOOLONG, errno.EMFILE, errno.ENFILE, errno.ENOLCK),
    }
)
"""Errors of the operating system that are reported as refusals, whichever command meets them."""
COMMANDS = (
    Entry("up", f"{_CLI}.swarm_commands:up", "Bring a swarm up; print its name."),
    Entry("wait", f"{_CLI}.swarm_commands:wait", "Wait until a swarm is ready; print its name."),
    Entry("status", f"{_CLI}.status:status", "Show a swarm's phase, endpoint, replicas and jobs."),
    Entry(
        "down",
        f"{_CLI}.swarm_commands:down",
        "Stop swarms, and verify that nothing of them runs any more.",
    ),
    Entry(
        "scale",
        f"{_CLI}.swarm_commands:scale",
        "Have a live swarm run N replicas; print how it stands.",
    ),
    Entry("endpoint", f"{_CLI}.status:endpoint", "Print where a swarm answers and how to call it."),
    Entry(
        "logs",
        f"{_CLI}.logs_command:logs",
        "Print the logs of a swarm's replicas, or of its endpoint, its watchdogs or a job.",
    ),
    Entry("pool", f"{_CLI}.pool_commands:pool_app", "Several swarms from one file."),
    Entry(
        "init", f"{_CLI}.config_commands:init_app", "Write a first configuration or the defaults."
    ),
    Entry(
        "config", f"{_CLI}.config_commands:config_app", "Check configurations; their JSON Schema."
    ),
    Entry(
        "checkpoints",
        f"{_CLI}.checkpoint_commands:checkpoints_app",
        "Checkpoints of jobs.",
    ),
    Entry(
        "plan",
        f"{_CLI}.planning:plan",
        "Show what `up` would do: layout, GPUs, GPU-hours, the engine's command, every script.",
    ),
    Entry(
        "rehearse",
        f"{_CLI}.rehearsing:rehearse",
        "Rehearse a campaign in virtual time: what its GPUs would do, and what settings would "
        "change.",
    ),
    Entry(
        "doctor",
        f"{_CLI}.planning:doctor",
        "Check this machine, and with FILE the site, for what a swarm needs; name each problem's "
        "fix.",
    ),
    Entry(
        "top",
        f"{_CLI}.top.top_command:top",
        "Watch a swarm live: replicas, tokens per second, queue, jobs with rows per second and "
        "ETA.",
    ),
    Entry(
        "dashboard",
        f"{_CLI}.dashboard.dashboard_command:dashboard",
        "Serve a live page about the swarms of this home, until Ctrl-C; print its URL.",
    ),
    Entry(
        "usage",
        f"{_CLI}.usage_command:usage",
        "Show what GPUs were used for: by swarm, replica, job and user; swarms that are gone "
        "included.",
    ),
    Entry("swarm", f"{_CLI}.swarm_commands:swarm_app", "All swarms, and more about one."),
    Entry("job", f"{_CLI}.job_commands:job_app", "Jobs: a dataset through a swarm."),
    Entry("db", f"{_CLI}.database_commands:db_app", "The state database."),
    Entry(
        "version",
        f"{_CLI}.version:version",
        "Print the version, and those of the programs it works with.",
    ),
)

app = typer.Typer(
    name="domyn-swarm",
    cls=lazy(Root, COMMANDS),
    help="Replicas of an LLM server behind one endpoint, and resumable batch jobs through it.",
    epilog="First steps: domyn-swarm init config --output swarm.yaml; domyn-swarm up swarm.yaml",
    no_args_is_help=True,
    add_completion=False,  # ours are options of the root
    context_settings={"help_option_names": ["-h", "--help"]},  # of every command below, too
    rich_markup_mode=None,  # Rich costs more than the rest of --help
    pretty_exceptions_enable=False,
)


class LogFormat(StrEnum):
    """How the lines of the log look, on stderr."""

    TEXT = "text"
    JSON = "json"


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[  # noqa: ARG001 - its callback does it
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version."
        ),
    ] = False,
    log_format: Annotated[
        LogFormat | None,
        typer.Option("--log-format", help="How lines of the log look on stderr; text by default."),
    ] = None,
    install_completion: InstallOption = None,  # noqa: ARG001 - its callback does it
    show_completion: ShowOption = None,  # noqa: ARG001 - as above
) -> None:
    if log_format is not None:
        # programs started from here log in the same way
        os.environ[FORMAT_VARIABLE] = log_format.value
    configure()


def main() -> None:
    """Run the command line and exit with its code; errors are printed here, once."""
    console.use_utf8()
    from domyn_swarm.config import load_dotenv

    try:
        load_dotenv()
        completion.prepare()
        app()
    except SwarmError as error:
        say(f"error: {error.message}")
        if error.hint:
            say(f"hint: {error.hint}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except OSError as error:
        if error.errno not in _NO_BUG:
            _tell_bug()
        say(f"error: {words_of(error)}")
        say("hint: Check that disk (permissions, quota, space) and this machine's limits.")
        sys.exit(PlatformError.exit_code)
    except Exception:  # noqa: BLE001 - the process boundary: whatever is left is a bug of ours
        _tell_bug()


def _tell_bug() -> NoReturn:
    import traceback

    traceback.print_exc()
    say("hint: this is a bug in domyn-swarm; please report it with the lines above.")
    sys.exit(EXIT_BUG)
