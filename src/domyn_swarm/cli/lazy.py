"""The tree's root: it knows every command's name and purpose, and imports one when it is called.

Building a command costs a millisecond and more, and there are dozens: `--help` builds none, and
any other call the one it is about.
"""

from __future__ import annotations

import sys
from importlib import import_module
from inspect import cleandoc
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import typer
from typer.core import TyperGroup

from domyn_swarm.cli.completion import with_shell
from domyn_swarm.cli.help_text import Command
from domyn_swarm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping


_UsageError: Any = typer.BadParameter.__base__  # of Typer's private click


class Entry(NamedTuple):
    """A command of a group, or a group of commands."""

    name: str
    place: str | Callable[..., Any]  # "module:object": a function, or a `typer.Typer`; or that
    purpose: str  # the first line of the object's help: a test compares


class LazyGroup(TyperGroup):
    """Lists commands by their entries, and builds the one that is called."""

    entries: ClassVar[Mapping[str, Entry]] = {}

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for entry in self.entries.values():
            self.add_command(Command(entry.name, help=entry.purpose, rich_markup_mode=None))

    def built(self, name: str) -> Any:  # noqa: ANN401 - a command of Typer's private click
        """A command that is ready to run."""
        return build(name, self.entries[name].place)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # noqa: ANN401 - Typer's
        """The command that the words call."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command if name not in self.entries else self.built(str(name)), rest


class Root(LazyGroup):
    """The whole program: what is wrong with its words is an error of ours."""

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
        """Read the root's own options."""
        return super().parse_args(ctx, with_shell(args))


def lazy(kind: type[LazyGroup], entries: Iterable[Entry]) -> type[LazyGroup]:
    """The class of a group with these commands, in this order."""
    return type(kind.__name__, (kind,), {"entries": {entry.name: entry for entry in entries}})


def build(name: str, place: str | Callable[..., Any]) -> Any:  # noqa: ANN401 - as above
    """Import a command and make it ready to run."""
    from typer.main import get_command_from_info, get_group_from_info
    from typer.models import CommandInfo, TyperInfo

    found: Any = place
    if isinstance(place, str):
        module, _, attribute = place.partition(":")
        found = getattr(import_module(module), attribute)
    if isinstance(found, typer.Typer):
        return get_group_from_info(
            TyperInfo(_unbuilt(found), name=name),
            pretty_exceptions_short=False,
            suggest_commands=True,
            rich_markup_mode=None,
        )
    return get_command_from_info(
        CommandInfo(name, callback=found, cls=Command),
        pretty_exceptions_short=False,
        rich_markup_mode=None,
    )


def _unbuilt(group: typer.Typer) -> typer.Typer:
    """A group whose commands are built when they are called."""
    entries = []
    for info in group.registered_commands:
        function: Any = info.callback
        name = info.name or function.__name__.replace("_", "-")
        entries.append(Entry(name, function, cleandoc(function.__doc__)))
    own = group.info.cls
    kind = own if isinstance(own, type) and issubclass(own, LazyGroup) else LazyGroup
    cls = lazy(kind, [*kind.entries.values(), *entries])
    return typer.Typer(cls=cls, help=group.info.help, no_args_is_help=True)
