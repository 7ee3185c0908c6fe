"""The list of faults fits the sources and the tests: so that it cannot rot unnoticed.

That each fault is killed is for `make test-mutants` to say, which takes minutes.
"""

from __future__ import annotations

import ast
from collections import Counter

import pytest

from mutants import PACKAGE, ROOT, Mutant, read_mutants

MUTANTS = read_mutants()


def _tests_of(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in tree.body if isinstance(node, functions)}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_fault_stands_once_in_its_file_and_has_a_test_that_notices(mutant: Mutant) -> None:
    source = (ROOT / PACKAGE / mutant.file).read_text(encoding="utf-8")
    assert ast.dump(ast.parse(mutant.planted(source))) != ast.dump(ast.parse(source))
    assert mutant.breaks
    assert mutant.killed_by
    for node in mutant.killed_by:
        path, _, name = node.partition("::")
        assert name.partition("[")[0] in _tests_of(path)


def test_a_text_that_is_gone_or_stands_twice_is_an_error() -> None:
    mutant = Mutant("", "", "a.py", "one", "two", "", ())
    assert mutant.planted("one, three") == "two, three"
    for source in ("three", "one, one"):
        with pytest.raises(ValueError, match=r"a\.py has the text \d times"):
            mutant.planted(source)


def test_each_kind_has_six_and_each_name_is_one() -> None:
    kinds = (
        *("checkpoint", "lease", "retry", "fault", "limiter", "recovery", "planning"),
        *("verdict", "store", "dispatch", "order", "ledger"),
    )
    assert Counter(mutant.kind for mutant in MUTANTS) == dict.fromkeys(kinds, 6)
    assert max(Counter(mutant.name for mutant in MUTANTS).values()) == 1
