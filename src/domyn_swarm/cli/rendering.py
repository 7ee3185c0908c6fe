"""How data looks: tables for people, JSON and YAML for programs.

JSON and YAML are the record itself, with its `schema_version`; tables may change at any time. They
are drawn by Rich on a terminal; in a file or a pipe they are lines of aligned columns, which cost a
tenth of it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import TYPE_CHECKING, Any

import typer

from domyn_swarm.cli.options import Format

if TYPE_CHECKING:
    from rich.table import Table

    from domyn_swarm.model import Record

_collected: ContextVar[list[Table] | None] = ContextVar("collected", default=None)

_COLOURS = {
    **dict.fromkeys(("ready", "succeeded", "ok"), "green"),
    **dict.fromkeys(("starting", "launching", "running", "pending", "queued"), "yellow"),
    "warning": "yellow",
    **dict.fromkeys(("restarting", "draining", "partial", "stopping"), "yellow"),
    **dict.fromkeys(("failed", "unhealthy", "timed_out", "out_of_memory"), "red"),
    **dict.fromkeys(("preempted", "lost_node"), "red"),
}


def colour(state: str) -> str:
    """The colour of a state, a phase or a verdict, with a reason or without; nothing for other
    words.
    """
    return _COLOURS.get(state.partition(":")[0], "")


class State(str):
    """A word that a terminal shows in the colour of what it means."""

    __slots__ = ()


def print_record(record: Record, output: Format) -> None:
    """Print a record as JSON or YAML."""
    print_document(plain(record), output)


def print_document(data: dict[str, Any], output: Format) -> None:
    """Print any other document so."""
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
def collected() -> Iterator[list[Table]]:
    """Collect the tables that are drawn meanwhile instead of printing them; for live displays."""
    tables: list[Table] = []
    before = _collected.set(tables)
    try:
        yield tables
    finally:
        _collected.reset(before)


def plain(record: Record) -> dict[str, Any]:
    """A record as JSON has it."""
    return record.model_dump(mode="json")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table with a heading for each column."""
    lines = list(rows)
    if sys.stdout.isatty():
        _draw(_rich_table(columns, lines))
    else:
        _print_aligned([columns, *lines])


def print_pairs(pairs: Iterable[tuple[str, str]]) -> None:
    """Print named values, a line each."""
    lines = list(pairs)
    if sys.stdout.isatty():
        _draw(_rich_pairs(lines))
    else:
        _print_aligned(lines)


def moment(at: datetime) -> str:
    """A time as people here read it."""
    return f"{at.astimezone():%Y-%m-%d %H:%M}"


def _print_aligned(lines: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest value; what breaks a line in one becomes a space."""
    cells = [[" ".join(value.split("\n")) for value in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        padded = (value.ljust(width) for value, width in zip(line, widths, strict=True))
        typer.echo("  ".join(padded).rstrip())


def _rich_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        cells = (
            Text(value, style=colour(value)) if isinstance(value, State) else value for value in row
        )
        table.add_row(*cells)
    return table


def _rich_pairs(pairs: Iterable[tuple[str, str]]) -> Table:
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    for name, value in pairs:
        table.add_row(name, value)
    return table


def _draw(table: Table) -> None:
    collecting = _collected.get()
    if collecting is not None:
        collecting.append(table)
        return
    from rich.console import Console

    Console(markup=False, highlight=False, emoji=False).print(table)
