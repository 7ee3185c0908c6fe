"""Results as a file of another kind: Parquet, JSON Lines or CSV, whole or not at all.

JSON has no bytes and no NaN, CSV no lists: bytes become Base64, NaN null, and in CSV everything
nested JSON text.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
from pyarrow import csv

from domyn_swarm.batch.output_files import PartWriter, written_whole
from domyn_swarm.batch.results import Results
from domyn_swarm.errors import ConfigError

_encoder = msgspec.json.Encoder(enc_hook=str)
SUFFIXES = (".parquet", ".jsonl", ".csv")
_WITH_CSV_FORM = (
    pa.types.is_primitive,
    pa.types.is_decimal,
    pa.types.is_string,
    pa.types.is_large_string,
)


def check_export(path: Path, taken: Sequence[Path] = ()) -> None:
    """Refuse a file of a kind that cannot be written, and one that would replace the job's own.

    Raises:
        ConfigError: names the kinds, or what the path belongs to.
    """
    if path.suffix not in SUFFIXES:
        raise ConfigError(
            f"{path} is of no kind that can be written.",
            hint=f"Give a name that ends in one of {', '.join(SUFFIXES)}.",
        )
    for one in taken:
        if path.resolve().is_relative_to(one.resolve()):
            raise ConfigError(
                f"{path} belongs to the job's own input or output, {one}.",
                hint="Export to another place.",
            )


def export(results: Results, path: Path) -> None:
    """Write results to a file by its suffix (see `check_export`); one that is there is replaced.

    Raises:
        JobError: it cannot be written; nothing of it is left.
    """
    write = {".parquet": _parquet, ".jsonl": _json_lines, ".csv": _csv}[path.suffix]
    with written_whole(path) as temporary:
        write(results, temporary)


def _parquet(results: Results, path: Path) -> None:
    # Without the metadata that makes a file a job's output: an export may not be replaced by one.
    schema = results.schema.remove_metadata()
    with PartWriter(path.parent, schema, lambda _: path.name) as writer:
        for batch in results.batches():
            writer.write(batch.replace_schema_metadata(None))
        writer.finish()


def _json_lines(results: Results, path: Path) -> None:
    with path.open("wb") as file:
        for batch in results.batches():
            file.write(_encoder.encode_lines(_printable(batch).to_pylist()))


def _csv(results: Results, path: Path) -> None:
    fields = [
        (field.name, pa.string()) if _is_odd(field.type) else field for field in results.schema
    ]
    schema = pa.schema(fields)
    with csv.CSVWriter(path, schema) as writer:
        for batch in results.batches():
            columns = [
                _as_text(column) if _is_odd(column.type) else column for column in batch.columns
            ]
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))


def _is_odd(kind: pa.DataType) -> bool:
    """Whether CSV has no form for it."""
    return not any(is_plain(kind) for is_plain in _WITH_CSV_FORM)


def _as_text(column: pa.Array) -> pa.Array:
    return pa.array([_text(value) for value in column.to_pylist()], pa.string())


def _text(value: Any) -> str | None:  # noqa: ANN401 - a value of a column
    if value is None or isinstance(value, str):
        return value
    text = _encoder.encode(value).decode()
    return text.strip('"') if isinstance(value, bytes) else text


def _printable(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with times in nanoseconds as text: Python's own times would lose digits."""
    columns = [
        column.cast(pa.string())
        if pa.types.is_timestamp(column.type) and column.type.unit == "ns"
        else column
        for column in batch.columns
    ]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def plain_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Rows as JSON has them: for a handful that is shown."""
    rows: list[dict[str, Any]] = []
    for batch in table.to_batches():
        rows += msgspec.json.decode(_encoder.encode(_printable(batch).to_pylist()))
    return rows
