"""What "the same row" means: 16 bytes for each row, by which its result is found again.

The first 8 are a hash of its id, or 1 where rows are known by their position. The last 8 are a hash
of its inputs, or 0 where they were not looked at: such a half agrees with any other. Hashes are
blake2b over MessagePack, so they are the same on every machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from domyn_swarm.batch.arrow_arrays import flags, indices
from domyn_swarm.model import Fingerprint

Digests = NDArray[np.uint64]  # shape (rows, 2)

DIGEST_BYTES = 16
_SAMPLED = np.uint64(64)
_BY_POSITION = np.uint64(1)
_MIXER = np.uint64(0x9E3779B97F4A7C15)  # odd: multiplication by it loses nothing

_encoder = msgspec.msgpack.Encoder(enc_hook=str)


@dataclass(frozen=True)
class RowKeys:
    """What a row is: which columns a job reads, which one names the row, what is compared."""

    input_columns: Sequence[str]
    id_column: str | None
    fingerprint: Fingerprint = "full"

    @property
    def columns(self) -> list[str]:
        """Every column that has to be read."""
        extra = [] if self.id_column in (None, *self.input_columns) else [str(self.id_column)]
        return [*self.input_columns, *extra]

    @property
    def position_digest(self) -> tuple[int, int]:
        """The digest of every row that is known by its position alone."""
        return int(_BY_POSITION), 0

    def items(self, batch: pa.RecordBatch) -> list[Any]:
        """What a job is given for each row: the one column's value, or a dict of several."""
        columns = [python_values(batch.column(name)) for name in self.input_columns]
        if len(columns) == 1:
            return columns[0]
        names = self.input_columns
        return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]

    def digests(
        self, batch: pa.RecordBatch, start: int, items: Sequence[Any] | None = None
    ) -> Digests:
        """The digests of the rows `start, start + 1, …`; `items` where the caller has them."""
        digests = np.zeros((batch.num_rows, 2), np.uint64)
        if self.id_column is None:
            digests[:, 0] = _BY_POSITION
            sampled_by = np.arange(start, start + batch.num_rows, dtype=np.uint64)
        else:
            digests[:, 0] = _hashes(python_values(batch.column(self.id_column)))
            sampled_by = digests[:, 0]
        if self.fingerprint == "full":
            digests[:, 1] = _hashes(self.items(batch) if items is None else items)
        elif self.fingerprint == "sample":
            sampled = np.flatnonzero(sampled_by % _SAMPLED == 0)
            digests[sampled, 1] = _hashes(self.items(batch.take(indices(sampled))))
        return digests


def python_values(column: pa.Array) -> list[Any]:
    """The values of a column, whichever libraries are installed.

    Python's own times have no nanoseconds: those that have are text, with all their digits. The
    others are the same values as in a column of microseconds. Numbers of single precision are the
    shortest that are the same in single precision: 0.1, not 0.10000000149011612.
    """
    kind = column.type
    if (as_text := _with(kind, pa.string())) != kind:
        column = column.cast(as_text).cast(_with(kind, pa.float64()))
    if not pa.types.is_temporal(kind) or getattr(kind, "unit", None) != "ns":
        values: list[Any] = column.to_pylist()
        return values
    import pyarrow.compute as pc  # here: columns with nanoseconds are rare

    whole = column.cast(_in_microseconds(kind), safe=False)
    odd = pc.not_equal(whole.cast(kind), column)
    values = whole.to_pylist()
    for at in np.flatnonzero(flags(odd)).tolist():
        one = column[at]
        values[at] = (
            f"{one.value} ns" if pa.types.is_duration(kind) else one.cast(pa.string()).as_py()
        )
    return values


def _with(kind: pa.DataType, single: pa.DataType) -> pa.DataType:
    """A type with another one for numbers of single precision, however deep they are."""
    if pa.types.is_float32(kind):
        return single
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_with(kind.value_type, single)))
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_with(kind.value_type, single)))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_with(field.type, single)) for field in kind])
    return kind


def _in_microseconds(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", kind.tz)
    return pa.duration("us") if pa.types.is_duration(kind) else pa.time64("us")


def _hashes(values: Sequence[Any]) -> NDArray[np.uint64]:
    encode, blake = _encoder.encode, hashlib.blake2b
    raw = b"".join([blake(encode(value), digest_size=8).digest() for value in values])
    return np.frombuffer(raw, "<u8")


def agree(stored: Digests, asked: Digests) -> NDArray[np.bool_]:
    """Row by row: whether a kept result is that of the row asked for. Zeros are nobody's."""
    inputs, wanted = stored[..., 1], asked[..., 1]
    same = (inputs == wanted) | (inputs == 0) | (wanted == 0)
    agreed: NDArray[np.bool_] = same & (stored[..., 0] == asked[..., 0]) & (asked[..., 0] != 0)
    return agreed


def search_keys(digests: Digests, fingerprint: Fingerprint) -> NDArray[np.uint64]:
    """One number for each row that is equal where this fingerprint calls rows the same."""
    ids, inputs = digests[:, 0], digests[:, 1]
    if fingerprint == "off":
        return ids
    with_inputs = ids ^ (inputs * _MIXER)
    if fingerprint == "sample":
        return np.where(ids % _SAMPLED == 0, with_inputs, ids)
    return with_inputs
