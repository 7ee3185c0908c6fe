"""The tree's root: it knows every command's name and purpose, and imports one when it is called.

Building a command costs a millisecond and more, and there are dozens: `--help` builds none, and
any other call the one it is about.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import typer
from typer.core import TyperGroup

from domyn_swarm.cli.completion import with_shell
from domyn_swarm.cli.help_text import Command
from domyn_swarm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable


_UsageError: Any = typer.BadParameter.__base__  # of Typer's private click


class Entry(NamedTuple):
    """A command of the root, or a group of commands."""

    name: str
    place: str  # "module:object": a function, or a `typer.Typer`
    purpose: str  # the first line of the object's help: a test compares


def root_group(entries: Iterable[Entry]) -> type[TyperGroup]:
    """The class of a root with these commands, in this order."""
    places = {entry.name: entry.place for entry in entries}
    purposes = {entry.name: entry.purpose for entry in entries}

    class Root(TyperGroup):
        """Lists commands by what is written here, and builds the one that is called."""

        def __init__(self, **attributes: Any) -> None:
            super().__init__(**attributes)
            for name, purpose in purposes.items():
                self.add_command(Command(name, help=purpose, rich_markup_mode=None))

        def main(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401 - Typer's
            """Run, and end with the exit code.

            Raises:
                ConfigError: the words make no command; names what is wrong with them.
                SwarmError: as the command.
            """
            try:
                code = super().main(*args, **{**options, "standalone_mode": False})
            except _UsageError as error:
                if type(error).show is not _UsageError.show:  # a group without a command: its help
                    error.show()
                    sys.exit(error.exit_code)
                path = self.name if error.ctx is None else error.ctx.command_path
                raise ConfigError(
                    error.format_message(), hint=f"`{path} --help` shows what it takes."
                ) from None
            sys.exit(code if isinstance(code, int) else 0)

        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - Typer's
            return super().parse_args(ctx, with_shell(args))

        def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # noqa: ANN401 - Typer's
            name, command, rest = super().resolve_command(ctx, args)
            if name in places:
                command = build(name, places[name])
            return name, command, rest

    return Root


def build(name: str, place: str) -> Any:  # noqa: ANN401 - a command of Typer's private click
    """Import a command and make it ready to run."""
    from typer.main import get_command_from_info, get_group_from_info
    from typer.models import CommandInfo, TyperInfo

    module, _, attribute = place.partition(":")
    found = getattr(import_module(module), attribute)
    if isinstance(found, typer.Typer):
        for info in found.registered_commands:
            info.cls = Command
        return get_group_from_info(
            TyperInfo(found, name=name),
            pretty_exceptions_short=False,
            suggest_commands=True,
            rich_markup_mode=None,
        )
    return get_command_from_info(
        CommandInfo(name, callback=found, cls=Command),
        pretty_exceptions_short=False,
        rich_markup_mode=None,
    )
