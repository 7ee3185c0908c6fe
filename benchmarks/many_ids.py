"""Measures what rows with ids cost that are settled: memory and seconds to find, and to publish.

    python benchmarks/many_ids.py write FOLDER ROWS [WRITERS]   a checkpoint of so many rows
    python benchmarks/many_ids.py find FOLDER ROWS              finds all of them, shuffled
    python benchmarks/many_ids.py publish FOLDER ROWS [SHUFFLED]  joins them with an input

Each prints one line of JSON. `find` and `publish` use only what older versions have as well: give
another source tree with PYTHONPATH. Digests are made here, since hashing a row costs more than
finding it, and is measured elsewhere.
"""

from __future__ import annotations

import json
import math
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
from typing_extensions import override

from domyn_swarm.batch.checkpoint import frames
from domyn_swarm.batch.checkpoint.index import open_index
from domyn_swarm.batch.checkpoint.job_store import ResultsFolder
from domyn_swarm.batch.input.row_keys import RowKeys
from domyn_swarm.batch.outcomes.row_outcomes import RowValue
from domyn_swarm.batch.outcomes.verdicts import Reading
from domyn_swarm.batch.output.manifest import JobFacts
from domyn_swarm.batch.output.output_plan import OutputPlan
from domyn_swarm.batch.output.output_schema import OutputSchema
from domyn_swarm.batch.output.publish import publish

WINDOW = 2048
_FILE_FRAMES = 500
_TEXT = "x" * 400


def digests(numbers: np.ndarray) -> np.ndarray:
    """16 bytes for each row, as even as a hash."""
    found = np.empty((len(numbers), 2), np.uint64)
    for half, seed in enumerate((0x9E3779B97F4A7C15, 0xD1B54A32D192ED03)):
        mixed = numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
        for shift, odd in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(odd)
        found[:, half] = mixed ^ (mixed >> np.uint64(31))
    return found


class SyntheticKeys(RowKeys):
    """The digests of the numbers in the id column."""

    @override
    def digests(self, batch: pa.RecordBatch, start: int, items: object = None) -> np.ndarray:
        """See `RowKeys.digests`."""
        return digests(np.frombuffer(batch.column("id").buffers()[1], np.int64, batch.num_rows))


class SyntheticInput:
    """Rows 0, 1, 2, … or the same rows shuffled."""

    schema = pa.schema([("id", pa.int64())])

    def __init__(self, rows: int, *, shuffled: bool) -> None:
        self.rows = rows
        self._step = 1
        if shuffled:
            self._step = int(rows * 0.618)
            while math.gcd(self._step, rows) > 1:
                self._step += 1

    def batches(
        self,
        columns: object = None,  # noqa: ARG002
        *,
        start: int = 0,
        limit: int | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """See `Dataset.batches`."""
        end = self.rows if limit is None else min(limit, self.rows)
        for first in range(start, end, WINDOW):
            numbers = np.arange(first, min(first + WINDOW, end), dtype=np.int64)
            numbers = numbers * self._step % self.rows
            ids = pa.Array.from_buffers(pa.int64(), len(numbers), [None, pa.py_buffer(numbers)])
            yield pa.RecordBatch.from_arrays([ids], schema=self.schema)


def write(folder: Path, rows: int, writers: int) -> None:
    """Segments, as of writers that take rows in turn."""
    folder.mkdir(parents=True)
    value = RowValue(json.dumps({"answer": _TEXT}).encode(), b"", 1, 10, 20, 0.5)
    values = {}  # of so many rows: all answers are alike, so they are encoded once
    for writer in range(writers):
        own = range(writer, rows, writers)
        for number, at in enumerate(range(0, len(own), WINDOW * _FILE_FRAMES)):
            with (folder / f"000001-{writer:03d}-{number:08d}.segment").open("wb") as file:
                for first in range(at, min(at + WINDOW * _FILE_FRAMES, len(own)), WINDOW):
                    some = own[first : first + WINDOW]
                    ordinals = np.arange(some.start, some.stop, some.step, dtype=np.uint64)
                    outcomes = np.zeros(len(some), np.uint8)
                    parts = (ordinals, digests(ordinals), outcomes)
                    keys = b"".join(part.tobytes() for part in parts)
                    if len(some) not in values:
                        values[len(some)] = msgspec.msgpack.encode([value] * len(some))
                    span = some[0], some[-1]
                    file.write(frames._frame(keys, values[len(some)], span, 1, compress=True))


def find(folder: Path, rows: int) -> dict[str, float]:
    """Open the index, and match every row, in shuffled order."""
    before = peak_mb()
    began = time.monotonic()
    index = open_index([ResultsFolder(folder)], RowKeys(["prompt"], "id"), Reading())
    opened = time.monotonic()
    found, hashing_s = 0, 0.0
    for batch in SyntheticInput(rows, shuffled=True).batches():
        at = time.monotonic()
        numbers = np.frombuffer(batch.column("id").buffers()[1], np.int64, batch.num_rows)
        asked = digests(numbers)
        hashing_s += time.monotonic() - at
        found += int(index.match(0, asked).found.sum())
    match_s = time.monotonic() - opened - hashing_s
    assert found == rows
    return {"before_mb": before, "open_s": opened - began, "match_s": match_s}


def publish_all(folder: Path, rows: int, *, shuffled: bool) -> dict[str, float]:
    """Write an output of all rows."""
    index = open_index([ResultsFolder(folder)], RowKeys(["id"], "id"), Reading())
    facts = {"id": "bench", "name": "bench", "job_class": "bench", "identity": "bench"}
    with tempfile.TemporaryDirectory() as place:
        plan = OutputPlan(
            target=str(Path(place) / "out.parquet"),
            mode="append",
            keys=SyntheticKeys(["id"], "id"),
            schema=OutputSchema({"answer": str}),
            job=JobFacts(**facts, identity_fields={}, model="bench", revision=None),
            input_path="bench",
        )
        began = time.monotonic()
        publish(SyntheticInput(rows, shuffled=shuffled), plan, index, None)
        return {"publish_s": time.monotonic() - began}


def peak_mb() -> float:
    """The most memory that this process had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """One case."""
    what, folder, rows, *more = sys.argv[1:]
    case = {"what": what, "rows": int(rows)}
    if what == "write":
        write(Path(folder), int(rows), int(more[0]) if more else 1)
        return
    if what == "find":
        figures = find(Path(folder), int(rows))
    else:
        figures = publish_all(Path(folder), int(rows), shuffled=bool(more))
    rounded = {name: round(figure, 2) for name, figure in figures.items()}
    print(json.dumps({**case, **rounded, "peak_mb": round(peak_mb())}))


if __name__ == "__main__":
    main()
