"""From what a user calls the input to its rows."""

from __future__ import annotations

from domyn_swarm.batch.arrow_dataset import ArrowDataset
from domyn_swarm.batch.dataset import Dataset, ParquetDataset
from domyn_swarm.batch.input_files import files_of
from domyn_swarm.batch.text_dataset import open_csv, open_json_lines, open_lines


def open_dataset(source: str) -> Dataset:
    """Open an input: a file or URL, a folder, a glob, or a brace range.

    Raises:
        InvalidInput: nothing is there, or it cannot be read.
    """
    files = files_of(source)
    match files[0].kind:
        case "parquet":
            return ParquetDataset(files)
        case "arrow":
            return ArrowDataset(files)
        case "jsonl":
            return open_json_lines(files)
        case kind:
            return open_csv(files, "\t" if kind == "tsv" else ",")


def open_line_dataset(source: str) -> Dataset:
    """Open text files of which every line is a row (see `open_lines`).

    Raises:
        InvalidInput: nothing is there, or it cannot be read.
    """
    return open_lines(files_of(source, kinds=("jsonl", "txt")))
