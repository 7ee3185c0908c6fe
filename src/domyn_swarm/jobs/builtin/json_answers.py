"""Finds the JSON in a model's text: after thinking, in fences, among words. Refuses numbers that
could not be kept as they were answered.
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
_MOST_DIGITS = 4300  # of an integer that Python reads
_MOST_BEGINNINGS = 1000  # braces and brackets that are tried in one text

_FAR = re.compile(r"[eE][+-]?\d{3}|\d{300}|NaN|Infinity")
"""Matches numbers that may not fit into 64 bits."""
_MOST_SHOWN = 40

_decode = json.JSONDecoder(parse_int=str, parse_float=str).raw_decode  # where JSON ends, no more


class SeveralAnswers(ValueError):
    """A text has different answers of the wanted shape, so that none of them counts."""


def found_answer(text: str, validate: Callable[[str], _Answer], *, cut: bool) -> _Answer:
    """The only answer of the wanted shape in a text.

    Args:
        text: the model's whole text.
        validate: makes the answer from JSON text.
        cut: the text was cut off: then all of it must be the JSON, since the missing part might
            have contained another answer.

    Raises:
        ValidationError: no JSON in the text has the shape; the error is that of the likeliest one.
        SeveralAnswers: the text has different answers.
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
    """An answer of this shape from JSON text, all of whose numbers can be kept.

    Raises:
        ValidationError: it does not have the shape, or it contains NaN, Infinity, an integer of
            more than 4,300 digits, or a number that 64 bits would store as infinite (and JSON
            would keep as null).
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
    """The first number of a JSON text that cannot be kept; None: there is none."""
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
    wrong = PydanticCustomError("number", "{shown} {why}", {"shown": shown, "why": why})
    return ValidationError.from_exception_data(
        shape.__name__, [{"type": wrong, "loc": (), "input": text}]
    )


def _is_no_json(error: ValidationError) -> bool:
    return any(one["type"] == "json_invalid" for one in error.errors(include_url=False))


def _said(text: str) -> str:
    """A text without its thinking and its end tokens."""
    *_, last = [0, *(one.end() for one in _THOUGHT_ENDS.finditer(text))]
    said = text[last:]
    begun = _THOUGHT_BEGINS.search(said)  # thinking that never ended: no answer follows it
    return _without_end_tokens(said if begun is None else said[: begun.start()]).strip()


def _without_end_tokens(text: str) -> str:
    while (end := _END_TOKEN.search(text[-_END_TOKEN_CHARACTERS:])) is not None:
        text = text[: len(text) - len(end[0])].rstrip()
    return text


def _fenced(text: str, *, alone: bool) -> list[str]:
    """The contents of Markdown's fences. `alone`: only of a fence that is the whole text."""
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
