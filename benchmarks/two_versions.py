"""The same job by the engine of two source trees, in turns: what a change costs.

    python benchmarks/two_versions.py BEFORE/src AFTER/src [ROWS] [ROUNDS] [parquet|jsonl]

Input and output are of the format given. Prints for each: CPU per row and rows per second, the
median of all rounds and the best, and the ratio of the two. Both trees run with this environment's
packages.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq
from mock_host import build, measure, scratch, serving, write_input, write_job


@dataclass
class Found:
    """The figures of one tree."""

    cpu_s: list[float] = field(default_factory=list)
    rows_per_s: list[float] = field(default_factory=list)


def run(program: Path, source: Path, tree: str, rows: int, found: Found) -> None:
    """One job from an empty checkpoint, against a server without latency."""
    folder = source.parent
    for left in (folder / "checkpoints", folder / "job"):
        shutil.rmtree(left, ignore_errors=True)
    for left in folder.glob("out.*"):
        left.unlink()
    with serving(program) as mock:
        files = {"input": str(source), "output": str(folder / f"out{source.suffix}")}
        job = write_job(folder, mock, max_concurrency=256, resume=False, **files)
        command = [sys.executable, "-m", "domyn_swarm.jobs.worker", str(job)]
        with (folder / "log").open("wb") as log:
            env = {**os.environ, "PYTHONPATH": tree}
            measured = measure(command, env=env, stderr=log)
        assert measured.code == 0, (folder / "log").read_text()
        stats = mock.stats()
    found.cpu_s.append(measured.cpu_s)
    found.rows_per_s.append(rows / (stats["last_at"] - stats["first_at"]))


def write_lines(source: Path) -> Path:
    """The rows of a Parquet file as JSON Lines, beside it."""
    lines = source.with_suffix(".jsonl")
    with lines.open("w") as file:
        for batch in pq.ParquetFile(source).iter_batches():
            file.writelines(json.dumps(row) + "\n" for row in batch.to_pylist())
    return lines


def main(before: str, after: str, rows: int = 100_000, rounds: int = 7, *kind: str) -> None:
    """Alternate, so that what else the machine does falls on both."""
    trees = {"before": before, "after": after}
    found = {name: Found() for name in trees}
    with scratch() as folder:
        program = build(folder)
        source = folder / "in.parquet"
        write_input(source, rows)
        if "jsonl" in kind:
            source = write_lines(source)
        for turn in range(rounds):
            for name in list(trees) if turn % 2 else reversed(trees):
                run(program, source, trees[name], rows, found[name])
    for name, one in found.items():
        cpu = statistics.median(one.cpu_s) / rows * 1e6
        rate = statistics.median(one.rows_per_s)
        best_cpu, best_rate = min(one.cpu_s) / rows * 1e6, max(one.rows_per_s)
        print(f"{name}: {cpu:.1f} µs CPU/row, {rate:,.0f} rows/s", end="")
        print(f" (best {best_cpu:.1f} µs, {best_rate:,.0f} rows/s)")
    ratios = [b / a for a, b in zip(found["before"].cpu_s, found["after"].cpu_s, strict=True)]
    rates = [
        b / a for a, b in zip(found["before"].rows_per_s, found["after"].rows_per_s, strict=True)
    ]
    print(f"CPU {statistics.median(ratios) - 1:+.1%}, rows/s {statistics.median(rates) - 1:+.1%}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:5]), *sys.argv[5:])  # type: ignore[arg-type]
