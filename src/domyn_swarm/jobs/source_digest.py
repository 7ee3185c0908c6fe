"""A digest of a job's code, for its identity: from syntax trees, so that comments and layout do not
count.

The code includes what it refers to in its own module, script or cells: functions, classes, plain
values, closure variables. Code that the job imports is not covered, nor are variables that the code
itself assigns (`global`).
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any

from domyn_swarm.jobs.source_text import names_of, namespace_of, source_text


def source_digest(cls: type, base: type) -> str:
    """A digest of a class and its bases, up to `base`.

    A class with a `version` of its own is identified by that, whatever its source.
    """
    ancestors = [one for one in cls.__mro__ if one not in (base, object)]
    seen: set[int] = set()
    return _digest([part for one in ancestors for part in _of_class(one, seen)])


def _of_class(cls: type, seen: set[int]) -> list[str]:
    version = cls.__dict__.get("version")
    if version is None:
        return _code(cls, seen)
    ours = cls.__module__ if cls.__module__.startswith("domyn_swarm.") else ""
    return [f"{ours}:{cls.__qualname__}:{version}"]


def function_digest(function: Callable[..., Any]) -> str:
    """A digest of a function, without its decorators, whose settings are among the job's fields."""
    return _digest(_code(function, set()))


def _code(defined: type | Callable[..., Any], seen: set[int]) -> list[str]:
    """The trees of a definition and of the definitions that it refers to."""
    if id(defined) in seen:
        return []
    seen.add(id(defined))
    text = source_text(defined)
    if text is None:
        return [f"{defined.__module__}:{defined.__qualname__}"]  # no source: only its name counts
    around = namespace_of(defined)
    names = names_of(text) - {defined.__name__} - _assigned_globals(text)
    parts = [_tree(text)]
    for name in sorted(names & around.keys()):
        parts += _named(name, around[name], defined.__module__, seen)
    return parts


def _named(name: str, value: Any, module: str, seen: set[int]) -> list[str]:  # noqa: ANN401 - a global
    if isinstance(value, ModuleType):
        return [f"{name}={value.__name__}"]
    function = getattr(value, "function", None)
    defined = function if isinstance(function, FunctionType) else value
    if isinstance(defined, FunctionType | type):
        if defined.__module__ != module:
            return [f"{name}={defined.__module__}:{defined.__qualname__}"]
        return [
            name,
            *(_of_class(defined, seen) if isinstance(defined, type) else _code(defined, seen)),
        ]
    try:
        if ast.literal_eval(repr(value)) == value:
            return [f"{name}={value!r}"]
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        pass
    return [f"{name}:{type(value).__qualname__}"]


def _assigned_globals(text: str) -> set[str]:
    """Names that the code declares `global`: variables in which it counts or collects."""
    return {
        name
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Global)
        for name in node.names
    }


def _tree(text: str) -> str:
    tree = ast.parse(text)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.decorator_list = []
    return ast.dump(tree)


def _digest(parts: list[str]) -> str:
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=12).hexdigest()
