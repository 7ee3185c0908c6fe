"""Messages, progress and questions for the user: on stderr, in UTF-8. Questions need a terminal."""

from __future__ import annotations

import codecs
import contextlib
import locale
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, TextIO

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from domyn_swarm.probing import Observation
    from domyn_swarm.swarm.snapshot import JobSnapshot


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP interrupted a block of `termination_interrupts`: ask no questions."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.exit_code = 128 + number


@contextlib.contextmanager
def termination_interrupts() -> Iterator[None]:
    """Make SIGTERM and SIGHUP interrupt the block as Ctrl-C does, so that the command can report
    what keeps running. A signal that is ignored (`nohup`) stays ignored.
    """

    def interrupt(number: int, _frame: FrameType | None) -> None:
        raise Terminated(number)

    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    changed = [number for number, handler in handlers.items() if handler is signal.SIG_DFL]
    for number in changed:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


def say(text: str) -> None:
    """Print a message on stderr. Data goes to stdout instead."""
    typer.echo(text, err=True)


def interactive() -> bool:
    """Whether the user can be asked: both stdin and stderr are a terminal."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def confirm(question: str) -> bool:
    """Ask a yes-or-no question on stderr. The default, Ctrl-C and the end of input mean no."""
    typer.echo(f"{question} [y/N] ", err=True, nl=False)
    try:
        answer = sys.stdin.readline()
    except KeyboardInterrupt:
        return False
    return answer.strip().lower() in ("y", "yes")


def ask(question: str) -> str:
    """Ask for a line on stderr; empty means no answer.

    Raises:
        KeyboardInterrupt: Ctrl-C, or the end of input.
    """
    typer.echo(f"{question}: ", err=True, nl=False)
    answer = sys.stdin.readline()
    if not answer:
        raise KeyboardInterrupt
    return answer.strip()


PhaseHook = Callable[["Observation"], None]
JobHook = Callable[["JobSnapshot"], None]


def _stderr() -> Console:
    from rich.console import Console

    return Console(stderr=True, markup=False, highlight=False, emoji=False)


@contextmanager
def phases(name: str) -> Iterator[PhaseHook]:
    """Show what a swarm waits for. Yields the hook to call with each change."""
    if not sys.stderr.isatty():
        yield lambda observation: say(f"{name}: {_words(observation)}")
        return
    with _stderr().status(f"{name}: starting") as spinner:
        yield lambda observation: spinner.update(f"{name}: {_words(observation)}")


def _words(observation: Observation) -> str:
    phase = observation.phase.name.lower()
    return f"{phase}: {observation.detail}" if observation.detail else phase


@contextmanager
def rows(*, bar: bool) -> Iterator[JobHook]:
    """Show the progress of a job. Yields the hook to call with each snapshot of it.

    Without a bar, or without a terminal, only messages (a pause and its cause) are printed, each
    once.
    """
    if not (bar and sys.stderr.isatty()):
        yield _messages_only()
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
    )

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeElapsedColumn(),
        console=_stderr(),
    ) as progress:
        task = progress.add_task("waiting", total=None, speed="")

        def update(job: JobSnapshot) -> None:
            progress.update(
                task,
                description=job.message or job.status.value,
                total=job.rows_total,
                completed=job.rows_done,
                speed=_speed(job),
            )

        yield update


def _messages_only() -> JobHook:
    last: str | None = None

    def update(job: JobSnapshot) -> None:
        nonlocal last
        if (
            job.message and job.message != last and not job.status.final
        ):  # the caller reports the end
            say(f"{job.job_id}: {job.message}")
        last = job.message

    return update


def _speed(job: JobSnapshot) -> str:
    parts = [f"{job.rows_failed} failed"] if job.rows_failed else []
    if job.rows_per_s is not None:
        parts.append(f"{job.rows_per_s:.1f} rows/s")
    if job.time_left is not None:
        parts.append(f"{job.time_left} left")
    return ", ".join(parts)


_VARIABLE = "PYTHONUTF8"
_SHOWS_UTF8 = {"utf-8", "ascii"}  # a terminal with the locale C usually shows UTF-8


def use_utf8() -> None:
    """Restart this program in Python's UTF-8 mode, unless file names are UTF-8 already.

    The mode can only be chosen at the start of Python. Output to a terminal whose locale has
    another encoding uses that encoding.
    """
    if sys.getfilesystemencoding() != "utf-8" and sys.executable:
        os.environ[_VARIABLE] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - this program
    if sys.flags.utf8_mode:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None and stream.isatty():
                _use_locale_encoding(stream)


def _use_locale_encoding(stream: TextIO) -> None:
    with suppress(locale.Error, LookupError, AttributeError):
        locale.setlocale(locale.LC_CTYPE, "")
        encoding = codecs.lookup(locale.nl_langinfo(locale.CODESET)).name
        if encoding not in _SHOWS_UTF8:
            stream.reconfigure(encoding=encoding, errors="replace")  # type: ignore[attr-defined]
