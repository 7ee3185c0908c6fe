"""Facts of input files that are established before rows are read: checksum, footer, columns; and
whether the files form one table.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Self

import msgspec
import pyarrow as pa

from domyn_swarm.batch.input.input_files import InputFile
from domyn_swarm.errors import InvalidInput
from domyn_swarm.logs import get_logger
from domyn_swarm.paths import private_file

_HINT = "Give only files with one schema, or convert them first."
_TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
_BYTES = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)


def check_names(schema: pa.Schema, file: object) -> None:
    """Refuse columns that cannot be distinguished.

    Raises:
        InvalidInput: two have one name.
    """
    twice = [name for name, times in Counter(schema.names).items() if times > 1]
    if twice:
        raise InvalidInput(
            f"{file} has the column {twice[0]!r} more than once.", hint="Rename one of them."
        )


def common_schema(schemas: Sequence[tuple[Any, pa.Schema]]) -> pa.Schema:
    """The columns of all files, in the order of the first, in types that hold every value.

    Raises:
        InvalidInput: a file has other columns, or values of another kind; the column is named.
    """
    first, known = schemas[0]
    check_names(known, first)
    kinds = {field.name: field.type for field in known}
    seen = {known}
    for file, schema in schemas[1:]:
        if schema in seen:
            continue
        seen.add(schema)
        check_names(schema, file)
        _check_same_names(first, kinds, file, schema)
        for field in schema:
            kind = _wider(kinds[field.name], field.type)
            if kind is None:
                raise InvalidInput(
                    f"The column {field.name!r} is {field.type} in {file} and "
                    f"{kinds[field.name]} in {first} or another file.",
                    hint=_HINT,
                )
            kinds[field.name] = kind
    return pa.schema(list(kinds.items()))


def _check_same_names(
    first: object, kinds: dict[str, pa.DataType], file: object, schema: pa.Schema
) -> None:
    for has, lacks, names in (
        (first, file, [name for name in kinds if name not in schema.names]),
        (file, first, [name for name in schema.names if name not in kinds]),
    ):
        if names:
            raise InvalidInput(
                f"{lacks} has no column {', '.join(map(repr, names))}, which {has} has: they have "
                "other columns or types.",
                hint=_HINT,
            )


def as_schema(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """A batch with the types and the order of columns of a common schema; it may lack some."""
    if batch.schema.equals(schema):
        return batch
    fields = [field for field in schema if field.name in batch.schema.names]
    columns = [_cast(batch.column(field.name), field.type) for field in fields]
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields))


def check_text(batch: pa.RecordBatch, file: object, first: int) -> None:
    """Refuse text that is not UTF-8: Arrow and Parquet do not check it.

    Args:
        batch: rows of the file.
        file: named in the error.
        first: the position of the batch's first row in the file.

    Raises:
        InvalidInput: names the file, the row, counted from 0, and the column.
    """
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if not _holds_text(column.type):
            continue
        try:
            column.validate(full=True)
        except pa.ArrowException as error:
            row = next((at for at in range(len(column)) if not _is_valid(column, at)), None)
            if row is None:  # the affected value is in another row of the file
                continue
            raise InvalidInput(
                f"{file}, row {first + row}: the column {name!r} ({column.type}) holds what is no "
                f"value of its type: {str(error).splitlines()[0]}",
                hint="Rewrite the file with text in UTF-8; bytes have a type of their own.",
            ) from error


def _is_valid(column: pa.Array, at: int) -> bool:
    try:
        pa.concat_arrays([column.slice(at, 1)]).validate(full=True)
    except pa.ArrowException:
        return False
    return True


def _holds_text(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        return _holds_text(kind.storage_type)
    inside = [kind.field(at).type for at in range(kind.num_fields)]
    if pa.types.is_dictionary(kind):
        inside.append(kind.value_type)
    return _is_any(kind, _TEXTS) or any(map(_holds_text, inside))


def _cast(column: pa.Array, kind: pa.DataType) -> pa.Array:
    return column if column.type.equals(kind) else column.cast(kind)


def _wider(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """A type that holds the values of both unchanged; None: there is none."""
    if one.equals(other) or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if pa.types.is_dictionary(one) or pa.types.is_dictionary(other):
        return _wider(_undictionaried(one), _undictionaried(other))
    for kinds, made in ((_TEXTS, pa.large_string()), (_BYTES, pa.large_binary())):
        if _is_any(one, kinds) and _is_any(other, kinds):
            return made
    if _is_number(one) and _is_number(other):
        return _wider_number(one, other)
    return _wider_nested(one, other)


def _undictionaried(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_any(kind: pa.DataType, kinds: Sequence[Callable[[pa.DataType], bool]]) -> bool:
    return any(is_it(kind) for is_it in kinds)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _wider_number(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    if pa.types.is_floating(one) or pa.types.is_floating(other):
        return None  # 1 beside 1.5 would be 1.0 in a prompt, and 0.1 of 32 bits another number
    if pa.types.is_unsigned_integer(one) == pa.types.is_unsigned_integer(other):
        return one if one.bit_width > other.bit_width else other
    unsigned = one if pa.types.is_unsigned_integer(one) else other
    return pa.int64() if unsigned.bit_width < 64 else None


def _wider_nested(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    if _is_list(one) and _is_list(other):
        inner = _wider(one.value_type, other.value_type)
        return None if inner is None else pa.large_list(inner)
    if pa.types.is_struct(one) and pa.types.is_struct(other):
        fields = {field.name: field.type for field in other}
        if [field.name for field in one] != list(fields):
            return None
        inner = {field.name: _wider(field.type, fields[field.name]) for field in one}
        return None if None in inner.values() else pa.struct(list(inner.items()))
    return None


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


_log = get_logger(__name__)

_AT_ONCE = 32  # most of the time is spent waiting for a disk or a store
_TELL_S = 5.0
_CHUNK_BYTES = 1 << 20


class Look(NamedTuple):
    """The facts of one file."""

    schema: pa.Schema  # for text: the names, and the types of its cells; empty without rows
    rows: int


class _Kept(msgspec.Struct, array_like=True):
    path: str
    version: str
    schema: int  # its index
    rows: int


class _Document(msgspec.Struct):
    schemas: list[bytes]
    files: list[_Kept]
    digests: dict[str, tuple[str, str]] = {}  # by path: the file's version, and its SHA-256


class InputFacts:
    """The facts of a job's files, including those of an earlier program."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, Look]] = {}
        self._digests: dict[str, tuple[str, str]] = {}

    @classmethod
    def load(cls, path: Path) -> Self:
        """Load facts from a file; nothing if it cannot be read."""
        facts = cls()
        try:
            document = msgspec.msgpack.decode(path.read_bytes(), type=_Document)
            schemas = [pa.ipc.read_schema(pa.py_buffer(one)) for one in document.schemas]
            facts._known = {
                one.path: (one.version, Look(schemas[one.schema], one.rows))
                for one in document.files
            }
            facts._digests = document.digests
        except (OSError, ValueError, pa.ArrowException, IndexError):
            return cls()
        return facts

    def save(self, path: Path) -> None:
        """Write them to a file.

        Raises:
            OSError: it cannot be written.
        """
        at: dict[pa.Schema, int] = {}
        files = [
            _Kept(name, version, at.setdefault(look.schema, len(at)), look.rows)
            for name, (version, look) in self._known.items()
        ]
        schemas = [one.serialize().to_pybytes() for one in at]
        private_file(path).write_bytes(
            msgspec.msgpack.encode(_Document(schemas, files, self._digests))
        )

    def digest(self, file: InputFile) -> str:
        """The SHA-256 of a file's content.

        Raises:
            OSError: it cannot be read.
        """
        version = _version(file)
        known = self._digests.get(str(file))
        if version and known is not None and known[0] == version:
            return known[1]
        digest = hashlib.sha256()
        with contextlib.closing(file.open()) as opened:
            while chunk := opened.read(_CHUNK_BYTES):
                digest.update(chunk)
        self._digests[str(file)] = version, digest.hexdigest()
        return digest.hexdigest()

    def looks(
        self,
        files: Sequence[InputFile],
        look: Callable[[InputFile], Look],
        *,
        side_by_side: bool = False,
    ) -> list[Look]:
        """The facts of each file, in their order; slow examinations are logged.

        Raises:
            Exception: that of the first file whose examination failed.
        """

        def one(file: InputFile) -> Look:
            version = _version(file)
            known = self._known.get(str(file))
            if version and known is not None and known[0] == version:
                return known[1]
            found = look(file)
            self._known[str(file)] = version, found
            return found

        found: list[Look] = []
        reported_at = time.monotonic()
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="files") as pool:
            try:
                for each in pool.map(one, files) if side_by_side else map(one, files):
                    found.append(each)
                    if len(found) < len(files) and time.monotonic() - reported_at > _TELL_S:
                        reported_at = time.monotonic()
                        _log.warning("examined %d of %d files", len(found), len(files))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return found


def _version(file: InputFile) -> str:
    """A value that changes when the file does; empty if there is none."""
    try:
        if file.system is not None:
            named = "" if "http" in file.system.protocol else file.system.ukey(file.path)
            return str(named)  # fsspec treats files over HTTP as immutable
        found = os.stat(file.path)  # noqa: PTH116 - ten thousand times
    except Exception:  # noqa: BLE001 - file systems raise errors of libraries of their own
        return ""
    return f"{found.st_size}-{found.st_mtime_ns}"
