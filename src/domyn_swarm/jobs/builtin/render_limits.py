"""Limits what a template may do for one row: the steps of its loops, and the size of text and lists
that it makes.

Without a limit two nested loops over a long list, or `{{ 'x' * 10**9 }}`, would block a whole job
or exhaust the memory of its machine.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from typing import Any

MOST_CHARACTERS = 1 << 27
MOST_STEPS = 1 << 18
STEP_CHARACTERS = MOST_CHARACTERS // MOST_STEPS
"""The cost of a step, in characters."""
_TIMES_THE_ROW = 16  # a row adds so many times its own size to its allowance
_ITEM = 64  # the cost of a list's item, in characters: a loop may take two steps for each
_FOLDED_CHARACTERS = 1 << 16  # of a constant that Jinja computes when it compiles a template
_MOST_BITS = 1 << 14  # Python prints integers of up to 4,300 digits
_MOST_DIGITS = 400  # after the decimal point: no number has more
_MOST_INDENT = 100
_WIDTHS = re.compile(r"%(?:\([^)]*\))?[#0 +-]*(\*|\d+)?(?:\.(\*|\d+))?")


class TooMuch(ValueError):
    """A template does more for a row than any prompt needs."""

    def __init__(self, why: str = "") -> None:
        """`why`: what it does, if that is neither many steps nor much text."""
        of_all = (
            f"more than {MOST_STEPS:,} steps of its loops or {MOST_CHARACTERS:,} characters "
            "of one row"
        )
        super().__init__(why or of_all)


class Work:
    """The remaining allowance of one row, in characters."""

    __slots__ = ("_left", "_values")

    def __init__(self, values: Mapping[str, Any]) -> None:
        """`values`: of the row. A larger row has a larger allowance."""
        self._left = MOST_CHARACTERS
        self._values: Mapping[str, Any] | None = values

    def spend(self, characters: int) -> None:
        """Subtract characters from the allowance.

        Raises:
            TooMuch: it is exhausted.
        """
        self._left -= characters
        if self._left < 0 and self._values is not None:  # rare: values are measured only once
            self._left += _TIMES_THE_ROW * _size(self._values)
            self._values = None
        if self._left < 0:
            raise TooMuch


rendering: ContextVar[Work | None] = ContextVar("rendering", default=None)
"""The allowance of the row whose prompt is being rendered; None: a template is being compiled."""


def spend(characters: int) -> None:
    """Count characters that are about to be made. Raises `TooMuch`."""
    work = rendering.get()
    if work is not None:
        work.spend(characters)
    elif characters > _FOLDED_CHARACTERS:
        raise TooMuch


def _size(value: Any) -> int:  # noqa: ANN401 - a row's value
    if isinstance(value, Mapping):
        return sum(len(str(name)) + _size(one) for name, one in value.items())
    if isinstance(value, list | tuple):
        return sum(map(_size, value))
    return len(value) if isinstance(value, str) else _ITEM


def spend_items(items: int) -> None:
    """Count the items of a list that is about to be made. Raises `TooMuch`."""
    spend(items * _ITEM)


def _weight(value: Any) -> int | None:  # noqa: ANN401 - a value of a template
    """The cost of text or a list, in characters; None: it is neither."""
    if isinstance(value, str):
        return len(value)
    return len(value) * _ITEM if isinstance(value, list | tuple) else None


def before_operator(operator: str, left: Any, right: Any) -> None:  # noqa: ANN401 - see Jinja
    """Count what `left operator right` will make. Raises `TooMuch`."""
    if operator == "+":
        spend((_weight(left) or 0) + (_weight(right) or 0))
    elif operator == "*":
        for one, times in ((left, right), (right, left)):
            weight = _weight(one)
            if weight is not None and isinstance(times, int):
                spend(weight * max(times, 0))
        if isinstance(left, int) and isinstance(right, int):
            _check_bits(left.bit_length() + right.bit_length())
    elif operator == "**" and isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() * right)


def _check_bits(bits: int) -> None:
    if bits > _MOST_BITS:
        raise TooMuch("an integer of more than 4,300 digits")


def before_format(text: str, args: Iterable[Any]) -> None:
    """Count the widths of what `text % args` will make. Raises `TooMuch`."""
    widths = _WIDTHS.findall(text)
    spend(sum(int(one) for pair in widths for one in pair if one.isdigit()))
    if any("*" in pair for pair in widths):  # widths are among the values
        spend(sum(abs(one) for one in args if isinstance(one, int)))


def _of_center(value: str, width: int = 80) -> int:
    return max(width, len(value))


def _of_indent(value: str, width: int | str = 4, *_: Any, **__: Any) -> int:
    each = len(width) if isinstance(width, str) else max(width, 0)
    return len(value) + each * (value.count("\n") + 1)


def _of_replace(value: str, old: Any, new: Any, count: int | None = None) -> int:  # noqa: ANN401 - Jinja's
    times = value.count(str(old))
    times = times if count is None or count < 0 else min(times, count)
    return len(value) + times * len(str(new))


def _of_wordwrap(
    value: str,
    width: int = 79,
    break_long_words: bool = True,  # noqa: ARG001 - Jinja's
    wrapstring: str | None = None,
    break_on_hyphens: bool = True,  # noqa: ARG001
) -> int:
    return len(value) + len(value) // max(width, 1) * len(wrapstring or "\n")


def _of_batch(value: Any, linecount: int, fill_with: Any = None) -> int:  # noqa: ANN401, ARG001 - Jinja's
    return abs(linecount) * _ITEM


def _of_round(value: Any, precision: int = 0, method: str = "common") -> int:  # noqa: ANN401, ARG001 - Jinja's
    if abs(precision) > _MOST_DIGITS:
        raise TooMuch(f"a number with {precision:,} digits after the decimal point")
    return 0


_BEFORE: Mapping[str, Callable[..., int]] = {
    "center": _of_center,
    "indent": _of_indent,
    "replace": _of_replace,
    "wordwrap": _of_wordwrap,
    "batch": _of_batch,
    "slice": _of_batch,
    "round": _of_round,
}
"""The filters whose arguments determine how much they make; each value computes the characters."""


def before_filter(name: str, value: Any, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - Jinja's
    """Count what a filter will make. Raises `TooMuch`, or TypeError for invalid arguments."""
    spend(_BEFORE[name](value, *args, **kwargs))


BOUNDED_FILTERS = tuple(_BEFORE)


def check_indent(indent: int) -> None:
    """Refuse an indentation of JSON that no prompt needs. Raises `TooMuch`."""
    if indent > _MOST_INDENT:
        raise TooMuch(f"JSON indented by {indent:,} characters")
