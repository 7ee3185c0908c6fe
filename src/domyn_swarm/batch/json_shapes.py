"""Which Arrow type holds the values of a JSON column, all of them as they are; or why none does.

A shape takes one value after the other, in time that grows with the values alone. What no one type
holds without loss (text beside numbers, objects with other keys, numbers beyond all types) stays
JSON text.
"""

from __future__ import annotations

from collections.abc import KeysView
from dataclasses import dataclass, field
from typing import Any, Self

import pyarrow as pa

from domyn_swarm.batch.json_values import JSON

_EXACT = 1 << 53  # whole numbers up to here are fractions as well; of those beyond, some
_DIGITS = 38  # of a decimal
_DEPTH = 32
_KINDS = {"text": pa.string(), "true or false": pa.bool_(), "nothing": pa.null()}


class NoType(Exception):
    """No one type holds the values; says why."""


@dataclass
class Shape:
    """What the values seen so far have in common. Once they have nothing, it looks no further."""

    kind: str = "nothing"
    fractions: bool = False
    least: int = 0
    most: int = 0
    inexact: int | None = None  # a whole number that may equal no fraction
    items: Shape | None = None
    fields: dict[str, Shape] = field(default_factory=dict)
    why: str = ""  # there is no type
    depth: int = 0

    def add(self, value: Any) -> None:  # noqa: ANN401 - JSON
        """Take one more value."""
        if self.why or value is None:
            return
        try:
            self._add(value)
        except NoType as none:
            self.give_up(str(none))

    def give_up(self, why: str) -> None:
        """From now on there is no type, and nothing is kept of the values."""
        self.why, self.items, self.fields = why, None, {}

    def _add(self, value: Any) -> None:  # noqa: ANN401 - JSON
        if isinstance(value, str):
            self._be("text")
        elif isinstance(value, bool):
            self._be("true or false")
        elif isinstance(value, int):
            self._be("numbers")
            self.least, self.most = min(self.least, value), max(self.most, value)
            if not -_EXACT <= value <= _EXACT and self.inexact is None:
                self.inexact = value
            self._check_numbers()
        elif isinstance(value, float):
            self._be("numbers")
            self.fractions = True
            self._check_numbers()
        elif isinstance(value, list):
            self._be("lists")
            self.items = self.items or self._inside()
            for one in value:
                if one is not None:
                    self.items._add(one)
        else:
            self._add_object(value)

    def _add_object(self, value: dict[str, Any]) -> None:
        if self.kind == "objects":
            self._check_keys(value.keys())
        else:
            self._be("objects")
            if not value:
                raise NoType("it holds an object without keys")
            self.fields = {name: self._inside() for name in value}
        for name, one in value.items():
            if one is not None:
                self.fields[name]._add(one)

    def _check_keys(self, keys: KeysView[str]) -> None:
        if keys != self.fields.keys():
            odd = sorted(keys ^ self.fields.keys())[0]
            raise NoType(f"its objects have different keys ({odd!r} is not in all)")

    def _inside(self) -> Shape:
        if self.depth == _DEPTH:
            raise NoType(f"it holds values nested more than {_DEPTH} deep")
        return Shape(depth=self.depth + 1)

    def _be(self, kind: str) -> None:
        if self.kind == "nothing":
            self.kind = kind
        elif self.kind != kind:
            one, other = sorted((self.kind, kind))
            raise NoType(f"it holds {one} and {other}")

    def _check_numbers(self) -> None:
        if self.fractions and self.inexact is not None:
            raise NoType(f"it holds fractions, and {self.inexact}, which is too large for one")
        if max(self.most, -self.least) >= 10**_DIGITS:
            raise NoType(f"it holds whole numbers of more than {_DIGITS} digits")

    def merge(self, other: Self) -> None:
        """Take the values that another shape has seen."""
        if self.why or other.kind == "nothing":
            self.why = self.why or other.why
            return
        if other.why:
            self.give_up(other.why)
            return
        try:
            self._merge(other)
        except NoType as none:
            self.give_up(str(none))

    def _merge(self, other: Shape) -> None:
        if other.kind == "nothing":
            return
        if self.kind == "nothing":
            self.__dict__.update(other.__dict__)
            return
        self._be(other.kind)
        self.fractions |= other.fractions
        self.least, self.most = min(self.least, other.least), max(self.most, other.most)
        self.inexact = other.inexact if self.inexact is None else self.inexact
        self._check_numbers()
        if self.items is not None and other.items is not None:
            self.items._merge(other.items)
        if self.kind == "objects":
            self._check_keys(other.fields.keys())
            for name, one in other.fields.items():
                self.fields[name]._merge(one)

    def arrow(self) -> pa.DataType:
        """The type; JSON where there is no other (see `why`)."""
        return JSON if self.why else self._arrow()

    def _arrow(self) -> pa.DataType:
        if self.kind == "numbers":
            return self._number()
        if self.kind == "lists":
            return pa.list_(Shape()._arrow() if self.items is None else self.items._arrow())
        if self.kind == "objects":
            return pa.struct([(name, one._arrow()) for name, one in self.fields.items()])
        return _KINDS[self.kind]

    def _number(self) -> pa.DataType:
        if self.fractions:
            return pa.float64()
        if self.least >= -(2**63) and self.most < 2**63:
            return pa.int64()
        return pa.uint64() if self.least >= 0 and self.most < 2**64 else pa.decimal128(_DIGITS)
