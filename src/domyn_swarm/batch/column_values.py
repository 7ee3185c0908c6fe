"""Converts the values of columns to Python, whatever their type, and back to arrays; JSON keeps the
form in which it was written.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from typing import Any, Self, TypeVar

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from typing_extensions import override

from domyn_swarm.batch.times import in_known_zone, time_text

_NUMBERS: dict[pa.DataType, set[type]] = {pa.int64(): {int}, pa.float64(): {int, float}}
_MOST_BYTES = 2**31 - 1  # of one array, whose offsets have 32 bits


def array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """`pa.array(values, kind)` without importing pandas, if `kind` is text or 64-bit numbers.

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
    """Positions as `take` needs them."""
    whole = np.ascontiguousarray(values, np.int64)
    return pa.Array.from_buffers(pa.int64(), len(whole), [None, pa.py_buffer(whole)])


_IsIt = Callable[[pa.DataType], bool]
_Rows = TypeVar("_Rows", pa.Array, pa.RecordBatch)


def rows_at(rows: _Rows, positions: Sequence[int] | NDArray[np.int64]) -> _Rows:
    """The rows at these positions, in their order: of a column or a batch of any type.

    Arrow's own `take` has no kernel for views (as polars writes text), for run-end encoding, nor
    for what holds them.
    """
    if isinstance(rows, pa.RecordBatch):
        columns = [rows_at(column, positions) for column in rows.columns]
        if columns:
            return pa.RecordBatch.from_arrays(columns, schema=rows.schema)
    try:
        return rows.take(indices(positions))
    except pa.ArrowNotImplementedError:
        slices = [rows.slice(at, 1) for at in map(int, positions)]
        return pa.concat_arrays(slices or [rows.slice(0, 0)])


def has_no_null(column: pa.Array) -> bool:
    """Whether no value is null; False if only Arrow's computations could check that, which take a
    tenth of a second to load.
    """
    kind = column.type
    hidden = (pa.types.is_dictionary, pa.types.is_union, pa.types.is_run_end_encoded)
    return not column.null_count and not any(is_it(kind) for is_it in hidden)


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


JSON: pa.DataType = pa.json_()
"""The type of a column of JSON text; null is a missing value, or null."""

_NULL = b"null"
_plain = msgspec.json.Decoder().decode
_raw = msgspec.json.Decoder(msgspec.Raw).decode


class WrittenFloat(float):
    """A number that keeps its written form: `3.10` is shown, and sent, as `3.10`."""

    __slots__ = ("text",)
    text: str

    def __new__(cls, text: str) -> Self:
        """The number whose JSON is `text`."""
        made = super().__new__(cls, text)
        made.text = text
        return made

    @override
    def __str__(self) -> str:
        return self.text

    @override
    def __reduce__(self) -> tuple[type[Self], tuple[str]]:
        return type(self), (self.text,)


_written = msgspec.json.Decoder(float_hook=WrittenFloat).decode

_FLOAT_DIGITS = 17  # so many tell every number of 64 bits from its neighbours
_LIKE_DIGITS = bytes.maketrans(b"123456789E", b"000000000e")
_BEFORE_NUMBERS = bytes.maketrans(b"-[:", b",,,")
_USUAL_ZEROS = 4  # in front of a number's digits; smaller ones have an exponent


def keeps_digits(text: str) -> bool:
    """Whether a fraction loses no digits as a 64-bit number, which has 17, and none below 10^-308.

    The 17th may be rounded: it only tells such numbers apart.
    """
    value = float(text)
    digits = text.lower().partition("e")[0].lstrip("+-").replace(".", "").strip("0")
    if len(digits) <= _FLOAT_DIGITS and (abs(value) >= sys.float_info.min or not digits):
        return True
    return Decimal(text) == Decimal(repr(value))


def may_lose_digits(column: pa.Array) -> bool:
    """Whether a column of JSON may hold a fraction that does not keep its digits: few do, and only
    where this is true, fractions have to be read as they are written.
    """
    texts = (text for text in json_texts(column) if text and text[0] != '"')
    data = b"," + ",".join(texts).encode()
    many = b"0" * (_FLOAT_DIGITS + 1)
    digits = data.translate(_LIKE_DIGITS, b".")
    if b"0e-000" in digits:
        return True
    if many not in digits:
        return False
    data = data.translate(_BEFORE_NUMBERS, b". ")
    for _ in range(_USUAL_ZEROS):
        data = data.replace(b",0", b",")
    return many in data.translate(_LIKE_DIGITS)


def is_json(kind: pa.DataType) -> bool:
    """Whether a column holds JSON text."""
    return isinstance(kind, pa.JsonType)


def json_array(values: Iterable[Any]) -> pa.Array:
    """A column of JSON from encoded values (`msgspec.Raw`, bytes), None if missing."""
    encoded = [None if one is None or (text := bytes(one)) == _NULL else text for one in values]
    return pa.ExtensionArray.from_storage(JSON, encoded_array(encoded))


def json_texts(column: pa.Array) -> list[str | None]:
    """The JSON text of each row."""
    found: list[str | None] = column.storage.to_pylist()
    return found


def json_values(column: pa.Array, *, written: bool = False) -> list[Any]:
    """The value of each row; with `written`, fractions are `WrittenFloat`.

    In a column that another program wrote, invalid JSON is its own text.
    """
    decode = _written if written else _plain
    values = []
    for text in json_texts(column):
        try:
            values.append(None if text is None else decode(text))
        except (ValueError, RecursionError):
            values.append(text)
    return values


