"""The JSON in what a model said: behind thinking, in a fence, among words, before end tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import TypeVar

from pydantic import ValidationError

_Answer = TypeVar("_Answer")

_THOUGHTS = r"think(?:ing)?|thought|reason(?:ing)?|reflection"
_THOUGHT_ENDS = re.compile(rf"</(?:{_THOUGHTS})>|\[/THINK\]|<\|channel\|>final<\|message\|>", re.I)
_THOUGHT_BEGINS = re.compile(rf"<(?:{_THOUGHTS})>|\[THINK\]|<\|channel\|>analysis", re.I)
_END_TOKEN = re.compile(r"(?:<\|[^|<>]{1,40}\|>|</?s>|<eos>|<end_of_turn>|\[/?INST\])\s*\Z")
_END_TOKEN_CHARACTERS = 80
_FENCE = re.compile(r"```[\w+-]*[ \t]*\n?(.*?)```", re.DOTALL)
_BEGINS = re.compile(r"[{\[]")
_MOST_BEGINNINGS = 1000  # of texts that are full of braces

_decode = json.JSONDecoder().raw_decode


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
