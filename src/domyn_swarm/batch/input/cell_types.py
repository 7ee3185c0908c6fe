"""The types of cells: those that a user chose, and those that are inferred from all cells."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import msgspec
import pyarrow as pa

from domyn_swarm.batch.column_values import (
    JSON,
    array,
    json_array,
    keeps_digits,
    text_array,
)
from domyn_swarm.batch.input.reading import CellType

ARROW_TYPES: dict[CellType, pa.DataType] = {
    "text": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
    "json": JSON,
}
_INT = re.compile(r"[+-]?\d+", re.ASCII)
_FLOAT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?inf|nan", re.ASCII | re.IGNORECASE)
_BOOLS = {"true": True, "false": False, "1": True, "0": False}
_WHOLE = re.compile(r"0|-?[1-9]\d*", re.ASCII)
_FRACTION = re.compile(r"-?(0|[1-9]\d*)\.\d+([eE][+-]?\d+)?", re.ASCII)
_MOST_DIGITS = 19  # of a 64-bit integer
_EXACT = 2**53  # up to here every integer is exact as a float
_decode = msgspec.json.Decoder().decode


def as_array(cells: Sequence[str], kind: CellType) -> pa.Array:
    """A column of cells that have the type (see `wrong_cell`); in other types than text, an empty
    cell is null.
    """
    if kind == "text":
        return text_array(cells)
    if kind == "json":
        return json_array([cell.encode() if cell else None for cell in cells])
    return array([_value(cell, kind) if cell else None for cell in cells], ARROW_TYPES[kind])


def wrong_cell(cell: str, kind: CellType) -> bool:
    """Whether a cell is not of the type."""
    if not cell or kind == "text":
        return False
    if kind == "int":
        return not _INT.fullmatch(cell) or is_beyond_int(cell)
    if kind == "float":
        return not is_number(cell) or is_beyond_float(cell)
    if kind == "bool":
        return cell.lower() not in _BOOLS
    try:
        _decode(cell)
    except (ValueError, RecursionError):
        return True
    return False


def is_beyond_int(cell: str) -> bool:
    """Whether a cell is an integer that needs more than 64 bits."""
    if not _INT.fullmatch(cell):
        return False
    digits = cell.lstrip("+-").lstrip("0")
    return len(digits) > _MOST_DIGITS or not -(2**63) <= int(cell) < 2**63


def is_number(cell: str) -> bool:
    """Whether a cell has the form of a number, however large."""
    return _FLOAT.fullmatch(cell) is not None


def is_beyond_float(cell: str) -> bool:
    """Whether a cell is a number in digits that is too large for a float."""
    return cell[-1:].isdigit() and math.isinf(float(cell))


def _value(cell: str, kind: CellType) -> Any:  # noqa: ANN401 - of any of the types
    if kind == "bool":
        return _BOOLS[cell.lower()]
    return int(cell) if kind == "int" else float(cell)


class CellShape:
    """The type of a column, inferred from its cells.

    Integers in canonical form (not `00123` or `+5`), numbers, `true` and `false`.
    """

    def __init__(self) -> None:
        self._seen: set[CellType] = set()
        self._largest = 0  # of the integers, without their signs
        self._beyond_int = False
        self._beyond_float = False
        self._loses_digits = False

    def add(self, cell: str | None) -> None:
        """Add a cell; an empty cell is ignored."""
        if not cell or "text" in self._seen:
            return
        if _WHOLE.fullmatch(cell):
            self._seen.add("int")
            if is_beyond_int(cell):
                self._beyond_int = True
            elif not self._beyond_int:
                self._largest = max(self._largest, abs(int(cell)))
        elif _FRACTION.fullmatch(cell):
            self._seen.add("float")
            self._beyond_float = self._beyond_float or is_beyond_float(cell)
            self._loses_digits = self._loses_digits or not (
                self._beyond_float or keeps_digits(cell)
            )
        else:
            self._seen.add("bool" if cell in {"true", "false", "True", "False"} else "text")

    def cell_type(self) -> CellType:
        """The type that all cells have."""
        if self.why is not None:
            return "text"
        if self._seen == {"int", "float"}:
            return "float"
        return next(iter(self._seen)) if len(self._seen) == 1 else "text"

    @property
    def why(self) -> str | None:
        """Why a column of numbers stays text nevertheless; None: it does not."""
        if not self._seen <= {"int", "float"}:
            return None
        if self._beyond_int:
            return "it holds whole numbers beyond 64 bits"
        if self._beyond_float:
            return "it holds numbers beyond 10^308"
        if self._loses_digits:
            return "it holds fractions that would lose digits as numbers"
        if self._largest > _EXACT and "float" in self._seen:
            return "it holds fractions, and whole numbers that would lose digits as such"
        return None
