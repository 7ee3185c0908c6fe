"""Measures the data backends beside each other: rows/s, memory, conversion, and what Ray costs.

    python benchmarks/data_backends.py [--quick] [--write]

`--quick` divides the row counts by ten; `--write` appends the table to `RESULTS.md`. Backends take
turns, and each has the best of its three runs: what else the machine does meets all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mock_host import HERE, build, measure, run_worker, scratch, serving, write_input, write_job
from run import Line, machine, span_s, table

KINDS = ("arrow", "pandas", "polars", "polars-lazy")
_TURNS = 3
_GROUP_ROWS = 10_000  # where memory is measured


class Bench:
    """The cases; each returns its lines."""

    def __init__(self, program: Path, scale: float) -> None:
        self._program = program
        self._scale = scale

    def _rows(self, rows: int) -> int:
        return max(1000, int(rows * self._scale))

    def _run(self, kind: str, source: Path, rows: int, *more: str) -> dict[str, Any]:
        """One run in a process of its own; rows/s are those that the server saw."""
        with serving(self._program) as mock:
            words = [kind, mock.url, str(source), "256", *more]
            command = [sys.executable, str(HERE / "frame_run.py"), *words]
            told, said = source.with_name("told.json"), source.with_name("said.txt")
            with told.open("w") as out, said.open("w") as errors:
                measured = measure(command, stdout=out, stderr=errors)
            assert measured.code == 0, f"{kind}: {said.read_text()[-2000:]}"
            found = dict(json.loads(told.read_text()))
            found["rows_per_s"] = rows / span_s(mock)
            found["first_s"] = mock.stats()["first_at"] - found["began_at"]
        found["peak_mb"] = measured.peak_mb
        return found

    def frames(self) -> list[Line]:
        """Frames of every library through `run`, in one process each."""
        rows = self._rows(100_000)
        best: dict[str, dict[str, Any]] = {}
        for _ in range(_TURNS):
            for kind in KINDS:
                with scratch() as folder:
                    write_input(folder / "in.parquet", rows)
                    found = self._run(kind, folder / "in.parquet", rows)
                if kind not in best or found["rows_per_s"] > best[kind]["rows_per_s"]:
                    best[kind] = found
        arrow = best["arrow"]["rows_per_s"]
        lines = []
        for kind, found in best.items():
            share = found["rows_per_s"] / arrow
            cpu = found["cpu_s"] / rows * 1e3
            goal = "≥ 80 % of arrow" if kind in {"pandas", "polars"} else ""
            figure = f"{found['rows_per_s']:,.0f} rows/s ({share:.0%} of arrow), {cpu:.3f} ms"
            figure += f" CPU/row, {found['peak_mb']:.0f} MB"
            if "into_s" in found:
                figure += f"; conversion {found['into_s']:.2f} s in, {found['back_s']:.2f} s back"
            lines.append(Line(f"`run` over a frame of {rows:,} rows: {kind}", figure, goal))
        return lines

    def submitted(self) -> list[Line]:
        """Files that a submitted job's library reads: rows/s beside those read without one."""
        rows = self._rows(100_000)
        rates: dict[str | None, float] = {}
        peaks: dict[str | None, float] = {}
        for _ in range(_TURNS):
            for backend in (None, "arrow", "pandas", "polars"):
                with scratch() as folder, serving(self._program) as mock:
                    write_input(folder / "in.parquet", rows)
                    changes = {"max_concurrency": 256, "data_backend": backend}
                    measured = run_worker(write_job(folder, mock, **changes))
                    rate = rows / span_s(mock)
                if rate > rates.get(backend, 0.0):
                    rates[backend], peaks[backend] = rate, measured.peak_mb
        return [
            Line(
                f"`job submit` of {rows:,} rows, `--data-backend {backend or '-'}`",
                f"{rate:,.0f} rows/s ({rate / rates['arrow']:.0%} of arrow), "
                f"{peaks[backend]:.0f} MB",
                "≥ 80 % of arrow" if backend in {"pandas", "polars"} else "",
            )
            for backend, rate in rates.items()
        ]

    def flat_memory(self) -> list[Line]:
        """Peak memory for several times the rows, where rows are never all in memory.

        polars reads up to 16 row groups ahead: they are so small that the few rows fill them too.
        """
        few, many = self._rows(300_000), self._rows(1_000_000)
        cases: dict[str, Callable[[Path, int], float]] = {
            "Parquet, submitted": lambda folder, _: self._submitted_peak(folder, None),
            "Parquet, submitted with `--data-backend polars`": lambda folder, _: (
                self._submitted_peak(folder, "polars")
            ),
            "`run` over a lazy polars frame": lambda folder, rows: float(
                self._run("polars-lazy", folder / "in.parquet", rows)["peak_mb"]
            ),
        }
        lines = []
        for what, peak_of in cases.items():
            peaks = []
            for rows in (few, many):
                with scratch() as folder:
                    write_input(folder / "in.parquet", rows, group_rows=_GROUP_ROWS)
                    peaks.append(peak_of(folder, rows))
            figure = f"{peaks[0]:.0f} → {peaks[1]:.0f} MB ({peaks[1] / peaks[0]:.2f} x)"
            lines.append(Line(f"peak memory, {few:,} → {many:,} rows: {what}", figure, "≤ 1.15 x"))
        return lines

    def _submitted_peak(self, folder: Path, backend: str | None) -> float:
        with serving(self._program) as mock:
            job = write_job(folder, mock, max_concurrency=256, data_backend=backend)
            return run_worker(job).peak_mb

    def ray(self) -> list[Line]:
        """A Ray Dataset over a cluster of this machine; one worker, as arrow has."""
        rows = self._rows(100_000)
        found: dict[int, dict[str, Any]] = {}
        for size in (1, rows):
            with scratch() as folder:
                write_input(folder / "in.parquet", size)
                found[size] = self._run("ray", folder / "in.parquet", size, "2")
        with scratch() as folder:
            write_input(folder / "in.parquet", rows)
            arrow = self._run("arrow", folder / "in.parquet", rows)
        one, all_of_them = found[1], found[rows]
        cpu = (all_of_them["cpu_s"] - one["cpu_s"]) / (rows - 1) * 1e3
        share = all_of_them["rows_per_s"] / arrow["rows_per_s"]
        return [
            Line(
                "Ray's start-up: `ray.init` of a cluster on this machine / `run` to the first "
                "request",
                f"{one['start_s']:.1f} s / {one['first_s']:.1f} s",
            ),
            Line(
                f"`run` over a Ray Dataset of {rows:,} rows, one worker, beside arrow right after",
                f"{all_of_them['rows_per_s']:,.0f} rows/s ({share:.0%} of arrow), {cpu:.3f} ms "
                f"CPU/row in all of Ray's processes (arrow {arrow['cpu_s'] / rows * 1e3:.3f})",
            ),
            Line(
                "the same, of one row / of all, results joined on the cluster",
                f"{one['run_s']:.1f} s / {all_of_them['run_s']:.1f} s",
            ),
        ]


def main() -> None:
    """Run every case and print, or keep, the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--only", default="", help="cases by name, with commas")
    flags = parser.parse_args()
    with scratch() as folder:
        bench = Bench(build(folder), 0.1 if flags.quick else 1.0)
        cases = (bench.frames, bench.submitted, bench.flat_memory, bench.ray)
        lines = []
        for case in cases:
            if flags.only and case.__name__ not in flags.only.split(","):
                continue
            found = case()
            print(json.dumps([line.__dict__ for line in found], ensure_ascii=False), flush=True)
            lines += found
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    title = f"## Data backends, {datetime.now(UTC):%Y-%m-%d}\n\n{machine()}; load averages at the "
    title += f"end {load}. `make bench-data`.\n\n"
    if flags.write:
        with (HERE / "RESULTS.md").open("a") as file:
            file.write(f"\n{title}{table(lines)}\n")
    print(title + table(lines))


if __name__ == "__main__":
    main()
