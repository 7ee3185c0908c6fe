"""A site's own `#SBATCH` lines: what they ask for, and what they must leave to domyn-swarm.

sbatch takes the last of two lines that say the same, and the site's come after ours.
"""

from __future__ import annotations

import re
import shlex

# By these what was submitted is found again, warned before its end, and brought back.
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
    """The words of a line, with `#SBATCH` or without.

    Raises:
        ValueError: it is no line of options: it breaks, quotes wrongly, or holds something else.
    """
    if not line.isprintable():
        raise ValueError(f"{line!r} holds a line break or a control character: give it in parts")
    try:
        words = shlex.split(line.removeprefix("#SBATCH"), comments=True)
    except ValueError:
        words = []
    if not words or not words[0].startswith("-"):
        raise ValueError(f"{line!r} is no line of options, such as '#SBATCH --reservation=x'")
    return words


def check_line(line: str) -> str:
    """The line as it is.

    Raises:
        ValueError: it cannot be, or sets what domyn-swarm sets itself.
    """
    for word in options_of(line):
        if own := _set_by_us(word):
            instead = f"use {_KEYS[own]}" if own in _KEYS else "leave it out"
            raise ValueError(f"{line!r} sets --{own}, as domyn-swarm itself does: {instead}")
    return line


def _set_by_us(word: str) -> str | None:
    """The whole name of an option that is ours."""
    if not word.startswith("--"):
        return _SHORT.get(word[1:2]) if word.startswith("-") else None
    name = word[2:].partition("=")[0]
    # sbatch takes the beginning of a name for the name.
    return next((own for own in (*_OURS, *_KEYS) if name and own.startswith(name)), None)


def asks_for_gpus(line: str) -> bool:
    """Whether a line is about GPUs: only replicas get any."""
    return any(_GPUS.match(word) for word in options_of(line))


def without_gpus(preamble: tuple[str, ...]) -> tuple[str, ...]:
    """The lines for what needs no GPU."""
    return tuple(line for line in preamble if not asks_for_gpus(line))
