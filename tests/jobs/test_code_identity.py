"""Which changes of a job's code are another job: what it refers to around it counts as it does."""

from __future__ import annotations

from typing import Any

import pytest

import domyn_swarm
from domyn_swarm.jobs.base import SwarmJob
from domyn_swarm.jobs.shipping import module_from

BUILT_IN = [
    one
    for one in (getattr(domyn_swarm, name) for name in domyn_swarm.__all__)
    if isinstance(one, type) and issubclass(one, SwarmJob) and one is not SwarmJob
]

CLASS = """
import re
from domyn_swarm import SwarmJob, job

PREFIX = "Translate: "
EXAMPLES = ["one", {"two": 3}]
asked = 0

def helper(text):
    return inner(text)

def inner(text):
    return PREFIX + text

class Base(SwarmJob):
    style = "formal"

class Asking(Base):
    input_columns = ("text",)

    async def transform_item(self, item):
        global asked
        asked += 1
        return helper(item) + str(EXAMPLES) + re.escape(self.style)

def made(style):
    @job(output_schema={"answer": str})
    async def ask(text: str, client, model):
        return style + helper(text)

    return ask

unrelated = 1
"""


def source(text: str, how: str) -> Any:
    module = module_from(text)
    made = module.Asking() if how == "class" else module.made("a")
    return made.described()["source"]


@pytest.mark.parametrize("how", ["class", "function"])
@pytest.mark.parametrize(
    ("old", "new", "differs"),
    [
        ('"Translate: "', '"Summarise: "', ("class", "function")),
        ("return PREFIX + text", "return text + PREFIX", ("class", "function")),
        ('style = "formal"', 'style = "casual"', ("class",)),
        ('{"two": 3}', '{"two": 4}', ("class",)),
        ("re.escape", "re.sub", ("class",)),
        ("asked = 0", "asked = 7", ()),  # what it counts itself
        ("unrelated = 1", "unrelated = 2", ()),
        ("return inner(text)", "return inner(text)  # as it was", ()),
    ],
)
def test_what_the_code_refers_to_counts(
    how: str, old: str, new: str, differs: tuple[str, ...]
) -> None:
    before, after = source(CLASS, how), source(CLASS.replace(old, new), how)
    assert (before != after) == (how in differs)


def test_what_a_function_closes_over_counts() -> None:
    module = module_from(CLASS)
    formal, casual, again = (module.made(style) for style in ("formal", "casual", "formal"))
    assert formal.described()["source"] == again.described()["source"]
    assert formal.described()["source"] != casual.described()["source"]


def test_a_version_stands_for_all_of_it() -> None:
    versioned = CLASS.replace("class Asking(Base):", "class Asking(Base):\n    version = '1'")
    versioned = versioned.replace(
        "class Base(SwarmJob):", "class Base(SwarmJob):\n    version = '1'"
    )
    assert source(versioned, "class") == source(versioned.replace("Translate", "Say"), "class")


@pytest.mark.parametrize("kind", BUILT_IN, ids=lambda kind: kind.__name__)
def test_a_built_in_job_keeps_its_answers_when_its_source_changes(kind: type[SwarmJob]) -> None:
    """Its version alone counts, and so do those of the classes that it shares: else a newer
    domyn-swarm, of which a sentence was changed, would send every row again.
    """
    shared = [one for one in kind.__mro__ if one not in {*SwarmJob.__mro__}]
    assert [one.__name__ for one in shared if vars(one).get("version") is None] == []
