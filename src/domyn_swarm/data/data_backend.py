"""`DataBackend`, the adapter of one data frame library, and the Arrow types that users see."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import pyarrow as pa

from domyn_swarm.errors import InvalidInput, SwarmError


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type without its memory layout, such as the width of offsets and indices.

    Two columns with equal plain types hold the same kind of values.
    """
    for matches, to_plain in _PLAIN.items():
        if matches(kind):
            return to_plain(kind)
    return kind


def _plain_dictionary(kind: pa.DictionaryType) -> pa.DataType:
    return pa.dictionary(pa.int32(), plain_type(kind.value_type), kind.ordered)


def _plain_list(kind: pa.ListType) -> pa.DataType:
    return pa.list_(plain_type(kind.value_type))


_PLAIN: dict[Callable[[pa.DataType], bool], Callable[[Any], pa.DataType]] = {
    pa.types.is_large_string: lambda _: pa.string(),
    pa.types.is_string_view: lambda _: pa.string(),
    pa.types.is_large_binary: lambda _: pa.binary(),
    pa.types.is_binary_view: lambda _: pa.binary(),
    pa.types.is_dictionary: _plain_dictionary,
    pa.types.is_map: lambda kind: pa.map_(plain_type(kind.key_type), plain_type(kind.item_type)),
    pa.types.is_fixed_size_list: lambda kind: pa.list_(plain_type(kind.value_type), kind.list_size),
    pa.types.is_list: _plain_list,
    pa.types.is_large_list: _plain_list,
    pa.types.is_list_view: _plain_list,
    pa.types.is_large_list_view: _plain_list,
    pa.types.is_struct: lambda kind: pa.struct(
        [(field.name, plain_type(field.type)) for field in kind]
    ),
}


def holds(kind: pa.DataType, refused: Callable[[pa.DataType], bool]) -> bool:
    """Whether `refused` applies to a type or to a type nested in it."""
    nested = [kind.field(at).type for at in range(kind.num_fields)]
    if pa.types.is_dictionary(kind):
        nested.append(kind.value_type)
    return refused(kind) or any(holds(inner, refused) for inner in nested)


def refuse_types(schema: pa.Schema, refused: Callable[[pa.DataType], bool], library: str) -> None:
    """Refuse columns whose type a library would change.

    Raises:
        InvalidInput: there is such a column; the message names it and its type.
    """
    for field in schema:
        if holds(field.type, refused):
            raise InvalidInput(
                f"The column {field.name!r} ({field.type}) has no corresponding type in {library}.",
                hint="Cast it first, or use --data-backend arrow.",
            )


Frame = TypeVar("Frame")

BATCH_ROWS = 2048
KINDS = ("parquet", "csv", "jsonl", "arrow")
READ_FLAG = "--backend-read-kwargs"
WRITE_FLAG = "--backend-write-kwargs"


class DataBackend(Protocol[Frame]):
    """The adapter of one library's frames. Every method keeps the order of a frame's rows."""

    name: str
    lazy: bool
    """Whether rows are computed on demand: such a frame is read once, from its beginning."""

    def accepts(self, data: object) -> bool:
        """Whether `data` is one of its frames. Does not import the library."""

    def schema(self, frame: Frame) -> pa.Schema:
        """The columns and their Arrow types.

        Raises:
            InvalidInput: a column has no Arrow type; the message names it.
        """

    def batches(self, frame: Frame) -> Iterator[pa.RecordBatch]:
        """All rows in order with the columns of `schema`, at most `BATCH_ROWS` at a time.

        Raises:
            InvalidInput: the values of a column do not have its type; the message names it.
        """

    def build(
        self, schema: pa.Schema, batches: Iterable[pa.RecordBatch], like: Frame | None = None
    ) -> Frame:
        """A frame of the rows in `batches`.

        `like` is a frame that begins with the same rows: its columns of the same names are copied
        unchanged, and so is its index.

        Raises:
            InvalidInput: a column would lose its type; the message names it.
        """

    def rows(self, frame: Frame) -> int:
        """The number of rows."""

    def part(self, frame: Frame, columns: Sequence[str] | None, start: int, rows: int) -> Frame:
        """At most `rows` rows from `start` on, with only the given columns (None: all)."""

    def read(self, files: Sequence[str], kind: str, options: dict[str, Any]) -> Frame:
        """A frame of files, read by the library itself. CSV cells are read as text, unless the
        options say otherwise.

        Args:
            files: paths or URLs, in order.
            kind: one of `KINDS`, whatever suffixes the files have.
            options: keyword arguments of the library's own function.

        Raises:
            InvalidInput: a file cannot be read, or there is no such option.
        """

    def write(self, frame: Frame, path: str, options: dict[str, Any]) -> None:
        """Write one Parquet file with the library's own function.

        Raises:
            InvalidInput: there is no such option.
        """


def check_options(function: Callable[..., Any], options: Mapping[str, Any], flag: str) -> None:
    """Refuse options that are not parameters of `function`.

    Raises:
        InvalidInput: there are some; the message names them and the function.
    """
    known = inspect.signature(function).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        return
    unknown = [name for name in options if name not in known]
    if unknown:
        raise InvalidInput(
            f"{flag}: {function.__module__}.{function.__name__} takes no "
            f"{', '.join(map(repr, unknown))}.",
            hint=f"It takes {', '.join(known)}.",
        )


@contextlib.contextmanager
def failures_named(doing: str, files: Sequence[str], flag: str) -> Iterator[None]:
    """Turn any exception of a library into one error that names the files.

    Raises:
        InvalidInput: the library raised an exception.
    """
    try:
        yield
    except SwarmError:
        raise
    except Exception as error:  # libraries raise anything for a file or a user's option
        where = files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
        raise InvalidInput(
            f"{doing} {where}: {_root_cause(error)}",
            hint=f"Check the file and {flag}.",
        ) from error


def _root_cause(error: BaseException) -> str:
    """The first line of the message of the first exception in the chain of causes."""
    while (cause := getattr(error, "cause", None) or error.__cause__) is not None:
        error = cause
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
