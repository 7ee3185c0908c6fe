"""An input may be larger than the memory there is: what reading it takes does not grow with it."""

from __future__ import annotations

import csv
import json
import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from patience import limit_s

ROWS, ROW_BYTES = 1500, 100_000
MOST_BYTES = 100 << 20  # of 150 MB that are in the file, and twice that as Python's strings

# In a process of its own: the highest it came to while it read, above what it had before, in bytes.
READS = """
import sys
from domyn_swarm.batch.input.opening import open_dataset
from domyn_swarm.batch.input.row_keys import RowKeys

def of(name):
    with open("/proc/self/status") as status:
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith(name))

keys = RowKeys(("text",), "id")
small, large = map(open_dataset, sys.argv[1:])
for _ in small.batches(keys.columns):
    pass
with open("/proc/self/clear_refs", "w") as peak:
    peak.write("5")
before, rows = of("VmRSS:"), 0
for batch in large.batches(keys.columns):
    items = keys.items(batch)
    keys.digests(batch, rows, items)
    rows += batch.num_rows
print(rows, of("VmHWM:") - before)
"""


def write(path: Path, rows: int) -> Path:
    texts = [random.randbytes(ROW_BYTES // 2).hex() for _ in range(rows)]
    match path.suffix:
        case ".jsonl":
            lines = (json.dumps({"id": n, "text": text}) for n, text in enumerate(texts))
            path.write_text("".join(f"{line}\n" for line in lines))
        case ".csv":
            with path.open("w", newline="") as file:
                csv.writer(file).writerows([("id", "text"), *enumerate(texts)])
        case ".parquet":
            table = pa.table({"id": list(range(rows)), "text": texts})
            pq.write_table(table, path, row_group_size=100)
    return path


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_reading_takes_a_bounded_part_of_a_large_input(form: str, tmp_path: Path) -> None:
    small, large = write(tmp_path / f"small.{form}", 10), write(tmp_path / f"large.{form}", ROWS)
    done = subprocess.run(
        [sys.executable, "-c", READS, str(small), str(large)],
        capture_output=True,
        text=True,
        check=True,
        timeout=limit_s(),
    )
    rows, took_bytes = map(int, done.stdout.split())
    assert rows == ROWS
    assert took_bytes < MOST_BYTES
