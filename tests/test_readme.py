"""What tests/README.md says is true: the tests that it names exist, and no promise is left out."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parent
README = (TESTS / "README.md").read_text(encoding="utf-8")
PROVEN = README.partition("## Mutants")[0]
PROMISES = 37
FINDINGS = (
    *(f"A{number}" for number in range(1, 10)),
    *(f"B{number}" for number in range(1, 22)),
    *(f"C{number}" for number in range(1, 22)),
    *(f"#{number}" for number in (2, 3, 5, 6, 7, 16, 19, 20, 24, 40, 44)),
)
NAMED = re.compile(r"`([\w/]+\.py)::(\w+)`")


@cache
def functions(file: str) -> frozenset[str]:
    """The test functions of a file; none if there is no such file."""
    path = TESTS / file
    if not path.is_file():
        return frozenset()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return frozenset(node.name for node in found if node.name.startswith("test_"))


def test_every_test_that_is_named_exists() -> None:
    named = NAMED.findall(README)
    assert README.count("::") == len(named), "a test is written `folder/test_file.py::test_name`"
    assert [f"{file}::{name}" for file, name in named if name not in functions(file)] == []


def test_every_file_that_is_named_exists() -> None:
    named = re.findall(r"`([\w/]+\.py)`", PROVEN)
    assert named
    assert [file for file in named if not (TESTS / file).is_file()] == []


def test_every_promise_names_its_proof_or_says_that_there_is_none() -> None:
    rows = re.findall(r"^\| (\d+)[a-z]? \|(.*)$", PROVEN, flags=re.M)
    assert {int(number) for number, _ in rows} == {*range(1, PROMISES + 1)}
    assert [row for _, row in rows if not NAMED.search(row) and "**not proven**" not in row] == []


def test_what_became_of_every_finding_is_said_and_proven() -> None:
    rows = re.findall(r"^\| ([ABC#]\d+) \|(.*)$", PROVEN, flags=re.M)
    assert tuple(number for number, _ in rows) == FINDINGS
    assert [row for _, row in rows if not NAMED.search(row)] == []
