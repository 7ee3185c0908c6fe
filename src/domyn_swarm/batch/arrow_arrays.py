"""Arrow arrays of texts and positions, made from their buffers, and booleans read from them.

`pa.array` and `Array.to_numpy` import pandas at their first call wherever it is installed: a
quarter of a second and 50 MB that a job's process needs for nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_NUMBERS: dict[pa.DataType, set[type]] = {pa.int64(): {int}, pa.float64(): {int, float}}
_MOST_BYTES = 2**31 - 1  # of one array: its offsets have 32 bits


def array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """What `pa.array(values, kind)` makes, without pandas where `kind` is text or 64-bit numbers.

    Raises:
        pa.ArrowException, TypeError, OverflowError: a value is not of this type.
    """
    if kind == pa.string() and all(value is None or type(value) is str for value in values):
        return encoded_array([None if value is None else value.encode() for value in values])
    number = _NUMBERS.get(kind)
    if number and all(value is None or type(value) in number for value in values):
        return _numbers(values, kind)
    return pa.array(values, kind)


def _numbers(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    known = np.fromiter((value is not None for value in values), np.bool_, len(values))
    zeros = (0 if value is None else value for value in values)
    whole = np.fromiter(zeros, np.int64 if kind == pa.int64() else np.float64, len(values))
    valid = None if known.all() else pa.py_buffer(np.packbits(known, bitorder="little"))
    return pa.Array.from_buffers(kind, len(values), [valid, pa.py_buffer(whole)])


def text_array(cells: Sequence[str]) -> pa.Array:
    """A column of text, none of it null.

    Raises:
        pa.ArrowCapacityError: more than 2 GB in one array.
    """
    joined = "".join(cells)
    if joined.isascii():
        return _text_array(joined.encode(), [len(cell) for cell in cells])
    return encoded_array([cell.encode() for cell in cells])


def encoded_array(texts: Sequence[bytes | None]) -> pa.Array:
    """A column of text from its UTF-8, which is not checked; None is null.

    Raises:
        pa.ArrowCapacityError: more than 2 GB in one array.
    """
    if None not in texts:
        return _text_array(b"".join(texts), [len(text) for text in texts])  # type: ignore[arg-type]
    known = [text or b"" for text in texts]
    valid = np.packbits([text is not None for text in texts], bitorder="little")
    return _text_array(b"".join(known), [len(text) for text in known], pa.py_buffer(valid))


def _text_array(data: bytes, lengths: list[int], valid: pa.Buffer | None = None) -> pa.Array:
    if len(data) > _MOST_BYTES:
        raise pa.ArrowCapacityError(f"{len(data):,} bytes of text are too much for one array")
    ends = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=ends[1:])
    buffers = [valid, pa.py_buffer(ends), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.string(), len(lengths), buffers)


def indices(values: Sequence[int] | NDArray[np.int64]) -> pa.Array:
    """Positions, as `take` wants them."""
    whole = np.ascontiguousarray(values, np.int64)
    return pa.Array.from_buffers(pa.int64(), len(whole), [None, pa.py_buffer(whole)])


def flags(column: pa.Array) -> NDArray[np.bool_]:
    """Where a column of booleans is true."""
    if not len(column):
        return np.zeros(0, np.bool_)
    validity, values = column.buffers()
    bits = _bits(values)
    if validity is not None:
        bits = bits[: column.offset + len(column)] & _bits(validity)[: column.offset + len(column)]
    return bits[column.offset : column.offset + len(column)].astype(np.bool_)


def _bits(buffer: pa.Buffer) -> NDArray[np.uint8]:
    return np.unpackbits(np.frombuffer(buffer, np.uint8), bitorder="little")
