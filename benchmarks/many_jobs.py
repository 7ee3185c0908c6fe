"""What a job pays for the answers of others: opening a store of many jobs, and finding its rows.

    python benchmarks/many_jobs.py [jobs] [rows of each]

As many rows in one job's folder are the baseline, measured in the same run.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from domyn_swarm.batch.checkpoint.index import open_index
from domyn_swarm.batch.checkpoint.job_store import Asker, JobPlace, input_key
from domyn_swarm.batch.checkpoint.journal import Journal
from domyn_swarm.batch.checkpoint.request_identity import JobIdentity
from domyn_swarm.batch.input.row_keys import RowKeys
from domyn_swarm.batch.outcomes.row_outcomes import Result, RowValue

IDENTITY = JobIdentity({"job": "benchmark"})
VALUE = RowValue(b'{"answer":"forty or so characters of an answer"}', b"", 1, 10, 10, 0.5)


def digests(start: int, rows: int) -> np.ndarray:
    """Those of the rows `start, start + 1, …`, as hashes look."""
    numbers = np.arange(start, start + rows, dtype=np.uint64) + np.uint64(1)
    mixed = numbers * np.uint64(0x9E3779B97F4A7C15)
    return np.stack([mixed, mixed ^ np.uint64(0x5555)], axis=1)


def write(place: JobPlace, start: int, rows: int, at_once: int = 1000) -> None:
    """One job that was answered."""
    place.folder.mkdir(parents=True)
    place.note(Asker("benchmark", input=str(start)))
    journal = Journal(place.folder, 1)
    for first in range(0, rows, at_once):
        keys = digests(start + first, min(at_once, rows - first))
        journal.append([Result(first + at, key.tobytes(), VALUE) for at, key in enumerate(keys)])
    journal.close()


def timed(what: Callable[[], None]) -> float:
    """CPU seconds, the best of three: other programs may be at work."""
    best = float("inf")
    for _ in range(3):
        began = time.process_time()
        what()
        best = min(best, time.process_time() - began)
    return best


def main(jobs: int, rows: int) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(prefix="domyn-swarm-") as folder:
        root = Path(folder)
        for number in range(jobs):
            write(JobPlace(root, IDENTITY, input_key(f"/shard-{number}")), number * rows, rows)
        alone = JobPlace(root / "alone", IDENTITY, "0" * 16)
        write(alone, 0, jobs * rows)
        mine = JobPlace(root, IDENTITY, "f" * 16)
        wanted = digests(rows * (jobs // 2), rows)
        for id_column in (None, "id"):
            keys = RowKeys(["text"], id_column)

            def look(place: JobPlace, keys: RowKeys = keys) -> None:
                index = open_index(place.readable(keys), keys)
                assert index.match(0, wanted).found.all() or place is alone
                index.frames.close()

            many, one = timed(lambda: look(mine)), timed(lambda: look(alone))

            def find(keys: RowKeys = keys) -> None:
                mine.readable(keys)

            listed = timed(find)
            by = "ids" if id_column else "positions"
            print(
                f"by {by}: {jobs} jobs of {rows} rows: {many:.3f} s, of which {listed:.3f} s to "
                f"find the folders; one job of {jobs * rows} rows: {one:.3f} s ({many / one:.1f} x)"
            )


if __name__ == "__main__":
    told = [int(word) for word in sys.argv[1:]]
    main(*(told or [1000, 1000]))
