"""Async functions as jobs: their options, parameters, schemas and identities."""

from __future__ import annotations

import asyncio
import re
from typing import Any, Literal

import pytest
from pydantic import BaseModel

from domyn_swarm import SwarmJob, job
from domyn_swarm.errors import ConfigError
from domyn_swarm.jobs.decorator import FunctionJob
from domyn_swarm.jobs.preparation import filled, identity_of
from model_server import Bench


class Score(BaseModel):
    score: float


@job(output_schema=["summary"], max_concurrency=4)
async def summarise(item: str, client: Any, model: str, **params: Any) -> dict[str, Any]:
    return {"summary": [item, client, model, params]}


@job(output_schema=Score, input_columns=["question", "answer"])
async def judge(
    item: dict[str, str], *, style: Literal["strict", "kind"] = "strict", weight: float
) -> dict[str, float]:
    return {"score": len(item["answer"]) * weight}


def answer(one: SwarmJob, item: Any) -> Any:
    one.bind("client", "m")  # type: ignore[arg-type]
    return asyncio.run(one.transform_items([item]))[0]


def test_a_function_is_a_job_and_gets_what_it_names() -> None:
    assert isinstance(summarise, FunctionJob)
    assert answer(summarise, "x") == {"summary": ["x", "client", "m", {}]}
    warm = summarise(temperature=0.2)
    assert answer(warm, "x") == {"summary": ["x", "client", "m", {"temperature": 0.2}]}
    assert summarise.params == {}


def test_called_with_options_it_is_the_same_job_with_those_set() -> None:
    changed = summarise(input_columns="story", max_concurrency="auto", keep=["latency"])
    again = changed(temperature=1)
    assert tuple(again.input_columns) == ("story",)
    assert (again.options.max_concurrency, again.options.keep) == ("auto", ("latency",))
    assert again.schema().names == ["summary", "latency_s"]
    assert summarise.options.max_concurrency == 4


def test_a_bare_decorator_has_one_result_column() -> None:
    @job
    async def shout(item: str) -> str:
        return item.upper()

    assert shout.schema().names == ["result"]
    assert answer(shout, "x") == "X"


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"weigth": 2}, "has no parameter 'weigth'.*Did you mean 'weight'"),
        ({"style": "rude"}, "style is 'rude': Input should be 'strict' or 'kind'"),
        ({"weight": "much"}, "weight is 'much': Input should be a valid number"),
        ({"retries": -1}, "option retries is -1"),
        ({"keep": ["everything"]}, "option keep.0 is 'everything'"),
        ({"max_concurrency": 0}, "max_concurrency must be auto or a .* of at least 1, not 0"),
        ({"max_concurrency": "many"}, "max_concurrency must be auto or a .*, not 'many'"),
        ({"output_columns": ["a", "b"]}, "has 1 output column"),
        ({"output_columns": ["a"]}, "its fields' names"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_asked(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        judge(**given)
    assert re.search(reason, f"{caught.value.message} {caught.value.hint}")


def test_a_parameter_without_a_default_has_to_be_given() -> None:
    with pytest.raises(ConfigError, match="The job judge needs weight"):
        judge.check()
    judge(weight="2").check()
    assert judge(weight="2").params == {"weight": 2.0}


def test_what_is_no_job() -> None:
    with pytest.raises(ConfigError, match="needs an async function"):
        job(lambda item: item)  # type: ignore[arg-type, return-value]
    with pytest.raises(ConfigError, match="does nothing with its rows"):
        SwarmJob().check()


class Patient(SwarmJob):
    output_schema = ("a",)
    max_concurrency = 2
    timeout_s = 9.0
    id_column = "id"

    async def transform_item(self, item: Any) -> Any:
        return item


def test_the_submitter_has_the_last_word(bench: Bench) -> None:
    spec = filled(bench.spec(timeout_s=3.0, input_columns=(), output_columns=()), Patient())
    assert (spec.timeout_s, spec.max_concurrency, spec.id_column) == (3.0, 2, "id")
    assert Patient(timeout_s=5).options.timeout_s == 5


def digest(bench: Bench, one: SwarmJob) -> str:
    return identity_of(bench.spec(), one).digest


def test_an_identity_is_what_decides_the_answers(bench: Bench) -> None:
    base = digest(bench, summarise)
    assert digest(bench, summarise(max_concurrency=1, retries=2, name="other")) == base
    assert digest(bench, summarise(temperature=0.1)) != base
    assert digest(bench, summarise(keep=["latency"])) != base
    assert digest(bench, summarise(id_column="id")) != base


def test_a_subclass_does_not_pass_for_the_version_of_its_base(bench: Bench) -> None:
    class Versioned(Patient):
        version = "1"

    class Changed(Versioned):
        async def transform_item(self, item: Any) -> Any:
            return [item]

    Changed.__name__ = "Versioned"
    assert digest(bench, Changed()) != digest(bench, Versioned())


def test_versions_stand_for_sources(bench: Bench) -> None:
    @job(version="1")
    async def one(item: str) -> str:
        return item

    def again() -> FunctionJob:
        @job(version="1")
        async def one(item: str) -> str:
            return item + "!"

        return one

    assert digest(bench, one) == digest(bench, again())
