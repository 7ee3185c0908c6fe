"""The simulator's JSON fits the schemas that pydantic writes."""

from __future__ import annotations

import json
from enum import Enum
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from domyn_swarm.engines.sim_openai import instance_of, question


class Colour(Enum):
    RED = "red"


class Inner(BaseModel):
    colour: Colour
    weights: list[Annotated[float, Field(ge=0.5)]] = Field(min_length=2)


class Tree(BaseModel):
    label: Literal["a", "b"]
    fixed: Literal[7]
    sure: bool
    count: int = Field(gt=3)
    short: str = Field(max_length=4)
    maybe: str | None
    inner: Inner
    children: list[Tree] = []


def test_it_fits_the_model() -> None:
    made = instance_of(Tree.model_json_schema(), "hello there")
    tree = Tree.model_validate(made)
    assert (tree.label, tree.fixed, tree.count, tree.short) == ("a", 7, 4, "hell")
    assert tree.inner.weights == [0.5, 0.5]
    assert tree.maybe == "hello there"


@pytest.mark.parametrize("schema", [{}, {"$ref": "#/nowhere"}, {"type": "object"}, {"anyOf": [7]}])
def test_schemas_that_say_little(schema: dict[str, Any]) -> None:
    json.dumps(instance_of(schema, "x"))


def test_a_request_with_a_schema_and_one_for_log_probabilities() -> None:
    messages = [{"role": "user", "content": "hello there"}]
    wanted = {"type": "json_schema", "json_schema": {"schema": Tree.model_json_schema()}}
    asked = question({"messages": messages, "response_format": wanted}, chat=True)
    Tree.model_validate_json(asked.answer)
    told = question({"messages": messages, "logprobs": True}, chat=True).reply({})
    numbers = [one["logprob"] for one in told["choices"][0]["logprobs"]["content"]]
    assert numbers
    assert all(-1 <= number <= 0 for number in numbers)
