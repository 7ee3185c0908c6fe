"""Columns of text from many small pieces, several times faster than `pa.array` makes them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa


def text_array(cells: Sequence[str]) -> pa.Array:
    """A column of text, none of it null; less than 2 GiB in all, as lots are."""
    joined = "".join(cells)
    if joined.isascii():
        return _array(joined.encode(), [len(cell) for cell in cells])
    return encoded_array([cell.encode() for cell in cells])


def encoded_array(texts: Sequence[bytes | None]) -> pa.Array:
    """A column of text from its UTF-8; None is null."""
    if None not in texts:
        return _array(b"".join(texts), [len(text) for text in texts])  # type: ignore[arg-type]
    known = [text or b"" for text in texts]
    valid = pa.array([text is not None for text in texts]).buffers()[1]
    return _array(b"".join(known), [len(text) for text in known], valid)


def _array(data: bytes, lengths: list[int], valid: pa.Buffer | None = None) -> pa.Array:
    ends = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=ends[1:])
    buffers = [valid, pa.py_buffer(ends.astype(np.int32)), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.string(), len(lengths), buffers)
