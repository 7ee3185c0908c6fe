"""No test has a number of seconds of its own that decides whether it passes."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
# Names of what makes hours pass at once: a file that uses them waits for no real time.
VIRTUAL = ("virtual_time", "scripted", "VirtualClock")
# What waits, and which of its arguments is the limit.
BY_POSITION = {"sleep": 0, "wait": 0, "join": 0, "communicate": 1, "wait_for": 1, ".result": 0}
BY_NAME = {"timeout", "within_s"}
# What is given a setting: how long it waits is no limit of the test.
SETTINGS = {"with_options", "create"}
CLOCKS = {"monotonic", "perf_counter", "time"}
# As long may a program be silent, or pause between two steps, in a test that holds without it.
SHORT_S = 1.0

FILES = sorted(
    path
    for path in TESTS.rglob("*.py")
    if path.name != "patience.py" and not any(word in path.read_text("utf-8") for word in VIRTUAL)
)


def seconds(node: ast.AST) -> float:
    """The number that stands there written out, else 0."""
    value = node.value if isinstance(node, ast.Constant) else None
    return float(value) if isinstance(value, int | float) else 0.0


def called(node: ast.AST) -> str:
    """The last word of what is called, else nothing."""
    function = node.func if isinstance(node, ast.Call) else None
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def limit_of(node: ast.AST) -> float:
    """The limit that an expression sets, else 0."""
    if isinstance(node, ast.Call) and called(node) not in SETTINGS:
        method = f".{called(node)}" if isinstance(node.func, ast.Attribute) else ""
        at = BY_POSITION.get(method, BY_POSITION.get(called(node), len(node.args)))
        named = [one.value for one in node.keywords if one.arg in BY_NAME]
        return max(map(seconds, [*node.args[at : at + 1], *named]), default=0.0)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add) and called(node.left) in CLOCKS:
        return seconds(node.right)
    if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Lt | ast.LtE):
        timed = any(called(one) in CLOCKS for one in ast.walk(node.left))
        return seconds(node.comparators[0]) if timed else 0.0
    return 0.0


def limits(text: str) -> Iterator[str]:
    """Where a program sets limits of its own."""
    for node in ast.walk(ast.parse(text)):
        if (limit_s := limit_of(node)) > SHORT_S:
            yield f"line {getattr(node, 'lineno', 0)}: {limit_s:g} s"


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("time.sleep(1.5)", True),
        ("run(command, timeout=60)", True),
        ("process.wait(30)", True),
        ("future.result(30)", True),
        ("result(30)", False),
        ("process.communicate(None, 30)", True),
        ("await asyncio.wait_for(done, 30)", True),
        ("until(what, within_s=3)", True),
        ("deadline = time.monotonic() + 60", True),
        ("assert time.monotonic() - began < 5", True),
        ("time.sleep(0.05)", False),
        ("run(command, timeout=limit_s())", False),
        ("process.wait()", False),
        ("connect(file, timeout=0)", False),
        ("assert time.monotonic() - began >= 5", False),
    ],
)
def test_a_limit_is_seen_in_each_of_its_forms(text: str, refused: bool) -> None:
    assert bool([*limits(text)]) is refused


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(TESTS)))
def test_waits_have_the_limit_of_all_tests(path: Path) -> None:
    found = [*limits(path.read_text(encoding="utf-8"))]
    assert found == [], "patience.py has them: until, until_async, limit_s, scaled"
