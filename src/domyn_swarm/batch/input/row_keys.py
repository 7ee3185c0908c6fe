"""What "the same row" means: 16 bytes for each row, by which its result is found again; and the ids
of rows.
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

from domyn_swarm.batch.column_values import (
    WrittenFloat,
    has_no_null,
    is_json,
    python_values,
    rows_at,
)
from domyn_swarm.batch.input.dataset import Dataset
from domyn_swarm.batch.input.key_table import Parts
from domyn_swarm.errors import InvalidInput
from domyn_swarm.model import Fingerprint

Digests = NDArray[np.uint64]  # shape (rows, 2)

DIGEST_BYTES = 16
_SAMPLED = np.uint64(64)
_BY_POSITION = np.uint64(1)
_MIXER = np.uint64(0x9E3779B97F4A7C15)  # odd: multiplication by it loses nothing


_WRITTEN = 1  # the code of a number in MessagePack that is compared as it is written


def _plain(value: Any) -> Any:  # noqa: ANN401 - for an encoder
    """The representation of a value that MessagePack does not know.

    A number that is asked as another file would have it equals that file's: `3.1`. One that is
    written otherwise, `3.10`, is asked otherwise, and equals what is written so.
    """
    if not isinstance(value, WrittenFloat):
        return str(value)
    return float(value) if _is_usual(value) else msgspec.msgpack.Ext(_WRITTEN, value.text.encode())


def _plain_in_json(value: Any) -> Any:  # noqa: ANN401 - for an encoder
    if not isinstance(value, WrittenFloat):
        return str(value)
    return float(value) if _is_usual(value) else msgspec.Raw(value.text.encode())


def _is_usual(value: WrittenFloat) -> bool:
    return value.text == float.__repr__(value)


_encoder = msgspec.msgpack.Encoder(enc_hook=_plain)
_LARGE = b"\xc1"  # not a MessagePack prefix


@dataclass(frozen=True)
class RowKeys:
    """What identifies a row: the columns that a job reads, the id column, and which inputs are
    compared.
    """

    input_columns: Sequence[str]
    id_column: str | None
    fingerprint: Fingerprint = "full"
    as_request: bool = False  # the form that the job receives; see `python_values`

    @property
    def columns(self) -> list[str]:
        """Every column that has to be read."""
        extra = [] if self.id_column in (None, *self.input_columns) else [str(self.id_column)]
        return [*self.input_columns, *extra]

    @property
    def position_digest(self) -> tuple[int, int]:
        """The digest of every row that is identified by its position alone."""
        return int(_BY_POSITION), 0

    def items(self, batch: pa.RecordBatch) -> list[Any]:
        """What a job receives for each row: the one column's value, or a dict of several."""
        columns = [
            python_values(batch.column(name), as_request=self.as_request)
            for name in self.input_columns
        ]
        if len(columns) == 1:
            return columns[0]
        names = self.input_columns
        return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]

    def digests(
        self, batch: pa.RecordBatch, start: int, items: Sequence[Any] | None = None
    ) -> Digests:
        """The digests of the rows `start, start + 1, …`, with shape (rows, 2); `items` if the
        caller has them.
        """
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
            digests[sampled, 1] = _hashes(self.items(rows_at(batch, sampled)))
        return digests


def _hashes(values: Sequence[Any]) -> NDArray[np.uint64]:
    encode, blake = _encoder.encode, hashlib.blake2b
    try:
        raw = b"".join([blake(encode(value), digest_size=8).digest() for value in values])
    except OverflowError:  # MessagePack ends with 64 bits
        raw = b"".join([_hash(value) for value in values])
    return np.frombuffer(raw, "<u8")


def _hash(value: Any) -> bytes:  # noqa: ANN401 - JSON
    return hashlib.blake2b(encoded_value(value), digest_size=8).digest()


def encoded_value(value: Any) -> bytes:  # noqa: ANN401 - JSON
    """The representation of a value in its hash: the same bytes for equal values only."""
    try:
        return _encoder.encode(value)
    except OverflowError:
        return _LARGE + msgspec.json.encode(value, enc_hook=_plain_in_json)


