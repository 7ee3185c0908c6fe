"""From what a user calls the input to its rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from domyn_swarm.batch.arrow_dataset import ArrowDataset
from domyn_swarm.batch.dataset import Dataset, ParquetDataset
from domyn_swarm.batch.input_files import InputFile, files_of
from domyn_swarm.batch.text_dataset import open_csv, open_json_lines
from domyn_swarm.batch.text_forms import TextForm


@dataclass(frozen=True)
class LineFiles:
    """What the lines of a job's `.jsonl` files are, where they are no objects of columns."""

    open: Callable[[Sequence[InputFile]], Dataset]
    form: TextForm


def open_dataset(source: str, lines: LineFiles | None = None) -> Dataset:
    """Open an input: a file or URL, a folder, a glob, or a brace range.

    Raises:
        InvalidInput: nothing is there, or it cannot be read.
    """
    return dataset_of(files_of(source), lines)


def dataset_of(files: Sequence[InputFile], lines: LineFiles | None = None) -> Dataset:
    """Open files of one kind.

    Raises:
        InvalidInput: one of them cannot be read.
    """
    match files[0].kind:
        case "parquet":
            return ParquetDataset(files)
        case "arrow":
            return ArrowDataset(files)
        case "jsonl":
            return lines.open(files) if lines else open_json_lines(files)
        case kind:
            return open_csv(files, "\t" if kind == "tsv" else ",")
