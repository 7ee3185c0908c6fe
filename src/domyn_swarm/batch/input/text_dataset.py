"""Text files as rows: the common part of CSV, TSV and JSON Lines, compressed or not."""

from __future__ import annotations

import codecs
import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
from typing_extensions import override

from domyn_swarm.batch.input.dataset import Dataset, lots
from domyn_swarm.batch.input.input_files import InputFile
from domyn_swarm.errors import InvalidInput

Read = Callable[[InputFile, Sequence[str]], Iterator[pa.RecordBatch]]
"""A file's rows with the named columns, in order."""

NAME_ENCODING = "Name the file's encoding: --encoding cp1252 (Windows), latin-1, utf-16."
"""The handling of bytes that are not valid in the encoding."""

_BUFFER_BYTES = 1 << 18
_MARKS = (  # byte order marks, the longer ones first
    (b"\xff\xfe\0\0", "utf-32-le"),
    (b"\0\0\xfe\xff", "utf-32-be"),
    (b"\xef\xbb\xbf", "utf-8"),
    (b"\xff\xfe", "utf-16-le"),
    (b"\xfe\xff", "utf-16-be"),
)
_MARKED = ("utf-16", "utf-32")  # encodings that need a mark to be read
_NO_TEXT = (  # the first bytes of other kinds of files
    (b"PAR1\x15", "Parquet", ".parquet"),
    (b"ARROW1\0\0", "Arrow", ".arrow"),
    (b"\x1f\x8b", "packed with gzip", ".gz"),
    (b"\x28\xb5\x2f\xfd", "packed with zstd", ".zst"),
    *((b"BZh%d1AY" % level, "packed with bzip2", ".bz2") for level in range(1, 10)),
    (b"\xfd7zXZ\0", "packed with xz", ""),
    (b"PK\x03\x04", "a ZIP archive, or a workbook of Excel", ""),
)
_NULS_AT_LEAST = 4  # one NUL byte in this number means UTF-16 or UTF-32, even if all is valid UTF-8
_LAST_PLANE = 0x10  # of Unicode: the third byte of a character in UTF-32
_HEAD_BYTES = 64


