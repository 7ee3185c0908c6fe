"""What a job's code is, for its identity: syntax trees, so that comments and layout do not count.

Code that the job imports is not covered.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import textwrap
from collections.abc import Callable
from typing import Any


def source_digest(cls: type, base: type) -> str:
    """A digest of a class and those it inherits from, up to `base`.

    A class that has a `version` of its own is that version, whatever its source.
    """
    ancestors = [one for one in cls.__mro__ if one not in (base, object)]
    return _digest([_of_class(one) for one in ancestors])


def _of_class(cls: type) -> str:
    version = cls.__dict__.get("version")
    if version is None:
        return _tree(cls)
    ours = cls.__module__ if cls.__module__.startswith("domyn_swarm.") else ""
    return f"{ours}:{cls.__qualname__}:{version}"


def function_digest(function: Callable[..., Any]) -> str:
    """A digest of a function, without its decorators: what they say is in the job's fields."""
    return _digest([_tree(function)])


def _tree(defined: type | Callable[..., Any]) -> str:
    try:
        source = textwrap.dedent(inspect.getsource(defined))
    except (OSError, TypeError):
        return f"{defined.__module__}:{defined.__qualname__}"  # no source: the name must do
    tree = ast.parse(source)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.decorator_list = []
    return ast.dump(tree)


def _digest(parts: list[str]) -> str:
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=12).hexdigest()
