"""Opens the input that a user names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from domyn_swarm.batch.input.csv_files import open_csv
from domyn_swarm.batch.input.dataset import ArrowDataset, Dataset, ParquetDataset
from domyn_swarm.batch.input.file_facts import InputFacts
from domyn_swarm.batch.input.input_files import InputFile, files_of
from domyn_swarm.batch.input.json_lines import CheckLine, open_json_lines
from domyn_swarm.batch.input.reading import InputReading
from domyn_swarm.errors import InvalidInput

if TYPE_CHECKING:
    from domyn_swarm.batch.output.text_forms import TextForm


@dataclass(frozen=True)
class LineFiles:
    """A job's requirements on the lines of `.jsonl` files, and the form in which it writes them."""

    columns: Sequence[str]  # the keys to read
    check: CheckLine
    form: TextForm


def open_dataset(
    source: str,
    lines: LineFiles | None = None,
    reading: InputReading | None = None,
    facts: InputFacts | None = None,
) -> Dataset:
    """Open an input: a file or URL, a folder, a glob, or a brace range.

    Args:
        source: as the user names it.
        lines: the job's form of JSON Lines.
        reading: the user's options for the files.
        facts: recorded facts of the files; new ones are added.

    Raises:
        InvalidInput: it does not exist, or cannot be read.
    """
    reading = reading or InputReading()
    return dataset_of(files_of(source, recursive=reading.recursive), lines, reading, facts)


def dataset_of(
    files: Sequence[InputFile],
    lines: LineFiles | None = None,
    reading: InputReading | None = None,
    facts: InputFacts | None = None,
) -> Dataset:
    """Open files of one kind; see `open_dataset`.

    Raises:
        InvalidInput: a file cannot be read, or the reading does not apply to its kind.
    """
    reading, kind = reading or InputReading(), files[0].kind
    _check_use(reading, kind)
    match kind:
        case "parquet":
            return ParquetDataset(files, facts)
        case "arrow":
            return ArrowDataset(files, facts)
        case "jsonl":
            check, columns = (lines.check, lines.columns) if lines else (None, ())
            return open_json_lines(files, reading.encoding, check, columns, facts)
        case _:
            return open_csv(files, kind, reading, facts)


def _check_use(reading: InputReading, kind: str) -> None:
    for flag, given, kinds in (
        ("--encoding", reading.encoding != "utf-8", ("csv", "tsv", "jsonl")),
        ("--delimiter", reading.delimiter is not None, ("csv", "tsv")),
        ("--types", bool(reading.types), ("csv", "tsv")),
    ):
        if given and kind not in kinds:
            raise InvalidInput(
                f"{flag} is for {' and '.join(kinds)}; the input is {kind}.", hint="Leave it out."
            )
