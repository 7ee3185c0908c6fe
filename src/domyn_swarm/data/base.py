"""Which Arrow types are the same to users, whatever library they went through."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import pyarrow as pa

from domyn_swarm.errors import InvalidInput, SwarmError


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type without what only says how values lie in memory: the width of offsets and indices.

    Two columns whose plain types are equal hold the same kinds of values.
    """
    for is_it, made in _PLAIN.items():
        if is_it(kind):
            return made(kind)
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
    """Whether a type or one inside it is refused."""
    inside = [kind.field(at).type for at in range(kind.num_fields)]
    if pa.types.is_dictionary(kind):
        inside.append(kind.value_type)
    return refused(kind) or any(holds(one, refused) for one in inside)


def refuse_types(schema: pa.Schema, refused: Callable[[pa.DataType], bool], library: str) -> None:
    """Refuse columns that a library would change.

    Raises:
        InvalidInput: names the column, its type and what to do.
    """
    for field in schema:
        if holds(field.type, refused):
            raise InvalidInput(
                f"The column {field.name!r} ({field.type}) has no type of its own in {library}.",
                hint="Cast it first, or use --data-backend arrow.",
            )


Frame = TypeVar("Frame")

BATCH_ROWS = 2048
KINDS = ("parquet", "csv", "jsonl", "arrow")
READ_FLAG = "--backend-read-kwargs"
WRITE_FLAG = "--backend-write-kwargs"


class DataBackend(Protocol[Frame]):
    """One library's frames. A frame's rows have an order, and keep it through all of these."""

    name: str
    lazy: bool
    """Whether rows need not all be in memory: such a frame is read once, from its beginning."""

    def accepts(self, data: object) -> bool:
        """Whether this is one of its frames; the library is not imported for the answer."""

    def schema(self, frame: Frame) -> pa.Schema:
        """The columns and their Arrow types.

        Raises:
            InvalidInput: a column has no Arrow type; it is named.
        """

    def batches(self, frame: Frame) -> Iterator[pa.RecordBatch]:
        """All rows in order with the columns of `schema`, at most `BATCH_ROWS` at a time.

        Raises:
            InvalidInput: a column's values do not have its type; it is named.
        """

    def build(
        self, schema: pa.Schema, batches: Iterable[pa.RecordBatch], like: Frame | None = None
    ) -> Frame:
        """A frame of rows.

        With `like`, a frame whose first rows these are, its columns of the same names are taken
        over as they are, and so is what else belongs to its rows (an index).

        Raises:
            InvalidInput: a column would lose its type; it is named.
        """

    def rows(self, frame: Frame) -> int:
        """How many there are."""

    def part(self, frame: Frame, columns: Sequence[str] | None, start: int, rows: int) -> Frame:
        """The rows from `start` on, `rows` of them or fewer, and only the columns named."""

    def read(self, files: Sequence[str], kind: str, options: dict[str, Any]) -> Frame:
        """A frame of files, as the library itself reads them; cells of CSV are their text, unless
        the options say otherwise.

        Args:
            files: paths or URLs, in order.
            kind: one of `KINDS`, whichever suffixes the files have.
            options: keyword arguments of the library's own function.

        Raises:
            InvalidInput: they cannot be read, or there is no such option.
        """

    def write(self, frame: Frame, path: str, options: dict[str, Any]) -> None:
        """One Parquet file, as the library itself writes it.

        Raises:
            InvalidInput: there is no such option.
        """


def check_options(function: Callable[..., Any], options: Mapping[str, Any], flag: str) -> None:
    """Refuse options that a function has no name for.

    Raises:
        InvalidInput: names them and the function.
    """
    known = inspect.signature(function).parameters
    if any(one.kind is one.VAR_KEYWORD for one in known.values()):
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
    """What a library raises, as one error that names the files.

    Raises:
        InvalidInput: the library raised.
    """
    try:
        yield
    except SwarmError:
        raise
    except Exception as error:  # the border to a library and its user's options
        where = files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
        raise InvalidInput(
            f"{doing} {where}: {_told(error)}",
            hint=f"Check the file and {flag}.",
        ) from error


def _told(error: BaseException) -> str:
    """The line of an error that says why: of what it began with, and not of who passed it on."""
    while (cause := getattr(error, "cause", None) or error.__cause__) is not None:
        error = cause
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
