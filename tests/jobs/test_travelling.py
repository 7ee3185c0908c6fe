"""Jobs of scripts and notebook cells: what travels of their source, and what is refused."""

from __future__ import annotations

import asyncio
import linecache
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from domyn_swarm import job
from domyn_swarm.errors import ConfigError
from domyn_swarm.jobs.builtin.chat import ChatCompletionJob
from domyn_swarm.jobs.job_loading import load_job, reference_to
from domyn_swarm.jobs.shipping import source_of
from patience import limit_s

SCRIPT = '''
import json
import re
from typing import Literal

from pydantic import BaseModel

from domyn_swarm import SwarmJob, job
from domyn_swarm.jobs.job_loading import reference_to

LIMIT = 3
WORDS = re.compile("[a-z]+", re.I)
Label = Literal["long", "short"]
unused = open(__file__)


class Verdict(BaseModel):
    label: Label
    words: int


def count(text):
    return len(WORDS.findall(text))


@job(output_schema=Verdict)
async def judge(item: str, *, limit: int = LIMIT) -> Verdict:
    """Judge."""
    words = count(item)
    return Verdict(label="long" if words > limit else "short", words=words)


class Reverse(SwarmJob):
    async def transform_item(self, item: str) -> str:
        return json.dumps(item[::-1])


for one in (judge(limit=1), Reverse()):
    found = reference_to(one)
    print(json.dumps([found.job, found.kwargs, found.source]))
'''


def run_loaded(reference: list[Any], item: Any) -> Any:
    name, kwargs, source = reference
    loaded = load_job(name, kwargs, source=source)
    return asyncio.run(loaded.transform_items([item]))[0]


def test_the_jobs_of_a_script_travel(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    ran = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=True, timeout=limit_s()
    )
    judged, reversed_ = map(__import__("json").loads, ran.stdout.splitlines())
    assert judged[0] == "source:judge"
    assert "unused" not in judged[2]
    assert run_loaded(judged, "one two").model_dump() == {"label": "long", "words": 2}
    assert run_loaded(reversed_, "ab") == '"ba"'
    assert "Verdict" not in reversed_[2]


CELLS = [
    "from pydantic import BaseModel\nfrom domyn_swarm import job",
    "class Out(BaseModel):\n    a: int",
    "class Out(BaseModel):\n    b: int",
    """
    @job(output_schema=Out)
    async def made(item):
        return {"b": item}
    """,
]


def test_the_jobs_of_cells_travel(monkeypatch: pytest.MonkeyPatch) -> None:
    """As IPython runs cells: in `__main__`, the text kept under a name that is no file's."""
    space = vars(sys.modules["__main__"])
    monkeypatch.delitem(space, "__file__", raising=False)
    for number, cell in enumerate(CELLS):
        text, name = textwrap.dedent(cell), f"/tmp/ipykernel_7/{number}.py"
        monkeypatch.setitem(
            linecache.cache, name, (len(text), None, text.splitlines(keepends=True), name)
        )
        exec(compile(text, name, "exec"), space)
    found = reference_to(space["made"])
    for name in ("made", "Out"):
        space.pop(name)
    loaded = load_job(found.job, found.kwargs, source=found.source)
    assert loaded.schema().names == ["b"]
    assert asyncio.run(loaded.transform_items([5])) == [{"b": 5}]


def test_what_can_be_imported_is_imported() -> None:
    found = reference_to(ChatCompletionJob(system="x", temperature=0))
    assert found.job == "domyn_swarm.jobs.builtin.chat:ChatCompletionJob"
    assert found.source is None
    assert found.kwargs == {"system": "x", "temperature": 0}


def test_what_does_not_travel_says_what_and_why() -> None:
    connection = object()

    @job
    async def bad(item: str) -> str:
        return f"{connection}{item}"

    with pytest.raises(ConfigError, match=r"bad refers to 'connection', which .* a object cannot"):
        source_of(bad)


def test_what_a_job_closes_over_travels() -> None:
    suffix = "!"

    @job
    async def good(item: str) -> str:
        return item + suffix

    found = reference_to(good)
    assert run_loaded([found.job, found.kwargs, found.source], "x") == "x!"


def test_parameters_have_to_be_json() -> None:
    with pytest.raises(ConfigError, match="parameter of the job ChatCompletionJob is not JSON"):
        reference_to(ChatCompletionJob(stop={"a", "b"}))


def test_schemas_travel_by_the_names_of_their_types() -> None:
    kwargs = reference_to(ChatCompletionJob(output_schema={"answer": str})).kwargs
    assert kwargs == {"output_schema": {"answer": "str"}}


def test_a_source_that_fails_elsewhere_says_so() -> None:
    with pytest.raises(ConfigError, match="source fails on this machine: ModuleNotFoundError"):
        load_job("source:x", {}, source="import not_there_at_all\n")
