"""How an input's files are to be read, where they do not say it themselves."""

from __future__ import annotations

import codecs
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator

from domyn_swarm.errors import ConfigError
from domyn_swarm.model import Record

CellType = Literal["text", "int", "float", "bool", "json"]


class InputReading(Record):
    """What a user says of the input. Nothing of it is guessed from the files."""

    encoding: str = "utf-8"  # of text files
    delimiter: str | None = None  # of CSV and TSV; None: a comma, a tab
    types: dict[str, CellType] = Field(default_factory=dict)  # of CSV's columns; the others: text
    recursive: bool = False  # a folder's sub-folders as well

    @field_validator("encoding")
    @classmethod
    def _known(cls, encoding: str) -> str:
        try:
            "".encode(encoding)  # some codecs are not of text
            name = codecs.lookup(encoding).name
        except LookupError:
            raise ValueError(
                f"{encoding!r} is no encoding; such are utf-8, cp1252, utf-16"
            ) from None
        return "utf-8" if name in {"utf-8", "utf-8-sig", "ascii"} else name

    @field_validator("delimiter")
    @classmethod
    def _one_character(cls, delimiter: str | None) -> str | None:
        named = {"tab": "\t", "\\t": "\t"}.get(delimiter or "", delimiter)
        if named is not None and (len(named) != 1 or named in '"\r\n'):
            raise ValueError(f"{delimiter!r} is not one character; such are ';', '|' and tab")
        return named


def reading_of(given: Mapping[str, Any]) -> InputReading:
    """A reading from what a user wrote.

    Raises:
        ConfigError: there is no such encoding, delimiter or type.
    """
    try:
        return InputReading.model_validate(given)
    except ValidationError as error:
        told = error.errors(include_url=False)[0]
        flag = " ".join(map(str, told["loc"]))
        hint = "Types are text, int, float, bool and json." if told["loc"][0] == "types" else ""
        raise ConfigError(
            f"--{flag}: {str(told['msg']).removeprefix('Value error, ')}.", hint=hint
        ) from error
