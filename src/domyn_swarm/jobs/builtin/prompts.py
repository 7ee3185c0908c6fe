"""Prompt templates over a row's columns: Jinja with access to rows, and to nothing of Python.

A name is a column, `row["any name"]` is a column, too, `a.b` is the field `b` of an object. There
are no functions, no methods and no attributes; filters and tests take their place.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from jinja2 import TemplateError, TemplateSyntaxError, meta, nodes
from jinja2.visitor import NodeTransformer

from domyn_swarm.errors import ConfigError, InvalidInput
from domyn_swarm.jobs.builtin.render_limits import STEP_CHARACTERS, TooMuch, Work, rendering
from domyn_swarm.jobs.builtin.row_language import LITERAL, MADE, STEP, rows
from domyn_swarm.jobs.builtin.row_text import NullInPrompt, without_nan

_ROW = "row"
_SIGNS = {"'end of print statement'": "}}", "'end of statement block'": "%}"}  # as they are typed
_INSTEAD = {
    "items": "items",
    "strip": "trim",
    "keys": "list",
    "format": "format",
    "get": 'default("…")',
}
"""Filters instead of methods that have another name."""
_OTHER_TEMPLATES = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)
_NAMED = re.compile(r"\{\{\s*(\w[\w .:/#&-]*?)\s*\}\}")


class _Columns(NodeTransformer):
    """Rewrites each `row["name"]` as an item of the row under a name that the template does not
    use, and collects the columns; joins values with `~` as text, and marks the template's own
    lists.
    """

    def __init__(self, row: str, *, whole: bool) -> None:
        self._row = row
        self._whole = whole  # whether `row` is the row, not a variable of the template
        self.named: set[str] = set()

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802 - Jinja's
        """`row["name"]`."""
        name = node.arg.value if isinstance(node.arg, nodes.Const) else None
        return self._column(node, node.node, name)

    def visit_Getattr(self, node: nodes.Getattr) -> nodes.Node:  # noqa: N802 - Jinja's
        """`row.name`."""
        return self._column(node, node.node, node.attr)

    def visit_Name(self, node: nodes.Name) -> nodes.Node:  # noqa: N802 - Jinja's
        """`self`, which Jinja would resolve to the template."""
        return self._item(node, "self") if node.name == "self" and node.ctx == "load" else node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802 - Jinja's
        """`a ~ b`."""
        self.generic_visit(node)
        texts = [nodes.Filter(one, "string", [], [], None, None) for one in node.nodes]
        joined = nodes.Concat(texts, lineno=node.lineno)
        return nodes.Filter(joined, MADE, [], [], None, None, lineno=node.lineno)

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - Jinja's
        """`{% for %}`."""
        return self._counted(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:  # noqa: N802 - Jinja's
        """`{% macro %}`."""
        return self._counted(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:  # noqa: N802 - Jinja's
        """`{% call %}`."""
        return self._counted(node)

    def _counted(self, node: nodes.For | nodes.Macro | nodes.CallBlock) -> nodes.Node:
        """What may be done again and again, beginning with a step that is counted."""
        own = sum(len(one.data) for one in node.find_all(nodes.TemplateData))
        self.generic_visit(node)
        cost = nodes.Const(STEP_CHARACTERS + own)
        step = nodes.Filter(cost, STEP, [], [], None, None, lineno=node.lineno)
        node.body.insert(0, nodes.ExprStmt(step, lineno=node.lineno))
        return node

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802 - Jinja's
        """`[a, b]`."""
        return self._literal(node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802 - Jinja's
        """`{"a": b}`."""
        return self._literal(node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802 - Jinja's
        """`a, b`, unless it is a target."""
        return self._literal(node) if node.ctx == "load" else self._deeper(node)

    def _literal(self, node: nodes.Expr) -> nodes.Node:
        self.generic_visit(node)
        return nodes.Filter(node, LITERAL, [], [], None, None, lineno=node.lineno)

    def _column(self, node: nodes.Node, inside: nodes.Expr, name: Any) -> nodes.Node:  # noqa: ANN401 - a constant
        of_row = self._whole and isinstance(inside, nodes.Name) and inside.name == _ROW
        return self._item(node, name) if of_row and isinstance(name, str) else self._deeper(node)

    def _deeper(self, node: nodes.Node) -> nodes.Node:
        self.generic_visit(node)
        return node

    def _item(self, node: nodes.Node, name: str) -> nodes.Node:
        self.named.add(name)
        row = nodes.Name(self._row, "load", lineno=node.lineno)
        return nodes.Getitem(row, nodes.Const(name), "load", lineno=node.lineno)


class PromptTemplate:
    """Text with `{{ column }}` in it. Lists and objects are written as JSON, numbers in their
    original form.

    A null is a row error, so that no prompt contains `None`, and so is a number that is NaN.
    """

    def __init__(self, text: str, what: str) -> None:
        """`what` names the template in errors: `prompt`, `system`.

        Raises:
            ConfigError: it is not valid Jinja, or uses features of Python; names the line.
        """
        self.text = text
        self._what = what
        try:
            tree = rows.parse(text)
            _check(tree, what)
            self.columns = self._compiled(tree)
        except TemplateSyntaxError as error:
            why = (error.message or "").rstrip(".")
            for words, sign in _SIGNS.items():
                why = why.replace(words, sign)
            raise ConfigError(
                f"The {what} template is wrong in line {error.lineno}: {why}.",
                hint=_spelling(text.splitlines()[error.lineno - 1 : error.lineno]),
            ) from error
        except RecursionError:
            raise ConfigError(
                f"The {what} template is nested too deep.",
                hint="Write long expressions in parts: {% set part = … %}.",
            ) from None

    def _compiled(self, tree: nodes.Template) -> tuple[str, ...]:
        """Compile the template from its tree; returns the columns that it names."""
        used = meta.find_undeclared_variables(tree)
        own = {one.name for one in tree.find_all(nodes.Name) if one.ctx != "load"}
        if _ROW in used & own:
            raise ConfigError(
                f"The {self._what} template uses `row` for the row and for a variable of its own.",
                hint="Call the variable something else.",
            )
        self._row = next(name for name in _unlike(_ROW) if name not in used | own)
        columns = _Columns(self._row, whole=_ROW in used)
        tree = columns.visit(rows.parse(self.text))  # the search has evaluated lists to constants
        tree.set_environment(rows)
        self._template = rows.from_string(tree)
        used = meta.find_undeclared_variables(tree) - {self._row}
        return tuple(sorted(used | columns.named))

    @property
    def columns_in_order(self) -> Sequence[str]:
        """The columns as the template first names them."""

        def first_named(column: str) -> int:
            found = re.search(rf"\{{[{{%][^{{}}]*?(?<!\w){re.escape(column)}(?!\w)", self.text)
            return found.end() if found else len(self.text)

        return sorted(self.columns, key=first_named)

    def check_columns(self, there: Sequence[str]) -> None:
        """Check that the rows have the template's columns.

        Raises:
            InvalidInput: names the missing ones, and similar ones.
        """
        for name in self.columns:
            if name not in there:
                close = _meant(name, there)
                meant = f"Did you mean {' or '.join(map(_written, close))}? " if close else ""
                raise InvalidInput(
                    f"The {self._what} template uses the column {name!r}, which the input lacks.",
                    hint=f"{meant}It has: {', '.join(there)}.",
                )

    def render(self, columns: Mapping[str, Any]) -> str:
        """The text of one row.

        Raises:
            TooMuch: the template does more for the row than any prompt needs; a row error.
            ValueError: a column is null or has no text form; a row error.
        """
        values = {name: without_nan(columns[name]) for name in self.columns}
        before = rendering.set(Work(values))
        try:
            return self._template.render({**values, self._row: values})
        except NullInPrompt as error:
            null = [name for name in self.columns if values[name] is None]
            which = f" ({', '.join(null)})" if null else ""
            hint = "`{{ column or '' }}` or `{{ column | default('…') }}` would allow it"
            raise ValueError(f"{error}{which}; {hint}") from error
        except TooMuch as error:
            raise TooMuch(f"the {self._what} template makes {error}") from error
        except (TemplateError, TypeError, ArithmeticError, LookupError, RecursionError) as error:
            raise ValueError(f"the prompt cannot be made: {error}") from error
        finally:
            rendering.reset(before)


def _check(tree: nodes.Template, what: str) -> None:
    """Refuse features of Python, and references to other files."""
    other = next(iter(tree.find_all(_OTHER_TEMPLATES)), None)
    if other is not None:
        raise ConfigError(
            f"The {what} template refers to another template in line {other.lineno}.",
            hint="Write it out: a prompt is one template.",
        )
    macros = {one.name for one in tree.find_all(nodes.Macro)}
    for call in tree.find_all(nodes.Call):
        if not _is_of_jinja(call.node, macros):
            raise ConfigError(
                f"The {what} template calls {_called(call.node)}() in line {call.lineno}: "
                "what a row holds has no functions and no methods.",
                hint=_filter_instead(call.node),
            )


def _is_of_jinja(called: nodes.Expr, macros: set[str]) -> bool:
    if isinstance(called, nodes.Getattr):
        inside = called.node
        return isinstance(inside, nodes.Name) and inside.name == "loop"
    return isinstance(called, nodes.Name) and called.name in {*macros, "caller", "loop"}


def _called(called: nodes.Expr) -> str:
    return str(getattr(called, "attr", getattr(called, "name", "something")))


def _filter_instead(called: nodes.Expr) -> str:
    name = _called(called)
    instead = _INSTEAD.get(name, name if name in rows.filters else "")
    written = f"write {{{{ value | {instead} }}}}" if instead else "as in {{ text | upper }}"
    return f"Use a filter: {written}."


def _unlike(name: str) -> Iterable[str]:
    while True:
        name = f"_{name}"
        yield name


def _spelling(lines: Sequence[str]) -> str:
    """The hint how to write a column whose name is not a single word."""
    for line in lines:
        for inner in _NAMED.findall(line):
            if not inner.isidentifier():
                return f"A column of any name stands in it as {_written(inner)}."
    return 'A column stands in it as {{ name }}, or as {{ row["any name"] }}.'


def _written(column: str) -> str:
    if column.isidentifier() and column not in ("self", _ROW):
        return f"{{{{ {column} }}}}"
    return f"{{{{ row[{msgspec.json.encode(column).decode()}] }}}}"


def _meant(name: str, there: Sequence[str]) -> list[str]:
    """Columns that may be meant: with a similar spelling, or equal except for characters that Jinja
    does not allow.
    """
    longer = [one for one in there if re.split(r"\W", one)[0].lower() == name.lower()]
    return (longer or difflib.get_close_matches(name, there, 2))[:2]
