"""The tree's root: it knows every command's name and purpose, and imports one when it is called.

Building a command costs a millisecond and more, and there are dozens: `--help` builds none, and
any other call the one it is about.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from domyn_swarm.cli.completion import with_shell

if TYPE_CHECKING:
    from collections.abc import Iterable


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
                self.add_command(TyperCommand(name, help=purpose, rich_markup_mode=None))

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
        return get_group_from_info(
            TyperInfo(found, name=name),
            pretty_exceptions_short=False,
            suggest_commands=True,
            rich_markup_mode=None,
        )
    return get_command_from_info(
        CommandInfo(name, callback=found), pretty_exceptions_short=False, rich_markup_mode=None
    )
