"""Options for reading an input's files, which the files do not contain; and the list of all errors
in them.
"""

from __future__ import annotations

import codecs
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from domyn_swarm.errors import ConfigError, InvalidInput
from domyn_swarm.record import After, Record, about, field

CellType = Literal["text", "int", "float", "bool", "json"]


# Codecs of text in names, in Python's source and of nothing; files have none of them.
_NO_FILES = frozenset(
    ("idna", "punycode", "raw-unicode-escape", "unicode-escape", "undefined"),
)


def _known(encoding: str) -> str:
    try:
        name = codecs.lookup(encoding).name
        if name not in _NO_FILES:
            "".encode(encoding)  # some codecs are not of text
    except LookupError:
        name = ""
    if not name or name in _NO_FILES:
        raise ValueError(f"{encoding!r} is no encoding; such are utf-8, cp1252, utf-16")
    return "utf-8" if name in {"utf-8", "utf-8-sig", "ascii"} else name


def _one_character(delimiter: str | None) -> str | None:
    named = {"tab": "\t", "\\t": "\t"}.get(delimiter or "", delimiter)
    if named is not None and (len(named) != 1 or named in '"\r\n'):
        raise ValueError(f"{delimiter!r} is not one character; such are ';', '|' and tab")
    return named


class InputReading(Record):
    """The user's options for the input. None of them is guessed from the files."""

    encoding: Annotated[
        str, After(_known), about("Of text files: cp1252, utf-16, …", metavar="NAME")
    ] = "utf-8"
    delimiter: Annotated[  # None: a comma, of TSV a tab
        Annotated[str | None, After(_one_character)],
        about("Of CSV and TSV: ';', '|', tab.", metavar="CHARACTER"),
    ] = None
    types: Annotated[
        dict[str, CellType],
        about(
            "Of CSV's columns, by name: int, float, bool, json; the others are text.",
            metavar="COLUMN=TYPE,…",
            flag_help="Of CSV's columns: int, float, bool, json; the others are text.",
        ),
    ] = field(default_factory=dict)
    recursive: Annotated[bool, about("Read a folder's sub-folders as well.")] = False


def reading_of(given: Mapping[str, Any]) -> InputReading:
    """A reading from the user's options.

    Raises:
        ConfigError: there is no such encoding, delimiter or type.
    """
    from pydantic import ValidationError

    try:
        return InputReading.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        flag = " ".join(map(str, first["loc"]))
        hint = "Types are text, int, float, bool and json." if first["loc"][0] == "types" else ""
        raise ConfigError(
            f"--{flag}: {str(first['msg']).removeprefix('Value error, ')}.", hint=hint
        ) from error


_SHOWN = 20


class Problems:
    """The problems of one input, the first of them with messages."""

    def __init__(self) -> None:
        self._found: list[str] = []
        self._hints: dict[str, None] = {}
        self._count = 0

    def add(self, problem: str, hint: str) -> None:
        """Add a problem: what and where, and what to do about it."""
        if self.counted():
            return
        self._count += 1
        self._found.append(problem)
        self._hints[hint] = None

    def counted(self) -> bool:
        """Count a problem without a message, if enough have one; returns whether it did."""
        full = len(self._found) >= _SHOWN
        self._count += full
        return full

    def take(self, other: Problems) -> None:
        """Append the problems of another list."""
        room = max(0, _SHOWN - len(self._found))
        self._found += other._found[:room]
        self._hints |= other._hints
        self._count += other._count

    def check(self) -> None:
        """Refuse the input if there was any problem.

        Raises:
            InvalidInput: names them, the first 20.
        """
        if not self._count:
            return
        left = self._count - len(self._found)
        more = [f"… and {left} more."] if left else []
        raise InvalidInput("\n".join([*self._found, *more]), hint=" ".join(self._hints))
