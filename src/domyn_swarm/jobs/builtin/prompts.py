"""Prompt templates over a row's columns: Jinja with access to rows, and to nothing of Python.

A name is a column, `row["any name"]` is a column, too, `a.b` is the field `b` of an object. There
are no functions, no methods and no attributes; filters and tests take their place.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec
from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, Undefined, meta, nodes
from jinja2.filters import FILTERS, make_attrgetter
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import missing, pass_context, pass_environment
from jinja2.visitor import NodeTransformer
from typing_extensions import override

from domyn_swarm.errors import ConfigError, InvalidInput
from domyn_swarm.jobs.builtin.row_text import NullInPrompt, json_of, literal, text_of, without_nan

_ROW = "row"
_SIGNS = {"'end of print statement'": "}}", "'end of statement block'": "%}"}  # as they are typed
_LITERAL = "=literal"  # a filter whose name no template can contain
_OF_TEXT = (
    *("capitalize", "center", "e", "escape", "forceescape", "indent", "lower", "replace", "safe"),
    *("striptags", "title", "trim", "truncate", "upper", "urlize", "wordcount"),
    "wordwrap",
)
"""Jinja's filters that convert their value to text."""
_OF_VALUES = ("filesizeformat", "float", "int", "urlencode")
"""Filters that would treat a null as a value."""
_OF_PYTHON = ("attr", "pprint", "xmlattr")
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


class _Missing(StrictUndefined):
    """A missing column or field; the message names it in terms of rows."""

    @property
    @override
    def _undefined_message(self) -> str:
        name, inside = self._undefined_name, self._undefined_obj
        if inside is missing or inside is None:
            return super()._undefined_message
        if isinstance(inside, dict):
            return f"an object has no {name!r}; it has: {', '.join(map(str, inside)) or 'nothing'}"
        kinds: dict[type, str] = {str: "text", list: "a list"}
        kind = kinds.get(type(inside), f"a {type(inside).__name__}")
        return f"{kind} has no {name!r}"


class _Rows(ImmutableSandboxedEnvironment):
    """Jinja with the values of rows: items instead of attributes."""

    intercepted_binops = frozenset({"%"})

    @override
    def getitem(self, obj: Any, argument: Any) -> Any:
        """An item of an object or a list."""
        try:
            return obj[argument]
        except (TypeError, LookupError):
            return self.undefined(obj=obj, name=argument)

    @override
    def getattr(self, obj: Any, attribute: str) -> Any:
        """The same; only loops and groups have attributes."""
        if isinstance(obj, LoopContext) or attribute in getattr(obj, "_fields", ()):
            return super().getattr(obj, attribute)
        return self.getitem(obj, attribute)

    @override
    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """`%` after text formats values into it."""
        if isinstance(left, str):
            return _format(left, *(right if isinstance(right, tuple) else (right,)))
        return super().call_binop(context, operator, left, right)


def _shown(value: Any) -> str:  # noqa: ANN401 - a value of a template
    """The text of a value, see `text_of`; an undefined value raises its error."""
    return str(value) if isinstance(value, Undefined) else text_of(value)


def _argument(value: Any) -> Any:  # noqa: ANN401 - a filter's argument
    if value is None:
        raise NullInPrompt("a value in the prompt is null")
    return value


def _taking(name: str, first: Callable[[Any], Any]) -> Callable[..., Any]:
    """A filter of Jinja's whose value is passed through `first`, and is not null."""
    inner = FILTERS[name]
    at = int(hasattr(inner, "jinja_pass_arg"))

    @functools.wraps(inner)
    def taking(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - see Jinja
        rest = map(_argument, args[at + 1 :])
        return inner(*args[:at], first(args[at]), *rest, **kwargs)

    return taking


def _format(text: str, *args: Any, **named: Any) -> str:
    def shown(value: Any) -> Any:  # noqa: ANN401 - a value
        return value if type(value) is int or isinstance(value, float) else _shown(value)

    return text % ({name: shown(one) for name, one in named.items()} or tuple(map(shown, args)))


def _default(value: Any, other: Any = "", falsy: bool = False) -> Any:  # noqa: ANN401 - Jinja's
    """A default for a value that is null or missing; with `falsy` for an empty one, too."""
    absent = isinstance(value, Undefined) or value is None
    return other if absent or (falsy and not value) else value


@pass_environment
def _join(env: _Rows, values: Iterable[Any], between: str = "", attribute: Any = None) -> str:  # noqa: ANN401 - Jinja's
    inner = values if attribute is None else map(make_attrgetter(env, attribute), values)
    return _shown(between).join(map(_shown, inner))


@pass_context  # Jinja evaluates constant expressions itself, and would write them as plain lists
def _literal(_context: Any, value: Any) -> Any:  # noqa: ANN401 - Jinja's
    return literal(value)


def _tojson(value: Any, indent: int | None = None) -> str:  # noqa: ANN401 - a value
    text = json_of(value)
    return text if indent is None else msgspec.json.format(text, indent=indent)


def _environment() -> _Rows:
    env = _Rows(
        undefined=_Missing,
        finalize=_shown,
        keep_trailing_newline=True,
        autoescape=False,  # prompts are text, not HTML
    )
    env.globals.clear()
    env.filters = {name: one for name, one in FILTERS.items() if name not in _OF_PYTHON}
    env.filters |= {name: _taking(name, _shown) for name in _OF_TEXT}
    env.filters |= {name: _taking(name, _argument) for name in _OF_VALUES}
    env.filters |= {"default": _default, "d": _default, "join": _join, "string": _shown}
    env.filters |= {"format": _format, "tojson": _tojson, _LITERAL: _literal}
    return env


_rows = _environment()


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
        return nodes.Concat(texts, lineno=node.lineno)

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
        return nodes.Filter(node, _LITERAL, [], [], None, None, lineno=node.lineno)

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
            tree = _rows.parse(text)
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
        tree = columns.visit(_rows.parse(self.text))  # the search has evaluated lists to constants
        tree.set_environment(_rows)
        self._template = _rows.from_string(tree)
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
            ValueError: a column is null or has no text form; a row error.
        """
        values = {name: without_nan(columns[name]) for name in self.columns}
        try:
            return self._template.render({**values, self._row: values})
        except NullInPrompt as error:
            null = [name for name in self.columns if values[name] is None]
            which = f" ({', '.join(null)})" if null else ""
            hint = "`{{ column or '' }}` or `{{ column | default('…') }}` would allow it"
            raise ValueError(f"{error}{which}; {hint}") from error
        except (TemplateError, TypeError, ArithmeticError, LookupError, RecursionError) as error:
            raise ValueError(f"the prompt cannot be made: {error}") from error


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
    instead = _INSTEAD.get(name, name if name in _rows.filters else "")
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
