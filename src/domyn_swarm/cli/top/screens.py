"""What opens over the live view: a question, a number to type, a log."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen, Screen
from textual.validation import Integer
from textual.widgets import Footer, Input, Label, RichLog

from domyn_swarm.errors import SwarmError

_LOG_EVERY_S = 1.0
_MOST_REPLICAS = 10_000


class Question(ModalScreen[bool]):
    """Yes or no; anything but `y` is no."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "Yes"),
        Binding("n,escape,q", "answer(False)", "No"),
    ]

    def __init__(self, question: str) -> None:
        super().__init__()
        self._question = question

    def compose(self) -> ComposeResult:
        """One line and the keys."""
        with Vertical(classes="box"):
            yield Label(self._question)
            yield Label("y: yes   n: no", classes="dim")

    def action_answer(self, yes: bool) -> None:
        """Close with the answer."""
        self.dismiss(yes)


class AskReplicas(ModalScreen[int | None]):
    """How many replicas; None when it was left."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "leave", "Back")]

    def __init__(self, now: int) -> None:
        super().__init__()
        self._now = now

    def compose(self) -> ComposeResult:
        """A field with the present number."""
        with Vertical(classes="box"):
            yield Label(f"Replicas ({self._now} now); Enter scales, Escape goes back")
            yield Input(
                str(self._now), type="integer", validators=[Integer(1, _MOST_REPLICAS)], id="count"
            )

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Take a valid number; another one is shown as wrong and stays."""
        if event.validation_result is None or event.validation_result.is_valid:
            self.dismiss(int(event.value))

    def action_leave(self) -> None:
        """Close without a number."""
        self.dismiss(None)


class LogScreen(Screen[None]):
    """The end of a log, read again about once a second."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,l", "app.pop_screen", "Back")]

    def __init__(self, title: str, read: Callable[[], list[str]]) -> None:
        super().__init__()
        self._title = title
        self._read = read
        self._shown: list[str] = []

    def compose(self) -> ComposeResult:
        """The title, the log, the keys."""
        yield Label(self._title, classes="title")
        yield RichLog(wrap=True, markup=False, highlight=False, max_lines=1000)
        yield Footer()

    def on_mount(self) -> None:
        """Begin to read."""
        self.load()
        self.set_interval(_LOG_EVERY_S, self.load)

    @work(thread=True, exclusive=True)
    def load(self) -> None:
        """Read on a thread of its own: a file system may be slow."""
        try:
            lines = self._read()
        except SwarmError as error:
            lines = [str(error)]
        self.app.call_from_thread(self._show, lines)

    def _show(self, lines: list[str]) -> None:
        if lines == self._shown:
            return
        log = self.query_one(RichLog)
        if lines[: len(self._shown)] != self._shown:
            log.clear()
            self._shown = []
        for line in lines[len(self._shown) :]:
            log.write(Text.from_ansi(line))
        self._shown = lines
