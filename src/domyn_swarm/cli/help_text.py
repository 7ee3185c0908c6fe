"""How a command's help names what it takes, in the words that people write."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperCommand

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
    """A command as Typer makes it. Its help names values by what they are, not by Python's types,
    and its purpose is not cut where commands are listed.
    """

    def __init__(self, name: str | None, **attributes: Any) -> None:
        super().__init__(name, **attributes)
        self.short_help = (self.help or "").split("\n\n")[0].replace("\n", " ")
        for param in self.params:
            param.type.name = _KINDS.get(param.type.name, param.type.name)  # as errors call it
            if param.param_type_name == "argument":
                named = param.metavar or str(param.name).upper()
                param.metavar = named.removeprefix("[").removesuffix("]").removesuffix("…")

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - Typer's
        """Run it; what it says of its words names the command whose help to read."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            error.ctx = error.ctx or ctx
            raise

    def collect_usage_pieces(self, ctx: Any) -> list[str]:  # noqa: ANN401 - Typer's
        """What stands behind the command's name in its first line."""
        pieces = [self.options_metavar] if self.options_metavar else []
        for param in self.get_params(ctx):
            if param.param_type_name == "argument":
                name = f"{param.metavar}…" if param.nargs != 1 else str(param.metavar)
                pieces.append(name if param.required else f"[{name}]")
        return pieces

    def format_options(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401 - Typer's
        """Write what each argument and option is for."""
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
    """For `<str>` and the like; choices are named as they are typed."""
    inner = shown.removesuffix("...").strip("<>[]")
    return _WORDS.get(inner, inner)
