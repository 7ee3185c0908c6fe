"""Write the prompts of prompts.csv as Parquet: the kind of file a job usually reads."""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow.parquet as pq
from pyarrow import csv


def main(target: Path) -> None:
    """Write `target`, unless it is there."""
    if target.exists():
        sys.stdout.write(f"{target} is there\n")
        return
    table = csv.read_csv(Path(__file__).with_name("prompts.csv"))
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_suffix(".unfinished")
    pq.write_table(table, unfinished)
    unfinished.replace(target)
    sys.stdout.write(f"{target}: {table.num_rows} prompts\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
