"""How data is printed: tables for people, JSON and YAML for programs.

JSON and YAML are the record itself, with its `schema_version`; tables may change at any time. They
are drawn by Rich on a terminal; in a file or a pipe they are lines of aligned columns, at a tenth
of the cost. On a narrow terminal, values that may be copied (an id, a URL, a path) are never
broken; less important columns are left out, and named.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from domyn_swarm.cli.console import say
from domyn_swarm.cli.shared_options import Format

CELL_CHARACTERS = 200  # of a row's value; --export and --json have all of it

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

    from domyn_swarm.model import Record

_collected: ContextVar[list[RenderableType] | None] = ContextVar("collected", default=None)
_GAP = 2  # between columns
_TEXT_CHARACTERS = 20  # text is readable from this width on

_COLOURS = {
    **dict.fromkeys(("ready", "succeeded", "ok"), "green"),
    **dict.fromkeys(("starting", "launching", "running", "pending", "queued"), "yellow"),
    "warning": "yellow",
    **dict.fromkeys(("restarting", "draining", "partial", "stopping"), "yellow"),
    **dict.fromkeys(("failed", "unhealthy", "timed_out", "out_of_memory"), "red"),
    **dict.fromkeys(("preempted", "lost_node"), "red"),
}


def colour(state: str) -> str:
    """The colour of a state, a phase or a verdict, with a reason or without; empty for other
    text.
    """
    return _COLOURS.get(state.partition(":")[0], "")


class State(str):
    """A word that a terminal shows in the colour of its meaning."""

    __slots__ = ()


class Column(NamedTuple):
    """A column of a table, and how it behaves on a narrow terminal."""

    name: str
    whole: bool = False  # its values are never broken, so that they can be copied
    spare: int = 0  # on a narrow terminal the columns with the highest value are left out first
    least: int = _TEXT_CHARACTERS  # a shortened value keeps at least this width


def print_record(record: Record, output: Format) -> None:
    """Print a record as JSON or YAML."""
    print_document(plain(record), output)


def print_document(data: dict[str, Any], output: Format) -> None:
    """Print any other document in the same way."""
    if output is Format.JSON:
        typer.echo(json.dumps(data, indent=2, ensure_ascii=False))
        return
    import yaml

    typer.echo(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), nl=False)


def print_line(record: Record) -> None:
    """Print a record as one line of JSON."""
    typer.echo(json.dumps(plain(record), ensure_ascii=False))
    sys.stdout.flush()


@contextmanager
def collected() -> Iterator[list[RenderableType]]:
    """Collect the tables drawn in the body instead of printing them; for live displays."""
    tables: list[RenderableType] = []
    before = _collected.set(tables)
    try:
        yield tables
    finally:
        _collected.reset(before)


def plain(record: Record) -> dict[str, Any]:
    """A record as JSON has it."""
    return record.model_dump(mode="json")


def print_table(columns: Sequence[str | Column], rows: Iterable[Sequence[str]]) -> None:
    """Print a table with a heading for each column."""
    lines = list(rows)
    known = [Column(one) if isinstance(one, str) else one for one in columns]
    if sys.stdout.isatty():
        _draw(_rich_table(known, lines, _console().width))
    else:
        _print_aligned([[one.name for one in known], *lines])


def print_pairs(pairs: Iterable[tuple[str, str]]) -> None:
    """Print named values, a line each."""
    lines = list(pairs)
    if not sys.stdout.isatty():
        _print_aligned(lines)
    elif _collected.get() is not None:
        _draw(_rich_pairs(lines))
    else:
        _print_wrapped(lines)


def print_checks(checks: Iterable[tuple[str, str, str, str]]) -> None:
    """Print checks: name, result, finding, and the remedy if there is one. On a terminal the remedy
    is below its finding, and lines are broken at spaces only.
    """
    known = list(checks)
    if not sys.stdout.isatty():
        _print_aligned([("check", "", "found", "what to do"), *known])
        return
    from rich.text import Text

    console = _console()
    names, states = (max((len(one[at]) for one in known), default=0) + _GAP for at in (0, 1))
    for name, state, found, remedy in known:
        text = f"{found}\n→ {remedy}" if remedy else found
        first, *others = _broken(text, console.width - names - states)
        begin = Text.assemble((name.ljust(names), "dim"), (state.ljust(states), colour(state)))
        console.print(begin + first, soft_wrap=True)
        for line in others:
            console.print(" " * (names + states) + line, soft_wrap=True)


def print_gap() -> None:
    """Print an empty line between two parts of the output."""
    collecting = _collected.get()
    if collecting is None:
        typer.echo()
    else:
        collecting.append("")


def print_note(text: str) -> None:
    """Print a remark for people: to stderr, or into a live display."""
    collecting = _collected.get()
    if collecting is None:
        say(text)
    else:
        collecting.append(text)


def moment(at: datetime) -> str:
    """A time in the reader's time zone."""
    return f"{at.astimezone():%Y-%m-%d %H:%M}"