def agree(stored: Digests, asked: Digests) -> NDArray[np.bool_]:
    """Row by row: whether a kept result belongs to the given row. Zeros belong to none."""
    inputs, wanted = stored[..., 1], asked[..., 1]
    same = (inputs == wanted) | (inputs == 0) | (wanted == 0)
    agreed: NDArray[np.bool_] = same & (stored[..., 0] == asked[..., 0]) & (asked[..., 0] != 0)
    return agreed


def search_keys(digests: Digests, fingerprint: Fingerprint) -> NDArray[np.uint64]:
    """One number for each row that is equal if the fingerprint considers rows equal."""
    ids, inputs = digests[:, 0], digests[:, 1]
    if fingerprint == "off":
        return ids
    with_inputs = ids ^ (inputs * _MIXER)
    if fingerprint == "sample":
        return np.where(ids % _SAMPLED == 0, with_inputs, ids)
    return with_inputs


_SPREADER = np.uint64(0x9E3779B97F4A7C15)  # odd; Python's hash of a small number is that number
_UNSIGNED = (1 << 64) - 1
_SUSPECTS_AT_ONCE = 100_000  # of the ids that may be duplicates


def check_ids(dataset: Dataset, column: str, *, limit: int | None) -> None:
    """Refuse null and duplicate ids; memory: 8 bytes a row, and beyond 64 MB a temporary file.

    Raises:
        InvalidInput: names the row or the id, or the column's type if it cannot hold ids.
        JobError: there is no room for the file.
    """
    _check_type(dataset.schema.field(column))
    hashes = Parts(None, 1, dataset.rows if limit is None else min(limit, dataset.rows))
    start = 0
    for batch in dataset.batches([column], limit=limit):
        _check_present(batch.column(0), column, start)
        values = python_values(batch.column(0))
        if is_json(batch.column(0).type):
            _check_plain(values, column, start)
        found = np.fromiter(map(hash, values), np.int64, batch.num_rows).astype(np.uint64)
        hashes.add(hashes.of_key(found * _SPREADER), found[:, None])
        start += batch.num_rows
    for part in hashes:
        ordered = np.sort(part[:, 0])
        suspects = ordered[1:][ordered[1:] == ordered[:-1]]
        for at in range(0, len(suspects), _SUSPECTS_AT_ONCE):
            some = set(suspects[at : at + _SUSPECTS_AT_ONCE].tolist())
            _refuse_duplicates(dataset, column, some, limit)


def _check_type(field: pa.Field) -> None:
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    if pa.types.is_nested(kind):
        raise InvalidInput(
            f"The column {field.name!r} ({field.type}) cannot name rows.",
            hint="Ids are numbers, text, bytes, dates or times.",
        )


def _check_plain(values: Sequence[object], column: str, start: int) -> None:
    """JSON has a type for each value."""
    for at, value in enumerate(values):
        if isinstance(value, list | dict):
            raise InvalidInput(
                f"The id in column {column!r} is a list or an object in row {start + at}.",
                hint="Ids are numbers or text.",
            )


def _check_present(values: pa.Array, column: str, start: int) -> None:
    floats = pa.types.is_floating(values.type)
    if has_no_null(values) and not floats:
        return
    absent = values.is_null(nan_is_null=floats)
    if absent.true_count:
        at = absent.to_pylist().index(True)
        problem = "null" if values[at].as_py() is None else "not a number"
        raise InvalidInput(
            f"The id in column {column!r} is {problem} in row {start + at}.",
            hint="Every row needs an id; leave --id-column out to use positions.",
        )


def _refuse_duplicates(
    dataset: Dataset, column: str, suspects: set[int], limit: int | None
) -> None:
    """Distinguish equal ids from ids with equal hashes."""
    seen: dict[object, int] = {}
    row = 0
    for batch in dataset.batches([column], limit=limit):
        for value in python_values(batch.column(0)):
            if hash(value) & _UNSIGNED in suspects:
                if value in seen:
                    raise InvalidInput(
                        f"The id {value!r} in column {column!r} stands in row {seen[value]} "
                        f"and in row {row}.",
                        hint="Ids must be unique; leave --id-column out to use positions.",
                    )
                seen[value] = row
            row += 1