def raw_json(text: str) -> msgspec.Raw:
    """The text of a value in the form that is encoded to it, on one line."""
    try:
        raw = _raw(text)
    except (ValueError, RecursionError):
        return msgspec.Raw(msgspec.json.encode(text))
    if "\n" in text or "\r" in text:
        return msgspec.Raw(msgspec.json.format(text, indent=-1))
    return raw


def plain_numbers(value: Any) -> Any:  # noqa: ANN401 - JSON
    """A value with Python's own numbers, for libraries that do not support `WrittenFloat`."""
    if isinstance(value, WrittenFloat):
        return float(value)
    if isinstance(value, dict):
        return {name: plain_numbers(one) for name, one in value.items()}
    return [plain_numbers(one) for one in value] if isinstance(value, list) else value


def json_of(value: Any) -> Any:  # noqa: ANN401 - for an encoder
    """The `enc_hook` of msgspec for types that it does not support: numbers in their written form.

    Raises:
        TypeError: it has no JSON form.
    """
    if isinstance(value, WrittenFloat):
        return msgspec.Raw(value.text.encode())
    raise TypeError(f"{type(value).__name__} has no JSON form")


def without_json(schema: pa.Schema) -> pa.Schema:
    """A schema with text for JSON: for libraries without such a type."""
    fields = [field.with_type(pa.string()) if is_json(field.type) else field for field in schema]
    return pa.schema(fields, metadata=schema.metadata)


def as_text(batch: pa.RecordBatch) -> pa.RecordBatch:
    """A batch with text for JSON: see `without_json`."""
    columns = [one.storage if is_json(one.type) else one for one in batch.columns]
    return pa.RecordBatch.from_arrays(columns, schema=without_json(batch.schema))


def python_values(column: pa.Array, *, as_request: bool = False) -> list[Any]:
    """The values of a column, whichever libraries are installed.

    Python's own times have no nanoseconds and end with the year 9999: those beyond are text, with
    all their digits. The others are the same values as in a column of microseconds. Numbers of
    single precision are the shortest that are the same in single precision: 0.1, not
    0.10000000149011612. Times of a zone that nobody knows are in UTC.

    With `as_request` they are as a request is to have them: the fractions of JSON as they were
    written, and structs without their nulls, since Arrow's structs have every field in every row.
    """
    if is_json(column.type):
        return json_values(column, written=as_request)
    if pa.types.is_run_end_encoded(column.type):
        import pyarrow.compute as pc  # here: such columns are rare

        column = pc.run_end_decode(column)
    if (as_text := _with(column.type, pa.string())) != column.type:
        column = column.cast(as_text).cast(_with(column.type, pa.float64()))
    column = in_known_zone(column)
    if pa.types.is_temporal(column.type) and getattr(column.type, "unit", None) == "ns":
        return _of_nanoseconds(column)
    try:
        values: list[Any] = column.to_pylist()
    except (OverflowError, ValueError):  # a time that Python does not support
        values = [_value(one) for one in column]
    if as_request and pa.types.is_nested(column.type):
        return [without_nulls(one) for one in values]
    return values


def without_nulls(value: Any) -> Any:  # noqa: ANN401 - a value of a column
    """A value without the fields that are null, however deep."""
    if isinstance(value, dict):
        return {key: without_nulls(one) for key, one in value.items() if one is not None}
    return [without_nulls(one) for one in value] if isinstance(value, list) else value


def _with(kind: pa.DataType, single: pa.DataType) -> pa.DataType:
    """A type with another one for single-precision numbers, however deep they are; if it has any,
    values replace a dictionary of them.
    """
    if pa.types.is_float32(kind):
        return single
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_with(field.type, single)) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(_with(kind.key_type, single), _with(kind.item_type, single))
    made = next((made for is_it, made in _OF_VALUES if is_it(kind)), None)
    if made is None or (inner := _with(kind.value_type, single)) == kind.value_type:
        return kind
    return made(kind, inner)


_OF_VALUES: Sequence[tuple[_IsIt, Callable[[Any, pa.DataType], pa.DataType]]] = (
    (pa.types.is_list, lambda kind, inner: pa.list_(kind.value_field.with_type(inner))),
    (pa.types.is_large_list, lambda kind, inner: pa.large_list(kind.value_field.with_type(inner))),
    (
        pa.types.is_fixed_size_list,
        lambda kind, inner: pa.list_(kind.value_field.with_type(inner), kind.list_size),
    ),
    # Not views of lists: Arrow 26's cast of them to lists loses the last values.
    (pa.types.is_dictionary, lambda _, inner: inner),
)


def _of_nanoseconds(column: pa.Array) -> list[Any]:
    import pyarrow.compute as pc  # here: columns with nanoseconds are rare

    kind = column.type
    whole = column.cast(_in_microseconds(kind), safe=False)
    odd = pc.not_equal(whole.cast(kind), column)
    try:
        values: list[Any] = whole.to_pylist()
    except (OverflowError, ValueError):  # of a zone that Python does not know
        values = [_value(one) for one in whole]
    for at in np.flatnonzero(flags(odd)).tolist():
        one = column[at]
        values[at] = f"{one.value} ns" if pa.types.is_duration(kind) else time_text(one)
    return values


def _in_microseconds(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", kind.tz)
    return pa.duration("us") if pa.types.is_duration(kind) else pa.time64("us")


def _value(one: pa.Scalar) -> Any:  # noqa: ANN401 - whatever it holds
    """A value of which some part may not have a Python form."""
    if not one.is_valid:
        return None
    try:
        return one.as_py()
    except (OverflowError, ValueError):
        if isinstance(one, pa.StructScalar):
            return {name: _value(inner) for name, inner in one.items()}
        if isinstance(one, pa.ListScalar | pa.LargeListScalar | pa.FixedSizeListScalar):
            return [_value(inner) for inner in one.values]
        return time_text(one)
