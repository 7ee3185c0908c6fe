"""Where in what a model said the JSON is."""

from __future__ import annotations

from functools import partial

import pytest
from pydantic import BaseModel, ValidationError

from domyn_swarm.batch.output.output_schema import reasons
from domyn_swarm.jobs.builtin.json_answers import SeveralAnswers, found_answer, validated


class Answer(BaseModel):
    a: int


def answer_in(text: str, *, cut: bool = False) -> int:
    return found_answer(text, Answer.model_validate_json, cut=cut).a


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1}',
        ' \n{"a": 1}\n',
        '<think>maybe {"a": 2}</think>\n{"a": 1}',
        'maybe {"a": 2}</think>{"a": 1}',  # the template had begun the thinking
        '<think>one</think> then <think>{"a": 2}</think>{"a": 1}',
        '<Thinking>{"a": 2}</Thinking>{"a": 1}',
        '[THINK]{"a": 2}[/THINK]{"a": 1}',
        '<|channel|>analysis<|message|>{"a": 2}<|end|><|channel|>final<|message|>{"a": 1}',
        '{"a": 1} <think>or {"a": 2}',
        '```json\n{"a": 1}\n```',
        '```\n{"a": 1}\n```',
        'Sure:\n```json\n{"a":1}\n```\nDone.',
        'Not ```json\n{"b": 2}\n``` but ```json\n{"a": 1}\n```',
        'Of {"b": 2} and [3] I choose {"a": 1}.',
        'It is {"a": 1}, I repeat {"a":1}.',
        'Set {x} and {"a": 1}',
        '{"a": 1}<|im_end|>',
        '{"a": 1} </s>\n<|eot_id|>\n',
        '{"a": 1}<end_of_turn>',
    ],
)
def test_it_is_found(text: str) -> None:
    assert answer_in(text) == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "EOF"),
        ("no JSON", "Invalid JSON"),
        ('<think>maybe {"a": 2}', "Invalid JSON"),  # and the answer never came
        ('It is {"a": "x"}.', "valid integer"),
        ('{"a": "x"}', "valid integer"),
        ('{"a": ', "EOF"),
        ("{" * 5000, "Invalid JSON"),
    ],
)
def test_there_is_none(text: str, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        answer_in(text)


class Numbers(BaseModel):
    a: int
    b: float = 0.0
    words: str = ""


@pytest.mark.parametrize("around", ["{}", "Sure:\n```json\n{}\n```", "I choose {} today."])
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": 1, "b": 1e400}', "1e400 is too large a number"),
        ('{"a": 1, "b": -1e400}', "-1e400 is too large a number"),
        ('{"a": 1e400}', "1e400 is too large a number"),
        ('{"a": 1, "b": Infinity}', "Infinity is no number of JSON"),
        ('{"a": 1, "b": -Infinity}', "-Infinity is no number of JSON"),
        ('{"a": 1, "b": NaN}', "NaN is no number of JSON"),
        ('{"a": 1, "b": 2, "more": [1e999]}', "1e999 is too large a number"),
        (f'{{"a": {"9" * 5000}}}', f"{'9' * 40}… is too large a number"),
    ],
)
def test_a_number_that_would_not_be_kept_is_told(around: str, text: str, reason: str) -> None:
    """It is none of the shape, instead of an infinite number that is written as null."""
    with pytest.raises(ValidationError) as caught:
        found_answer(around.replace("{}", text), partial(validated, Numbers), cut=False)
    assert reasons(caught.value) == f"value: {reason}"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (f'{{"a": {"9" * 4300}}}', Numbers(a=int("9" * 4300))),
        ('{"a": 1, "b": 1e308}', Numbers(a=1, b=1e308)),
        ('{"a": 1, "b": 1e-400}', Numbers(a=1)),
        (
            '{"a": 1, "words": "NaN, 1e400 and Infinity"}',
            Numbers(a=1, words="NaN, 1e400 and Infinity"),
        ),
    ],
)
def test_large_numbers_and_words_about_them_are_kept(text: str, answer: Numbers) -> None:
    assert found_answer(text, partial(validated, Numbers), cut=False) == answer


def test_of_two_that_differ_none_is_chosen() -> None:
    with pytest.raises(SeveralAnswers, match="2 different answers"):
        answer_in('Perhaps {"a": 1}. Or {"a": 2}.')


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ('{"a": 1}', True),
        ('<think>x</think>```json\n{"a": 1}\n```', True),
        ('{"a": 1} or rath', False),
        ('Sure: ```json\n{"a": 1}\n``` or rath', False),
        ('{"a": ', False),
    ],
)
def test_what_was_cut_must_be_json_altogether(text: str, whole: bool) -> None:
    if whole:
        assert answer_in(text, cut=True) == 1
    else:
        with pytest.raises(ValidationError):
            answer_in(text, cut=True)
