"""What callers of `run` may listen to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from domyn_swarm.batch.rows import Result, Row, RowError
from domyn_swarm.batch.runner import Events


@dataclass(frozen=True, slots=True)
class SettledRow:
    """A row that has just been kept."""

    row: int  # its position in the input
    output: dict[str, Any] | None  # by output column; None: it carries an error
    error: RowError | None


@dataclass(frozen=True)
class Hooks:
    """They fire on the thread of the run's event loop, whether or not progress is shown.

    What one raises ends the run as a cancellation does, and is raised by `run`.
    """

    on_progress: Callable[[int, int | None], None] | None = None
    """Rows that are settled, and all rows; after each batch."""
    on_batch: Callable[[list[SettledRow]], None] | None = None
    on_row_error: Callable[[int, RowError], None] | None = None
    """The position of a row that was given up, and why; `retries` are used up by then."""
    on_cancel: Callable[[], None] | None = None
    """The run was told to stop before its end."""


class HookEvents(Events):
    """The same as the engine knows them."""

    def __init__(self, hooks: Hooks) -> None:
        self.stop: Callable[[], None] = lambda: None  # what ends the run when a hook fails
        self._hooks = hooks
        self._failures: list[BaseException] = []

    def raise_failure(self) -> None:
        """Raise what a hook has raised."""
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

    def on_progress(self, done: int, total: int | None) -> None:
        """See `Hooks`."""
        self._call(self._hooks.on_progress, done, total)

    def on_batch(self, results: Sequence[Result]) -> None:
        """See `Hooks`."""
        if self._hooks.on_batch is not None:
            self._call(self._hooks.on_batch, [_settled(one) for one in results])

    def on_row_error(self, row: Row, error: RowError) -> None:
        """See `Hooks`."""
        self._call(self._hooks.on_row_error, row.ordinal, error)

    def on_cancel(self) -> None:
        """See `Hooks`."""
        self._call(self._hooks.on_cancel)


def _settled(result: Result) -> SettledRow:
    value = result.value
    if value.error:
        return SettledRow(result.ordinal, None, msgspec.json.decode(value.error, type=RowError))
    return SettledRow(result.ordinal, msgspec.json.decode(value.output), None)
