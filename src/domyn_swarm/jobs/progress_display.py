"""The callbacks and the progress display of `run`: a bar in a notebook, a line in a terminal; in a
log only messages.
"""

from __future__ import annotations

import contextlib
import html
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Protocol

import msgspec
from typing_extensions import override

from domyn_swarm.batch.outcomes.row_outcomes import Result, Row, RowError
from domyn_swarm.batch.run.runner import Events
from domyn_swarm.model import ReplyVerdict, TimeLeft


@dataclass(frozen=True, slots=True)
class SettledRow:
    """A row that was just kept."""

    row: int  # its position in the input
    output: dict[str, Any] | None  # by output column; None: it has an error
    error: RowError | None


@dataclass(frozen=True)
class Hooks:
    """Called on the thread of the run's event loop, whether or not progress is shown.

    An exception of a hook ends the run as a cancellation does, and is raised by `run`.
    """

    on_progress: Callable[[int, int | None], None] | None = None
    """The number of settled rows, and of all rows; after each batch."""
    on_batch: Callable[[list[SettledRow]], None] | None = None
    on_row_error: Callable[[int, RowError], None] | None = None
    """The position of a row that failed permanently, and the error; its retries are used up."""
    on_cancel: Callable[[], None] | None = None
    """The run was stopped before its end."""


class HookEvents(Events):
    """The engine's callbacks, passed on to the hooks."""

    def __init__(self, hooks: Hooks) -> None:
        self.stop: Callable[[], None] = lambda: None  # ends the run when a hook fails
        self._hooks = hooks
        self._failures: list[BaseException] = []

    def raise_failure(self) -> None:
        """Raise the exception of a hook, if any."""
        if self._failures:
            raise self._failures[0]

    def _call(self, hook: Callable[..., None] | None, *arguments: Any) -> None:
        if hook is None or self._failures:
            return
        try:
            hook(*arguments)
        except Exception as error:  # noqa: BLE001 - the border to users' code: `run` raises it
            self._failures.append(error)
            self.stop()

    @override
    def on_progress(self, done: int, total: int | None) -> None:
        self._call(self._hooks.on_progress, done, total)

    @override
    def on_batch(self, results: Sequence[Result]) -> None:
        if self._hooks.on_batch is not None:
            self._call(self._hooks.on_batch, [_settled(one) for one in results])

    @override
    def on_row_error(self, row: Row, error: RowError) -> None:
        self._call(self._hooks.on_row_error, row.ordinal, error)

    @override
    def on_cancel(self) -> None:
        self._call(self._hooks.on_cancel)


def _settled(result: Result) -> SettledRow:
    value = result.value
    if value.error:
        return SettledRow(result.ordinal, None, msgspec.json.decode(value.error, type=RowError))
    return SettledRow(result.ordinal, msgspec.json.decode(value.output), None)


@dataclass(frozen=True)
class Progress:
    """The progress of a job at one moment."""

    name: str
    done: int  # settled rows, including failed ones and those of earlier runs
    total: int | None  # None: not known yet
    resumed: int = 0  # of the settled rows: before this run
    failed: int = 0
    verdicts: Mapping[ReplyVerdict, int] = field(default_factory=dict)
    rows_per_s: float | None = None
    left: TimeLeft | None = None
    remark: str | None = None  # what the run waits for, …

    @property
    def notable(self) -> bool:
        """Whether some rows did not come out as requested."""
        return bool(self.failed or self._noted)

    @property
    def _noted(self) -> list[ReplyVerdict]:
        return sorted({*self.verdicts} - {ReplyVerdict.COMPLETE, ReplyVerdict.ERROR})

    @override
    def __str__(self) -> str:
        parts = [f"{self.name}: {self.done}/{'?' if self.total is None else self.total} rows"]
        if self.resumed:
            parts[0] += f" ({self.done - self.resumed} asked now, {self.resumed} before)"
        if self.failed:
            parts.append(f"{self.failed} failed")
        parts += [f"{self.verdicts[one]} {one.value}" for one in self._noted]
        if self.rows_per_s:
            parts.append(f"{self.rows_per_s:.1f} rows/s")
        if self.left is not None and self.done < (self.total or 0):
            parts.append(f"{self.left} left")
        return ", ".join([*parts, *([self.remark] if self.remark else [])])


class ProgressDisplay(Protocol):
    """Where progress is shown. Errors of the display never end a run."""

    def draw(self, progress: Progress) -> None:
        """Show the progress in place of the previous display."""

    def notice(self, text: str) -> None:
        """Show a message that is not progress."""

    def end(self, progress: Progress | None) -> None:
        """Show the last state; None: remove the display, the caller shows the end."""


def progress_display(*, shown: bool) -> ProgressDisplay:
    """The display for this process's output; silent if it is not to be shown."""
    if not shown:
        return _Silent()
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if getattr(shell, "kernel", None) is not None:
        return _NotebookBar()
    return _TerminalLine() if sys.stderr.isatty() else _Log()


class _Silent(ProgressDisplay):
    @override
    def draw(self, progress: Progress) -> None:
        pass

    @override
    def notice(self, text: str) -> None:
        pass

    @override
    def end(self, progress: Progress | None) -> None:
        pass


class _Log(_Silent):
    """A file or a pipe, which is read later: only lasting messages are written."""

    @override
    def notice(self, text: str) -> None:
        _print(text + "\n")

    @override
    def end(self, progress: Progress | None) -> None:
        if progress is not None and progress.notable:
            _print(f"{progress}\n")


class _TerminalLine(_Log):
    """One line, overwritten."""

    def __init__(self) -> None:
        self._drawn = 0  # characters of the present line

    @override
    def draw(self, progress: Progress) -> None:
        text = str(progress)
        _print("\r" + text.ljust(self._drawn))
        self._drawn = len(text)

    @override
    def notice(self, text: str) -> None:
        self._clear()
        super().notice(text)

    @override
    def end(self, progress: Progress | None) -> None:
        self._clear()
        if progress is not None:
            _print(f"{progress}\n")

    def _clear(self) -> None:
        if self._drawn:
            _print("\r" + " " * self._drawn + "\r")
            self._drawn = 0


class _NotebookBar(ProgressDisplay):
    """An output of the cell that is replaced: Rich's display for notebooks is empty if `ipywidgets`
    is missing.
    """

    def __init__(self) -> None:
        self._display = import_module("IPython.display").display
        self._bar = self._display(_Html("", ""), display_id=True)

    @override
    def draw(self, progress: Progress) -> None:
        bar = "" if progress.total is None else f' value="{progress.done}" max="{progress.total}"'
        self._show(_Html(str(progress), f'<progress{bar} style="width: 16em"></progress> '))

    @override
    def notice(self, text: str) -> None:
        self._display(_Html(text, ""))

    @override
    def end(self, progress: Progress | None) -> None:
        self._show(_Html("", "")) if progress is None else self.draw(progress)

    def _show(self, what: _Html) -> None:
        if self._bar is not None:
            self._bar.update(what)


class _Html:
    """Text, with an element before it where HTML is shown."""

    def __init__(self, text: str, before: str) -> None:
        self._text, self._before = text, before

    def _repr_mimebundle_(self, **_formats: Any) -> dict[str, str]:
        return {"text/plain": self._text, "text/html": self._before + html.escape(self._text)}


def _print(text: str) -> None:
    """Print to stderr. A closed terminal, or a log on a full disk, does not end a run."""
    with contextlib.suppress(OSError):
        sys.stderr.write(text)
        sys.stderr.flush()
