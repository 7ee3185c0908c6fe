"""Talking to the person: messages go to stderr, and only a terminal is asked questions."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from types import FrameType

import typer


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP came where Ctrl-C is heeded: nobody is there to be asked."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.exit_code = 128 + number


@contextlib.contextmanager
def termination_interrupts() -> Iterator[None]:
    """Have SIGTERM and SIGHUP interrupt the block as Ctrl-C does, so that what it leaves behind is
    said; one that whoever started us has ignored (`nohup`) stays ignored.
    """

    def interrupt(number: int, _frame: FrameType | None) -> None:
        raise Terminated(number)

    usual = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    heeded = [number for number, handler in usual.items() if handler is signal.SIG_DFL]
    for number in heeded:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in heeded:
            signal.signal(number, signal.SIG_DFL)


def say(text: str) -> None:
    """Print a line for the person at the terminal; never data."""
    typer.echo(text, err=True)


def interactive() -> bool:
    """Whether somebody can be asked: both stdin and stderr are a terminal."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def confirm(question: str) -> bool:
    """Ask on stderr, yes or no; no is the default, and what Ctrl-C and the end of input mean."""
    typer.echo(f"{question} [y/N] ", err=True, nl=False)
    try:
        answer = sys.stdin.readline()
    except KeyboardInterrupt:
        return False
    return answer.strip().lower() in ("y", "yes")


def ask(question: str) -> str:
    """Ask on stderr for a line; empty means no answer. Ctrl-C and the end of input interrupt."""
    typer.echo(f"{question}: ", err=True, nl=False)
    answer = sys.stdin.readline()
    if not answer:
        raise KeyboardInterrupt
    return answer.strip()
