"""The command line program: the tree of commands, and the one place where errors are printed.

Nothing heavy is imported here or at the top of a command module: `--help` is instant.
"""

from __future__ import annotations

import sys

import typer

from domyn_swarm.cli import jobs, planning, swarms, version
from domyn_swarm.cli.console import say
from domyn_swarm.errors import EXIT_BUG, EXIT_INTERRUPTED, SwarmError

app = typer.Typer(
    name="domyn-swarm",
    help="Replicas of an LLM server behind one endpoint, and resumable batch jobs through it.",
    epilog="First steps: domyn-swarm up -c config.yaml; domyn-swarm job submit --help",
    no_args_is_help=True,
    rich_markup_mode=None,  # Rich costs more than the whole rest of --help
    pretty_exceptions_enable=False,
)
swarms.register(app)
planning.register(app)
app.add_typer(swarms.swarm_app, name="swarm")
app.add_typer(jobs.job_app, name="job")
app.command("version")(version.version)


def main() -> None:
    """Run the command line and leave with its exit code; errors are printed here, once."""
    from domyn_swarm.config import load_dotenv
    from domyn_swarm.logs import configure

    load_dotenv()
    configure()
    try:
        app()
    except SwarmError as error:
        say(f"error: {error.message}")
        if error.hint:
            say(f"hint: {error.hint}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except Exception:  # noqa: BLE001 - the process boundary: whatever is left is a bug of ours
        import traceback

        traceback.print_exc()
        say("hint: this is a bug in domyn-swarm; please report it with the lines above.")
        sys.exit(EXIT_BUG)
