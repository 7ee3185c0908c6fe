"""Print every fourth row of the output as a table."""

from __future__ import annotations

import sys

import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

OUTPUT_COLUMN = "answer"
EVERY = 4


def main(path: str) -> None:
    """Print rows of the Parquet file `path`."""
    answers = pq.read_table(path)
    table = Table("prompt", OUTPUT_COLUMN, title=f"{path}: every {EVERY}th of its rows")
    for row in answers.to_pylist()[::EVERY]:
        answer = " ".join(str(row[OUTPUT_COLUMN]).split())
        table.add_row(row["prompt"], answer)
    console = Console(markup=False, width=None if sys.stdout.isatty() else 120)
    console.print(table)
    answered = answers.num_rows - answers[OUTPUT_COLUMN].null_count
    console.print(f"{answered} of {answers.num_rows} rows have an answer")


if __name__ == "__main__":
    main(sys.argv[1])
