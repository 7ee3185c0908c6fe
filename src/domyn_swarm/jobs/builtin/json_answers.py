"""The JSON in what a model said: behind thinking, in fences, among words; with numbers that are
kept as they were answered.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticCustomError

_Answer = TypeVar("_Answer")
_Model = TypeVar("_Model", bound=BaseModel)

_THOUGHTS = r"think(?:ing)?|thought|reason(?:ing)?|reflection"
_THOUGHT_ENDS = re.compile(rf"</(?:{_THOUGHTS})>|\[/THINK\]|<\|channel\|>final<\|message\|>", re.I)
_THOUGHT_BEGINS = re.compile(rf"<(?:{_THOUGHTS})>|\[THINK\]|<\|channel\|>analysis", re.I)
_END_TOKEN = re.compile(r"(?:<\|[^|<>]{1,40}\|>|</?s>|<eos>|<end_of_turn>|\[/?INST\])\s*\Z")
_END_TOKEN_CHARACTERS = 80
_FENCE = re.compile(r"```[\w+-]*[ \t]*\n?(.*?)```", re.DOTALL)
_BEGINS = re.compile(r"[{\[]")
_MOST_DIGITS = 4300  # of a whole number that Python reads
_MOST_BEGINNINGS = 1000  # of texts that are full of braces

_FAR = re.compile(r"[eE][+-]?\d{3}|\d{300}|NaN|Infinity")
"""What a number looks like that may be none of 64 bits."""
_MOST_SHOWN = 40

_decode = json.JSONDecoder(parse_int=str, parse_float=str).raw_decode  # where JSON ends, no more


class SeveralAnswers(ValueError):
    """A text holds different answers of the wanted shape, and does not say which one counts."""


def found_answer(text: str, validate: Callable[[str], _Answer], *, cut: bool) -> _Answer:
    """The one answer of the wanted shape in a text.

    Args:
        text: all that the model said.
        validate: makes the answer of JSON text.
        cut: the text was cut off: then what is JSON must be all of it, for what was still to come
            might have been another answer.

    Raises:
        ValidationError: no JSON in it is of the shape; what is wrong with the likeliest.
        SeveralAnswers: the text has different ones.
    """
    try:
        return validate(text)
    except ValidationError as error:
        likeliest = error
    said = _said(text)
    for candidates in ([said], _fenced(said, alone=cut), [] if cut else _embedded(said)):
        found: list[_Answer] = []
        for candidate in candidates:
            try:
                answer = validate(candidate)
            except ValidationError as error:
                likeliest = error if _is_no_json(likeliest) else likeliest
            else:
                found += [] if answer in found else [answer]
        if len(found) > 1:
            raise SeveralAnswers(f"it holds {len(found)} different answers")
        if found:
            return found[0]
    raise likeliest


def validated(shape: type[_Model], text: str) -> _Model:
    """An answer of this shape, of JSON in which every number is one.

    Raises:
        ValidationError: it is not of the shape, or holds NaN or a number that is too large: as a
            fraction of 64 bits that would be infinite, and kept as null.
    """
    try:
        answer = shape.model_validate_json(text)
    except ValidationError as error:
        if _FAR.search(text) and (number := _no_number(text)) is not None:
            raise _mismatch(shape, text, number) from error
        raise
    if _FAR.search(text) and (number := _no_number(text)) is not None:
        raise _mismatch(shape, text, number)
    return answer


def _no_number(text: str) -> str | None:
    """The first number of a JSON text that is none of 64 bits; None: there is none."""
    found: list[str] = []

    def whole(digits: str) -> int:
        if len(digits.lstrip("-")) > _MOST_DIGITS:
            found.append(digits)
        return 0

    def fraction(digits: str) -> float:
        if math.isinf(float(digits)):
            found.append(digits)
        return 0.0

    try:
        json.loads(text, parse_int=whole, parse_float=fraction, parse_constant=found.append)
    except (ValueError, RecursionError):
        return None
    return found[0] if found else None


def _mismatch(shape: type[BaseModel], text: str, number: str) -> ValidationError:
    shown = number if len(number) <= _MOST_SHOWN else f"{number[:_MOST_SHOWN]}…"
    why = "is no number of JSON" if number.lstrip("-")[:1].isalpha() else "is too large a number"
    told = PydanticCustomError("number", "{shown} {why}", {"shown": shown, "why": why})
    return ValidationError.from_exception_data(
        shape.__name__, [{"type": told, "loc": (), "input": text}]
    )


def _is_no_json(error: ValidationError) -> bool:
    return any(one["type"] == "json_invalid" for one in error.errors(include_url=False))


def _said(text: str) -> str:
    """A text without the thinking in it and the tokens that end it."""
    *_, last = [0, *(one.end() for one in _THOUGHT_ENDS.finditer(text))]
    said = text[last:]
    begun = _THOUGHT_BEGINS.search(said)  # and never ended: there is no answer behind it
    return _without_end_tokens(said if begun is None else said[: begun.start()]).strip()


def _without_end_tokens(text: str) -> str:
    while (end := _END_TOKEN.search(text[-_END_TOKEN_CHARACTERS:])) is not None:
        text = text[: len(text) - len(end[0])].rstrip()
    return text


def _fenced(text: str, *, alone: bool) -> list[str]:
    """What stands in Markdown's fences. `alone`: of one that is all of the text."""
    return [one[1] for one in _FENCE.finditer(text) if not alone or one[0] == text]


def _embedded(text: str) -> Iterator[str]:
    """Every outermost object and list in a text."""
    at, beginnings = 0, 0
    while (begin := _BEGINS.search(text, at)) is not None and beginnings < _MOST_BEGINNINGS:
        beginnings += 1
        try:
            _, at = _decode(text, begin.start())
        except (ValueError, RecursionError):
            at = begin.start() + 1
        else:
            yield text[begin.start() : at]
