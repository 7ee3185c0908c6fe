"""Every command of the program, for tests that look at all of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from domyn_swarm.cli.app import COMMANDS
from domyn_swarm.cli.command_tree import LazyGroup, build


def commands() -> dict[tuple[str, ...], Any]:
    """The words that call a command, and what they call; groups are left out."""
    found: dict[tuple[str, ...], Any] = {}
    for entry in COMMANDS:
        found.update(_walk((entry.name,), build(entry.name, entry.place)))
    return found


def _walk(words: tuple[str, ...], command: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    if not isinstance(command, LazyGroup):
        yield words, command
        return
    for name in command.commands:
        yield from _walk((*words, name), command.built(name))
