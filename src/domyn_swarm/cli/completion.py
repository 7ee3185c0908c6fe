"""Completion in shells: the scripts that ask this program at each TAB, shown and installed.

They speak the protocol of Typer's fish for all shells: a line for each candidate, its value and
behind a tab what it is. Typer's own scripts for zsh do nothing at the first TAB and lose quotes.
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
    """Shells that can complete."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def with_shell(args: list[str]) -> list[str]:
    """The arguments, with the shell that the program was started from where none is named."""
    if len(args) != 1 or args[0] not in _FLAGS:
        return args
    import shellingham

    try:
        return [*args, shellingham.detect_shell()[0]]
    except shellingham.ShellDetectionFailure:
        return args


def prepare() -> None:
    """Make Typer ready to answer, if it is a shell that asks."""
    if any(f"_{name}_COMPLETE" in os.environ for name in ("DOMYN_SWARM", "DSWARM")):
        from typer.completion import get_completion_inspect_parameters

        get_completion_inspect_parameters()  # registers what answers, by the way


def _show(context: typer.Context, shell: Shell | None) -> None:
    if shell is not None and not context.resilient_parsing:
        typer.echo(_script(shell), nl=False)
        raise typer.Exit


def _install(context: typer.Context, shell: Shell | None) -> None:
    if shell is not None and not context.resilient_parsing:
        for path in _installed(shell):
            typer.echo(path)
        say(f"A new {shell.value} completes.")
        raise typer.Exit


ShowOption = Annotated[
    Shell | None,
    typer.Option(
        "--show-completion",
        is_eager=True,
        callback=_show,
        help="Print the completion script of a shell; of this one when none is named.",
    ),
]
InstallOption = Annotated[
    Shell | None,
    typer.Option(
        "--install-completion",
        is_eager=True,
        callback=_install,
        help="Have a shell complete; this one when none is named.",
    ),
]


def _script(shell: Shell) -> str:
    from importlib import resources

    place = resources.files("domyn_swarm.cli") / "shells" / f"domyn-swarm.{shell.value}"
    return place.read_text("utf-8")


def _installed(shell: Shell) -> list[Path]:
    """Write the script, and have the shell read it when it starts; the files."""
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
        known = start.read_text("utf-8", "replace").splitlines() if start.exists() else [""]
        if line not in known:
            with start.open("a", encoding="utf-8") as file:
                file.write(f"\n{line}\n")
    except OSError as error:
        raise ConfigError(
            f"{error.filename} cannot be written: {error.strerror}.",
            hint=f"Put the output of --show-completion {shell} where {shell} reads it.",
        ) from error
    return [script, start]


def _folder(variable: str, default: str) -> Path:
    value = os.environ.get(variable)
    return Path(value) if value else Path.home() / default
