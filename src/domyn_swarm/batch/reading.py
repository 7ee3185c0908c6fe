"""How an input's files are to be read, where they do not say it themselves."""

import codecs
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from domyn_swarm.errors import ConfigError
from domyn_swarm.record import After, Record, field

CellType = Literal["text", "int", "float", "bool", "json"]


def _known(encoding: str) -> str:
    try:
        "".encode(encoding)  # some codecs are not of text
        name = codecs.lookup(encoding).name
    except LookupError:
        raise ValueError(f"{encoding!r} is no encoding; such are utf-8, cp1252, utf-16") from None
    return "utf-8" if name in {"utf-8", "utf-8-sig", "ascii"} else name


def _one_character(delimiter: str | None) -> str | None:
    named = {"tab": "\t", "\\t": "\t"}.get(delimiter or "", delimiter)
    if named is not None and (len(named) != 1 or named in '"\r\n'):
        raise ValueError(f"{delimiter!r} is not one character; such are ';', '|' and tab")
    return named


class InputReading(Record):
    """What a user says of the input. Nothing of it is guessed from the files."""

    encoding: Annotated[str, After(_known)] = "utf-8"  # of text files
    # Of CSV and TSV; None: a comma, a tab.
    delimiter: Annotated[str | None, After(_one_character)] = None
    types: dict[str, CellType] = field(default_factory=dict)  # of CSV's columns; the others: text
    recursive: bool = False  # a folder's sub-folders as well


def reading_of(given: Mapping[str, Any]) -> InputReading:
    """A reading from what a user wrote.

    Raises:
        ConfigError: there is no such encoding, delimiter or type.
    """
    from pydantic import ValidationError

    try:
        return InputReading.model_validate(given)
    except ValidationError as error:
        told = error.errors(include_url=False)[0]
        flag = " ".join(map(str, told["loc"]))
        hint = "Types are text, int, float, bool and json." if told["loc"][0] == "types" else ""
        raise ConfigError(
            f"--{flag}: {str(told['msg']).removeprefix('Value error, ')}.", hint=hint
        ) from error
