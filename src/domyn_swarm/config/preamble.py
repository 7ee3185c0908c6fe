"""The user's `#SBATCH` lines: which options they contain, and which domyn-swarm sets itself.

Of two lines with the same option sbatch uses the last one, and the user's lines follow ours.
"""

from __future__ import annotations

import re
import shlex

# Needed to find our jobs again, to warn them before their end, and to requeue them.
_OURS = (
    *("array", "job-name", "open-mode", "output", "signal"),
    *("nodes", "ntasks", "ntasks-per-node", "requeue", "no-requeue"),
)
_KEYS = {
    "account": "account",
    "comment": "comment",
    "exclude": "exclude_nodes",
    "nodelist": "node_list",
    "partition": "partition",
    "qos": "qos",
    "time": "time_limit",
}
_SHORT = {
    "A": "account",
    "J": "job-name",
    "N": "nodes",
    "a": "array",
    "n": "ntasks",
    "o": "output",
    "p": "partition",
    "q": "qos",
    "t": "time",
    "w": "nodelist",
    "x": "exclude",
}
_GPUS = re.compile(r"-G|--gres|--gpu|--(?:cpus|mem|ntasks)-per-g|.*gres[:/]gpu")


def options_of(line: str) -> list[str]:
    """The words of a line, with or without `#SBATCH`.

    Raises:
        ValueError: the line has a line break, unbalanced quotes, or no options.
    """
    if not line.isprintable():
        raise ValueError(f"{line!r} has a line break or a control character: write one item a line")
    try:
        words = shlex.split(line.removeprefix("#SBATCH"), comments=True)
    except ValueError:
        words = []
    if not words or not words[0].startswith("-"):
        raise ValueError(f"{line!r} is not a line of options such as '#SBATCH --reservation=x'")
    return words


def check_line(line: str) -> str:
    """The line, unchanged, if it may be in the preamble.

    Raises:
        ValueError: it is not a line of options, or sets an option that domyn-swarm sets itself.
    """
    for word in options_of(line):
        if own := _set_by_us(word):
            instead = f"use {_KEYS[own]}" if own in _KEYS else "remove it"
            raise ValueError(f"{line!r} sets --{own}, which domyn-swarm sets itself: {instead}")
    return line


def _set_by_us(word: str) -> str | None:
    """The full name of the option in `word` that domyn-swarm sets itself; None: it sets none."""
    if not word.startswith("--"):
        return _SHORT.get(word[1:2]) if word.startswith("-") else None
    name = word[2:].partition("=")[0]
    # sbatch accepts any prefix of an option's name.
    return next((own for own in (*_OURS, *_KEYS) if name and own.startswith(name)), None)


def asks_for_gpus(line: str) -> bool:
    """Whether a line requests or configures GPUs, which only replicas get."""
    return any(_GPUS.match(word) for word in options_of(line))


def without_gpus(preamble: tuple[str, ...]) -> tuple[str, ...]:
    """The lines for jobs without GPUs."""
    return tuple(line for line in preamble if not asks_for_gpus(line))
