"""`--watch`: looks again and again, until what is watched has ended or Ctrl-C.

A terminal shows the tables, live. In a pipe each change is a line of text, and with `--json` a line
of JSON: the record as the command prints it without `--watch`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Generic, TypeVar

import typer

from domyn_swarm.cli.options import Format
from domyn_swarm.cli.rendering import collected, plain, print_line

if TYPE_CHECKING:
    from domyn_swarm.record import Record

_T = TypeVar("_T", bound="Record")
_AGES = frozenset({"known_at", "last_seen_s", "figures_age_s", "eta_s", "rows_per_s"})
_AGES |= {"requests_running", "requests_waiting"}

WatchOption = Annotated[
    bool, typer.Option("--watch", "-w", help="Go on showing it as it changes, until Ctrl-C.")
]
EveryOption = Annotated[
    float,
    typer.Option("--every", min=0.2, metavar="S", help="With --watch: seconds in between."),
]


@dataclass(frozen=True)
class Watch(Generic[_T]):
    """What is looked at, and how it looks."""

    look: Callable[[], _T]
    show: Callable[[_T], None]  # as tables
    line: Callable[[_T], str]  # as one line
    ended: Callable[[_T], bool]  # whether nothing will change any more
    every_s: float

    def run(self, output: Format) -> None:
        """Show every change until the end; return then.

        Raises:
            SwarmError: it cannot be looked at.
        """
        if output is Format.YAML:
            raise typer.BadParameter("--watch goes with tables and with --json.")
        if output is Format.TABLE and sys.stdout.isatty():
            self._live()
        else:
            self._lines(as_json=output is Format.JSON)

    def _live(self) -> None:
        from rich.console import Console, Group
        from rich.live import Live

        console = Console(markup=False, highlight=False, emoji=False)
        with Live(console=console, auto_refresh=False) as live:
            while True:
                seen = self.look()
                with collected() as tables:
                    self.show(seen)
                live.update(Group(*tables), refresh=True)
                if self.ended(seen):
                    return
                time.sleep(self.every_s)

    def _lines(self, *, as_json: bool) -> None:
        before: object = None
        while True:
            seen = self.look()
            now: object = _lasting(plain(seen)) if as_json else self.line(seen)
            if now != before:
                if as_json:
                    print_line(seen)
                else:
                    typer.echo(self.line(seen))
                    sys.stdout.flush()
            before = now
            if self.ended(seen):
                return
            time.sleep(self.every_s)


def _lasting(value: object) -> object:
    """A record without what differs at every look."""
    if isinstance(value, dict):
        return {name: _lasting(one) for name, one in value.items() if name not in _AGES}
    return [_lasting(one) for one in value] if isinstance(value, list) else value
