"""The user's `args` beside the flags that an engine is given anyway."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from domyn_swarm.errors import ConfigError

_RESERVED = {
    "--host": "where a replica listens is decided on the node",
    "--port": "a free one is chosen on the node; the key `port` says where the search begins",
    "--api-key": "keys never stand in a command line; the swarm has one (`domyn-swarm endpoint`)",
}
_FLAG = re.compile(r"-{1,2}[A-Za-z]")


def flags_in(
    args: Sequence[str], aliases: Mapping[str, str] | None = None
) -> dict[str, tuple[str, ...]]:
    """The flags in a command line, each with its values, by their long names with hyphens.

    `aliases`: other spellings, to the name that is meant.
    """
    found: dict[str, tuple[str, ...]] = {}
    flag = ""
    for word in args:
        if _FLAG.match(word):
            name, equals, value = word.partition("=")
            flag = name.replace("_", "-")
            flag = (aliases or {}).get(flag, flag)
            found[flag] = (value,) if equals else ()
        elif flag:
            found[flag] += (word,)
    return found


def merged(
    ours: Mapping[str, str], args: Sequence[str], aliases: Mapping[str, str] | None = None
) -> tuple[str, ...]:
    """Our flags, less those that the user's `args` set, and then `args` as they are.

    Raises:
        ConfigError: `args` hold a flag that is not the user's to set.
    """
    theirs = flags_in(args, aliases)
    for flag, why in _RESERVED.items():
        if flag in theirs:
            raise ConfigError(f"args: {flag} cannot be set: {why}.", hint=f"Remove {flag}.")
    kept = [word for flag, value in ours.items() if flag not in theirs for word in (flag, value)]
    return (*kept, *args)


def whole_number(values: Sequence[str] | None) -> int | None:
    """The value of a flag that takes a number; None where there is none."""
    return int(values[0]) if values and values[0].isdecimal() else None
