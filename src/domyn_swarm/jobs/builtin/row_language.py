"""The Jinja environment of prompt templates: values of rows, with items instead of attributes,
without Python objects, and with filters that refuse nulls.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
from jinja2 import StrictUndefined, Undefined
from jinja2.filters import FILTERS, make_attrgetter
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import missing, pass_context, pass_environment
from typing_extensions import override

from domyn_swarm.jobs.builtin.render_limits import (
    BOUNDED_FILTERS,
    STEP_CHARACTERS,
    before_filter,
    before_format,
    before_operator,
    check_indent,
    spend,
    spend_items,
)
from domyn_swarm.jobs.builtin.row_text import NullInPrompt, json_of, literal, text_of

LITERAL, STEP, MADE = "=literal", "=step", "=made"
"""Filters that no template can name. They mark literals of the template, count the steps of loops,
and count concatenated text.
"""
_OF_TEXT = (
    *("capitalize", "center", "e", "escape", "forceescape", "indent", "lower", "replace", "safe"),
    *("striptags", "title", "trim", "truncate", "upper", "urlize", "wordcount"),
    "wordwrap",
)
"""Jinja's filters that convert any value to text."""
_OF_VALUES = ("filesizeformat", "float", "int", "urlencode")
"""Jinja's filters that would convert a null to another value."""
_OF_PYTHON = ("attr", "pprint", "xmlattr")


class _Missing(StrictUndefined):
    """A missing value, whose error speaks of rows, objects and lists."""

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
    """A sandboxed Jinja in which attribute access reads items of a row's values."""

    intercepted_binops = frozenset({"%", "+", "*", "**"})

    @override
    def getitem(self, obj: Any, argument: Any) -> Any:
        """An item of an object or a list."""
        try:
            return obj[argument]
        except (TypeError, LookupError):
            return self.undefined(obj=obj, name=argument)

    @override
    def getattr(self, obj: Any, attribute: str) -> Any:
        """As `getitem`; only loops and groups have attributes."""
        if isinstance(obj, LoopContext) or attribute in getattr(obj, "_fields", ()):
            return super().getattr(obj, attribute)
        return self.getitem(obj, attribute)

    @override
    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Count what an operator makes; `%` after text formats values as a prompt shows them."""
        before_operator(operator, left, right)
        if operator == "%" and isinstance(left, str):
            return _format(left, *(right if isinstance(right, tuple) else (right,)))
        return super().call_binop(context, operator, left, right)


def _shown(value: Any) -> str:  # noqa: ANN401 - a value of a template
    """As `text_of`; a missing value raises its error."""
    return str(value) if isinstance(value, Undefined) else text_of(value)


def _put(value: Any) -> str:  # noqa: ANN401 - a value of a template
    """The text of a value in the prompt."""
    text = _shown(value)
    if len(text) > STEP_CHARACTERS:  # shorter ones count as steps of the loops around them
        spend(len(text))
    return text


@pass_context  # without a context Jinja would compute it once, as a constant, and not count
def _step(_context: Any, characters: int) -> None:  # noqa: ANN401 - Jinja's
    spend(characters)


@pass_context
def _made(_context: Any, text: str) -> str:  # noqa: ANN401 - Jinja's
    spend(len(text))
    return text


def _given(value: Any) -> Any:  # noqa: ANN401 - a filter's argument
    if value is None:
        raise NullInPrompt("a value in the prompt is null")
    return value


def _as_it_is(value: Any) -> Any:  # noqa: ANN401 - a filter's argument
    return value


def _taking(name: str, first: Callable[[Any], Any]) -> Callable[..., Any]:
    """Jinja's filter of that name, applied to `first` of its value. A null argument is refused."""
    inner = FILTERS[name]
    at = int(hasattr(inner, "jinja_pass_arg"))

    @functools.wraps(inner)
    def taking(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - see Jinja
        value, rest = first(args[at]), list(map(_given, args[at + 1 :]))
        if name in BOUNDED_FILTERS:
            before_filter(name, value, *rest, **kwargs)
        made = inner(*args[:at], value, *rest, **kwargs)
        if isinstance(made, str):
            spend(len(made))
        return made

    return taking


def _format(text: str, *args: Any, **named: Any) -> str:
    before_format(text, args)

    def shown(value: Any) -> Any:  # noqa: ANN401 - a value
        text = _shown(value)
        return value if type(value) is int or isinstance(value, float) else text

    return text % ({name: shown(one) for name, one in named.items()} or tuple(map(shown, args)))


def _default(value: Any, other: Any = "", falsy: bool = False) -> Any:  # noqa: ANN401 - Jinja's
    """The replacement for a value that is null or missing, with `falsy` also for an empty one."""
    absent = isinstance(value, Undefined) or value is None
    return other if absent or (falsy and not value) else value


@pass_environment
def _join(env: _Rows, values: Iterable[Any], between: str = "", attribute: Any = None) -> str:  # noqa: ANN401 - Jinja's
    inner = values if attribute is None else map(make_attrgetter(env, attribute), values)
    texts, between = list(map(_shown, inner)), _shown(between)
    spend(sum(map(len, texts)) + len(between) * len(texts))
    return between.join(texts)


@pass_context  # without a context Jinja would compute it as a constant: a plain list
def _literal(_context: Any, value: Any) -> Any:  # noqa: ANN401 - Jinja's
    made = literal(value)
    spend_items(made.weight)
    return made


def _tojson(value: Any, indent: int | None = None) -> str:  # noqa: ANN401 - a value
    text = json_of(value)
    spend(len(text))
    check_indent(indent or 0)
    return text if indent is None else msgspec.json.format(text, indent=indent)


def _environment() -> _Rows:
    env = _Rows(
        undefined=_Missing,
        finalize=_put,
        keep_trailing_newline=True,
        autoescape=False,  # prompts are text, not HTML
    )
    env.globals.clear()
    env.filters = {name: one for name, one in FILTERS.items() if name not in _OF_PYTHON}
    env.filters |= {name: _taking(name, _shown) for name in _OF_TEXT}
    env.filters |= {name: _taking(name, _given) for name in _OF_VALUES}
    env.filters |= {
        name: _taking(name, _as_it_is) for name in BOUNDED_FILTERS if name not in _OF_TEXT
    }
    env.filters |= {"default": _default, "d": _default, "join": _join, "string": _shown}
    env.filters |= {"format": _format, "tojson": _tojson}
    env.filters |= {LITERAL: _literal, STEP: _step, MADE: _made}
    return env


rows = _environment()
"""The environment of all templates."""
