"""The source of a definition in a module, a script or a notebook cell, and the names in it."""

from __future__ import annotations

import ast
import builtins
import inspect
import linecache
import re
import symtable
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from types import FunctionType
from typing import Any

_CELLS = re.compile(r"^<ipython-input-|[/\\]ipykernel_\d+[/\\]|^<stdin>|^<python-input-")


def names_of(text: str) -> set[str]:
    """The free names of a piece of source."""
    outside: set[str] = set()
    tables = [symtable.symtable(text, "job", "exec")]
    for table in tables:
        tables.extend(table.get_children())
        top = table.get_type() == "module"
        for symbol in table.get_symbols():
            is_outside = symbol.is_global() or (top and not symbol.is_assigned())
            if symbol.is_referenced() and is_outside:
                outside.add(symbol.get_name())
    return outside - set(dir(builtins))


def namespace_of(defined: type | Callable[..., Any]) -> Mapping[str, Any]:
    """The values of the names in a definition: of its module, and of its closure."""
    module = vars(sys.modules[defined.__module__])
    functions = [defined] if isinstance(defined, FunctionType) else vars(defined).values()
    closed: dict[str, Any] = {}
    for function in functions:
        if isinstance(function, FunctionType):
            closed |= inspect.getclosurevars(function).nonlocals
    own = defined.__globals__ if isinstance(defined, FunctionType) else module
    return {**own, **closed}


def source_text(defined: type | Callable[..., Any]) -> str | None:
    """The user's source, also from a cell; None: it is not available."""
    try:
        return textwrap.dedent(inspect.getsource(defined)).rstrip()
    except (OSError, TypeError):  # a class from a cell: its module has no file
        return _newest(
            lambda node: isinstance(node, ast.ClassDef) and node.name == defined.__name__
        )


def assignment_of(name: str) -> str | None:
    """The last statement of the script, or of the cells, that assigns to a name."""

    def gives(node: ast.stmt) -> bool:
        targets = node.targets if isinstance(node, ast.Assign) else []
        return any(isinstance(one, ast.Name) and one.id == name for one in targets)

    return _newest(gives)


def _newest(wanted: Callable[[ast.stmt], bool]) -> str | None:
    """The last statement of the script or of the cells that matches."""
    for text in _texts():
        try:
            body = ast.parse(text).body
        except SyntaxError:
            continue
        for node in reversed(body):
            if wanted(node):
                decorators = getattr(node, "decorator_list", [])
                first = min([node.lineno, *(one.lineno for one in decorators)])
                return "\n".join(text.splitlines()[first - 1 : node.end_lineno])
    return None


def _texts() -> Iterator[str]:
    """The script, or the cells with the newest first."""
    script = getattr(sys.modules["__main__"], "__file__", None)
    if script is not None:
        yield "".join(linecache.getlines(script))
    for name in reversed(list(linecache.cache)):
        if _CELLS.search(name):
            yield "".join(linecache.getlines(name))
