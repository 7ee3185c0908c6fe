"""Shell completion: prints and installs the scripts that call this program at each TAB.

All scripts use Typer's protocol for fish: a line for each candidate, with its value, a tab, and its
description. Typer's own script for zsh does nothing at the first TAB and loses quotes.
"""

from __future__ import annotations

import os
import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from domyn_swarm.cli.console import say
from domyn_swarm.errors import ConfigError

_FLAGS = ("--install-completion", "--show-completion")


class Shell(StrEnum):
    """Shells with a completion script."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def with_shell(args: list[str]) -> list[str]:
    """The arguments, with the calling shell added to a completion flag without a value."""
    if len(args) != 1 or args[0] not in _FLAGS:
        return args
    import shellingham

    try:
        return [*args, shellingham.detect_shell()[0]]
    except shellingham.ShellDetectionFailure:
        return args


def prepare() -> None:
    """Register Typer's completion, if a completion script has called this program."""
    if any(f"_{name}_COMPLETE" in os.environ for name in ("DOMYN_SWARM", "DSWARM")):
        from typer.completion import get_completion_inspect_parameters

        get_completion_inspect_parameters()  # registers the completion classes as a side effect


def _show(context: typer.Context, shell: Shell | None) -> None:
    if shell is not None and not context.resilient_parsing:
        typer.echo(_script(shell), nl=False)
        raise typer.Exit


def _install(context: typer.Context, shell: Shell | None) -> None:
    if shell is not None and not context.resilient_parsing:
        for path in _installed(shell):
            typer.echo(path)
        say(f"Completion is active in each new {shell.value}.")
        raise typer.Exit


ShowOption = Annotated[
    Shell | None,
    typer.Option(
        "--show-completion",
        is_eager=True,
        callback=_show,
        help="Print the completion script of a shell; by default of the current one.",
    ),
]
InstallOption = Annotated[
    Shell | None,
    typer.Option(
        "--install-completion",
        is_eager=True,
        callback=_install,
        help="Install the completion of a shell; by default of the current one.",
    ),
]


def _script(shell: Shell) -> str:
    from importlib import resources

    place = resources.files("domyn_swarm.cli") / "shells" / f"domyn-swarm.{shell.value}"
    return place.read_text("utf-8")


def _installed(shell: Shell) -> list[Path]:
    """Write the script, and make the shell source it at its start. Returns the changed files."""
    if shell is Shell.FISH:
        folder = _folder("XDG_CONFIG_HOME", ".config") / "fish" / "conf.d"
        script, start = folder / "domyn-swarm.fish", None
    else:
        script = _folder("XDG_DATA_HOME", ".local/share") / "domyn-swarm" / f"completion.{shell}"
        start = Path.home() / ".bashrc"
        if shell is Shell.ZSH:
            start = _folder("ZDOTDIR", ".") / ".zshrc"
    try:
        script.parent.mkdir(parents=True, exist_ok=True)
        script.write_text(_script(shell), encoding="utf-8")
        if start is None:
            return [script]
        line = f"source {shlex.quote(str(script))}"
        lines = start.read_text("utf-8", "replace").splitlines() if start.exists() else [""]
        if line not in lines:
            with start.open("a", encoding="utf-8") as file:
                file.write(f"\n{line}\n")
    except OSError as error:
        raise ConfigError(
            f"{error.filename} cannot be written: {error.strerror}.",
            hint=f"Save the output of --show-completion {shell} in a file that {shell} reads.",
        ) from error
    return [script, start]


def _folder(variable: str, default: str) -> Path:
    value = os.environ.get(variable)
    return Path(value) if value else Path.home() / default