class TextDataset(Dataset):
    """Files of CSV or JSON Lines.

    `row_column` names a column that is not in the schema: the rows in their original form, as JSON.
    None: rows are not JSON.
    """

    def __init__(
        self,
        files: Sequence[InputFile],
        schema: pa.Schema,
        rows: Sequence[int],
        read: Read,
        row_column: str | None = None,
    ) -> None:
        """`rows`: the number of rows of each file."""
        self.schema = schema
        self.rows = sum(rows)
        self.row_column = row_column
        self._files = files
        self._rows = rows
        self._read = read

    @override
    def batches(
        self, columns: Sequence[str] | None = None, *, start: int = 0, limit: int | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Files before `start` are not read; rows before it are read and skipped."""
        end = self.rows if limit is None else min(limit, self.rows)
        names = self.schema.names if columns is None else list(columns)
        first = 0
        for file, rows in zip(self._files, self._rows, strict=True):
            if first >= end:
                return
            at = first
            if first + rows > start:
                for block in self._read(file, names):
                    yield from lots(block, None, start - at, end - at)
                    at += block.num_rows
                    if at >= min(end, first + rows):
                        break
            first += rows

    def file_bytes(self) -> int:
        """The size of its uncompressed files on this machine, in bytes."""
        plain = [file for file in self._files if file.system is None and not file.packing]
        return sum(Path(file.path).stat().st_size for file in plain)


def text_bytes(dataset: Any) -> int:  # noqa: ANN401 - any `Dataset`
    """The size of a dataset's text, in bytes, of uncompressed files on this machine."""
    return dataset.file_bytes() if isinstance(dataset, TextDataset) else 0


def is_csv(dataset: Any) -> bool:  # noqa: ANN401 - any `Dataset`
    """Whether rows are cells of text."""
    return isinstance(dataset, TextDataset) and dataset.row_column is None


def open_columns(dataset: Any) -> list[str]:  # noqa: ANN401 - any `Dataset`
    """The columns whose types depend on their values: those of JSON Lines."""
    return [] if row_column_of(dataset) is None else list(dataset.schema.names)


def row_column_of(dataset: Any) -> str | None:  # noqa: ANN401 - any `Dataset`
    """The column with a dataset's rows in their original JSON, if any."""
    return dataset.row_column if isinstance(dataset, TextDataset) else None


@contextlib.contextmanager
def opened_text(
    file: InputFile, encoding: str, kind: str, errors: str = "strict"
) -> Iterator[io.TextIOWrapper]:
    """A file's text, decompressed, without a byte order mark; line ends are unchanged.

    Raises:
        InvalidInput: it cannot be read, or its first bytes show that it is not text, or of another
            encoding; it is named.
        UnicodeDecodeError: it is not valid in the encoding, and `errors` are strict.
    """
    with opened_bytes(file, encoding, kind) as stream:
        yield io.TextIOWrapper(stream, encoding, errors, newline="")


@contextlib.contextmanager
def opened_bytes(file: InputFile, encoding: str, kind: str) -> Iterator[BinaryIO]:
    """A file's content, decompressed, without a byte order mark. Raises as `opened_text`, which
    decodes it.
    """
    with named_errors(file, kind), file.stream() as stream:
        head = _text_head(file, stream.read(_HEAD_BYTES), encoding)
        yield cast("BinaryIO", io.BufferedReader(_Beginning(head, stream), _BUFFER_BYTES))


def _text_head(file: InputFile, head: bytes, encoding: str) -> bytes:
    """The first bytes of a text file without a byte order mark that its decoder does not expect.

    Raises:
        InvalidInput: they belong to another kind of file, or to another encoding.
    """
    for magic, what, suffix in _NO_TEXT:
        if head.startswith(magic):
            hint = f"Name it by what it is: its name ends in {suffix}." if suffix else "Unpack it."
            raise InvalidInput(f"{file} is no text: it is {what}.", hint=hint)
    mark, marked = next(((m, name) for m, name in _MARKS if head.startswith(m)), (b"", None))
    there = marked or (_unmarked(head) if encoding in {"utf-8", *_MARKED} else None)
    if marked and marked.startswith(encoding):
        return head if encoding in _MARKED else head.removeprefix(mark)
    if there is None and head and encoding in _MARKED:
        raise InvalidInput(
            f"{file} is not {encoding.upper()}: it has no byte order mark.",
            hint=f"Name its encoding: --encoding {encoding}-le, or leave that out if it is UTF-8.",
        )
    if there is None or there == encoding:
        return head
    name = marked.removesuffix("-le").removesuffix("-be") if marked else there
    without = "" if name == "utf-8" or marked else ", and has no byte order mark"
    raise InvalidInput(
        f"{file} is {name.upper()}, not {encoding.upper()}{without}.",
        hint="Leave --encoding out."
        if name == "utf-8"
        else f"Name its encoding: --encoding {name}.",
    )


def _unmarked(head: bytes) -> str | None:
    """The encoding of a file with this beginning and without a mark; None: nothing contradicts
    UTF-8. NUL bytes in its first line show it, unless they are few in what is valid UTF-8
    otherwise.
    """
    at = head.partition(b"\n")[0].find(b"\0")
    if at < 0 or (head.count(0) * _NULS_AT_LEAST < len(head) and _is_utf8(head)):
        return None
    fours = [head[start : start + 4] for start in range(0, len(head) - 3, 4)]
    if fours and all(one[3] == 0 and one[2] <= _LAST_PLANE for one in fours):
        return "utf-32-le"
    if fours and all(one[0] == 0 and one[1] <= _LAST_PLANE for one in fours):
        return "utf-32-be"
    return "utf-16-le" if at % 2 else "utf-16-be"


def _is_utf8(head: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return True


class _Beginning(io.RawIOBase):
    """A stream with bytes put back that were read from it."""

    def __init__(self, head: bytes, stream: BinaryIO) -> None:
        self._head = head
        self._stream = stream

    @override
    def readable(self) -> bool:
        return True

    @override
    def readinto(self, buffer: Any) -> int:
        given = self._head or self._stream.read(len(buffer))
        self._head = given[len(buffer) :]
        given = given[: len(buffer)]
        buffer[: len(given)] = given
        return len(given)


def not_encoded(file: InputFile, error: UnicodeDecodeError) -> InvalidInput:
    """The message for a file that is not valid in its encoding."""
    return InvalidInput(
        f"{file} is not {error.encoding}: {error.reason}.",
        hint="Name its encoding: --encoding cp1252 (Windows), latin-1, utf-16.",
    )


@contextlib.contextmanager
def named_errors(file: InputFile, kind: str) -> Iterator[None]:
    """Converts errors of reading a file into errors that tell a user what to do.

    Raises:
        InvalidInput: it cannot be read; names the file.
    """
    try:
        yield
    except (pa.ArrowException, OSError, EOFError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        hint = "Check the path and its permissions; correct that line, or convert the file."
        if "too much memory" in reason:
            hint = "Pack it again without --long: zstd -dc --long=31 FILE | zstd > NEW."
        raise InvalidInput(f"{file} cannot be read as {kind}: {reason}", hint=hint) from error
