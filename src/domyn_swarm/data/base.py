"""What every library of frames can do here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import pyarrow as pa

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
