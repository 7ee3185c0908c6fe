"""Talking to the person: messages go to stderr, and only a terminal is asked questions."""

from __future__ import annotations

import sys

import typer


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
