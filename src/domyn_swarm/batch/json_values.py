"""Values that keep their JSON as it was written: columns of JSON text, decoded one by one.

A column of `JSON` holds each row's own value as the text of its file, so that no row's type, keys
or numbers depend on another row's. Parquet and Arrow know such columns too (`arrow.json`), and
what they hold is read the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

import msgspec
import pyarrow as pa

from domyn_swarm.batch.arrow_arrays import encoded_array

JSON: pa.DataType = pa.json_()
"""The type of a column of JSON text; null is a value that is not there, or null."""

_NULL = b"null"
_plain = msgspec.json.Decoder().decode
_raw = msgspec.json.Decoder(msgspec.Raw).decode


class WrittenFloat(float):
    """A number that remembers how it was written: `3.10` is shown, and sent, as `3.10`."""

    __slots__ = ("text",)
    text: str

    def __new__(cls, text: str) -> Self:
        """The number that `text` is in JSON."""
        made = super().__new__(cls, text)
        made.text = text
        return made

    def __str__(self) -> str:
        return self.text

    def __reduce__(self) -> tuple[type[Self], tuple[str]]:
        return type(self), (self.text,)


_written = msgspec.json.Decoder(float_hook=WrittenFloat).decode


def is_json(kind: pa.DataType) -> bool:
    """Whether a column holds JSON text."""
    return isinstance(kind, pa.JsonType)


def json_array(values: Iterable[Any]) -> pa.Array:
    """A column of JSON from encoded values (`msgspec.Raw`, bytes), None where there is none."""
    encoded = [None if one is None or (text := bytes(one)) == _NULL else text for one in values]
    return pa.ExtensionArray.from_storage(JSON, encoded_array(encoded))


def json_texts(column: pa.Array) -> list[str | None]:
    """The JSON text of each row."""
    found: list[str | None] = column.storage.to_pylist()
    return found


def json_values(column: pa.Array, *, written: bool = False) -> list[Any]:
    """The value of each row; with `written`, fractions are `WrittenFloat`.

    Of a column that others wrote, what is no JSON is the text that it is.
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
    """The text of a value as what is encoded to it, on one line."""
    try:
        raw = _raw(text)
    except (ValueError, RecursionError):
        return msgspec.Raw(msgspec.json.encode(text))
    if "\n" in text or "\r" in text:
        return msgspec.Raw(msgspec.json.format(text, indent=-1))
    return raw


def plain_numbers(value: Any) -> Any:  # noqa: ANN401 - JSON
    """A value with Python's own numbers, for those who do not know `WrittenFloat`."""
    if isinstance(value, WrittenFloat):
        return float(value)
    if isinstance(value, dict):
        return {name: plain_numbers(one) for name, one in value.items()}
    return [plain_numbers(one) for one in value] if isinstance(value, list) else value


def json_of(value: Any) -> Any:  # noqa: ANN401 - for an encoder
    """What msgspec encodes for a type that it does not know (`enc_hook`): numbers as they were
    written.

    Raises:
        TypeError: it has no JSON form.
    """
    if isinstance(value, WrittenFloat):
        return msgspec.Raw(value.text.encode())
    raise TypeError(f"{type(value).__name__} has no JSON form")


def without_json(schema: pa.Schema) -> pa.Schema:
    """A schema with text for JSON: for libraries that have no such type."""
    fields = [field.with_type(pa.string()) if is_json(field.type) else field for field in schema]
    return pa.schema(fields, metadata=schema.metadata)


def as_text(batch: pa.RecordBatch) -> pa.RecordBatch:
    """A batch with text for JSON: see `without_json`."""
    columns = [one.storage if is_json(one.type) else one for one in batch.columns]
    return pa.RecordBatch.from_arrays(columns, schema=without_json(batch.schema))