def age(age_s: float) -> str:
    """An age in one unit: `36 s`, `12 min`, `5 h`, `3 d`."""
    for size_s, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if age_s >= size_s:
            return f"{int(age_s / size_s)} {unit}"
    return f"{max(0, int(age_s))} s"


def figure(value: float, digits: int = 3) -> str:
    """As many digits as count, and never an exponent."""
    rounded = float(f"{value:.{digits}g}")
    return f"{rounded:,.0f}" if rounded >= 100 else f"{rounded:g}"


def _print_aligned(lines: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest value; line breaks in a value become spaces."""
    cells = [[" ".join(value.split("\n")) for value in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        padded = (value.ljust(width) for value, width in zip(line, widths, strict=True))
        typer.echo("  ".join(padded).rstrip())


def _print_wrapped(pairs: Sequence[tuple[str, str]]) -> None:
    """Values are broken at spaces only. A word that is wider than the terminal, such as a path, is
    left to the terminal, so that it can be copied.
    """
    from rich.text import Text

    console = _console()
    indent = max((len(name) for name, _ in pairs), default=0) + _GAP
    for name, value in pairs:
        first, *others = _broken(value, console.width - indent)
        console.print(Text.assemble((name.ljust(indent), "dim"), first), soft_wrap=True)
        for line in others:
            console.print(" " * indent + line, soft_wrap=True)


def _broken(value: str, width: int) -> list[str]:
    """A value's lines, at least one. A word that is wider stays whole."""
    room = max(_TEXT_CHARACTERS, width)
    lines = [
        line
        for part in value.split("\n")
        for line in textwrap.wrap(part, room, break_long_words=False, break_on_hyphens=False)
    ]
    return lines or [""]


def _rich_table(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> Table:
    from rich.table import Table
    from rich.text import Text

    shown = _with_room(columns, rows, width)
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    for at in shown:
        column = columns[at]
        table.add_column(column.name, no_wrap=column.whole, overflow="fold")
    for row in rows:
        table.add_row(*[Text(row[at], style=_style(row[at])) for at in shown])
    left_out = [column.name for at, column in enumerate(columns) if at not in shown]
    if left_out:
        table.caption = f"not shown in {width} columns: {', '.join(left_out)}"
        table.caption_justify = "left"
    return table


def _style(value: str) -> str:
    return colour(value.partition(" ")[0].rstrip(":")) if isinstance(value, State) else ""


def _with_room(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int
) -> Sequence[int]:
    """The columns that fit a terminal: empty ones are left out first, and the width that one leaves
    is given to others.
    """
    widest = [
        max(len(text) for text in (column.name, *(row[at] for row in rows)))
        for at, column in enumerate(columns)
    ]
    least = [
        wide if column.whole else min(wide, column.least)
        for column, wide in zip(columns, widest, strict=True)
    ]
    says = [any(row[at] not in ("", "-") for row in rows) for at in range(len(columns))]

    def fit(chosen: Collection[int]) -> bool:
        return sum(least[at] for at in chosen) + _GAP * (len(chosen) - 1) <= width

    shown = set(range(len(columns)))
    going = sorted(shown, key=lambda at: (says[at], -columns[at].spare))
    for at in going:
        if columns[at].spare and not fit(shown):
            shown.remove(at)
    for at in reversed(going):
        if fit({*shown, at}):
            shown.add(at)
    return sorted(shown)


def _rich_pairs(pairs: Iterable[tuple[str, str]]) -> Table:
    from rich.table import Table

    table = Table.grid(padding=(0, _GAP))
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    for name, value in pairs:
        table.add_row(name, value)
    return table


def _draw(table: Table) -> None:
    collecting = _collected.get()
    if collecting is not None:
        collecting.append(table)
    else:
        _console().print(table)


def _console() -> Console:
    from rich.console import Console

    return Console(markup=False, highlight=False, emoji=False)


def json_text(value: Any) -> str:  # noqa: ANN401 - JSON
    """A value as one line of JSON."""
    return json.dumps(value, ensure_ascii=False)


def cell_text(value: Any, most: int = CELL_CHARACTERS) -> str:  # noqa: ANN401 - JSON
    """A row's value in a table: one line, cut where it is long."""
    text = value if isinstance(value, str) else json_text(value)
    text = "-" if value is None else " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"
