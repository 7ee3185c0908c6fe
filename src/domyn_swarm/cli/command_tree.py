"""The root of the command tree: it knows every command's name and purpose, imports a command when
it is called, and names values in the words that users write.
"""

from __future__ import annotations

import sys
from importlib import import_module
from inspect import cleandoc
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from domyn_swarm.cli.completion import with_shell
from domyn_swarm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_KINDS = {
    "int": "whole number",
    "int range": "whole number",
    "float": "number",
    "float range": "number",
}
_WORDS = {
    "str": "TEXT",
    "whole number": "N",
    "number": "X",
    "path": "PATH",
}


class Command(TyperCommand):
    """A command as Typer builds it, but its help names values by their meaning, not by Python's
    types, and its purpose is not cut in lists of commands.
    """

    def __init__(self, name: str | None, **attributes: Any) -> None:
        super().__init__(name, **attributes)
        self.short_help = (self.help or "").split("\n\n")[0].replace("\n", " ")
        for param in self.params:
            # the full name, as in errors
            param.type.name = _KINDS.get(param.type.name, param.type.name)
            if param.param_type_name == "argument":
                named = param.metavar or str(param.name).upper()
                param.metavar = named.removeprefix("[").removesuffix("]").removesuffix("…")

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - Typer's
        """Parse its words; an error names the command whose help to read."""
        try:
            return super().parse_args(ctx, args)
        except _UsageError as error:
            error.ctx = error.ctx or ctx
            raise

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - Typer's
        """Run it; an error about its words names the command whose help to read."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            error.ctx = error.ctx or ctx
            raise

    def collect_usage_pieces(self, ctx: Any) -> list[str]:  # noqa: ANN401 - Typer's
        """The part of the usage line after the command's name."""
        pieces = [self.options_metavar] if self.options_metavar else []
        for param in self.get_params(ctx):
            if param.param_type_name == "argument":
                name = f"{param.metavar}…" if param.nargs != 1 else str(param.metavar)
                pieces.append(name if param.required else f"[{name}]")
        return pieces

    def format_options(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401 - Typer's
        """Write the purpose of each argument and option."""
        records: dict[str, list[tuple[str, str]]] = {"argument": [], "option": []}
        params: list[Any] = self.get_params(ctx)
        for param in params:
            found = param.get_help_record(ctx)
            if found is None:
                continue
            name, text = found
            if param.param_type_name == "argument":
                name = str(param.metavar)
            elif param.metavar is None:
                shown = param.make_metavar(ctx)
                name = name.replace(shown, _word(shown))
            records[param.param_type_name].append((name, text))
        for kind, title in (("argument", "Arguments"), ("option", "Options")):
            if records[kind]:
                with formatter.section(title):
                    formatter.write_dl(records[kind])


def _word(shown: str) -> str:
    """The word for `<str>` and other types; choices are shown as they are typed."""
    inner = shown.removesuffix("...").strip("<>[]")
    return _WORDS.get(inner, inner)


_UsageError: Any = typer.BadParameter.__base__  # of Typer's private click


class Entry(NamedTuple):
    """A command of a group, or a group of commands."""

    name: str
    # "module:object": a function, or a `typer.Typer`; or the object
    place: str | Callable[..., Any]
    purpose: str  # the first line of the object's help: a test compares


class LazyGroup(TyperGroup):
    """A group that lists commands by their entries, and builds one when it is called."""

    entries: ClassVar[Mapping[str, Entry]] = {}

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for entry in self.entries.values():
            self.add_command(Command(entry.name, help=entry.purpose, rich_markup_mode=None))

    def built(self, name: str) -> Any:  # noqa: ANN401 - a command of Typer's private click
        """A command that is ready to run."""
        return build(name, self.entries[name].place)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # noqa: ANN401 - Typer's
        """The command that the words name."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command if name not in self.entries else self.built(str(name)), rest


class Root(LazyGroup):
    """The whole program: errors in its words become errors of ours."""

    def main(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401 - Typer's
        """Run, and end with the exit code.

        Raises:
            ConfigError: the words are no valid command; the message names the mistake.
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
    command = get_command_from_info(
        CommandInfo(name, callback=found, cls=Command),
        pretty_exceptions_short=False,
        rich_markup_mode=None,
    )
    for parameter in command.params:
        if hasattr(parameter.type, "_describe_range"):
            _refuse_nan(parameter.type)
    return command


def _refuse_nan(kind: Any) -> None:  # noqa: ANN401 - a range, as Typer's copy of Click has it
    """NaN passes every comparison with a range."""
    converted = kind.convert

    def convert(value: object, *context: object) -> object:
        number = converted(value, *context)
        if number != number:  # noqa: PLR0124 - NaN alone
            kind.fail(f"{value} is not in the range {kind._describe_range()}.", *context)
        return number

    kind.convert = convert


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
