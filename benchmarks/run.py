"""Measures the execution engine against a fast mock server, beside what it is compared with.

    python benchmarks/run.py [--quick] [--write]

`--quick` divides the row counts by ten; `--write` appends the table to `RESULTS.md`. Figures of one
run may be compared with each other, those of different runs only by their ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import limits
from mock_host import (
    Measured,
    Mock,
    build,
    measure,
    run_worker,
    scratch,
    serving,
    write_input,
    write_job,
)

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Line:
    """One row of the table."""

    what: str
    figure: str
    goal: str = ""


def span_s(mock: Mock) -> float:
    """From the first request to the last reply, as the server saw it."""
    stats = mock.stats()
    return max(1e-9, stats["last_at"] - stats["first_at"])


class Bench:
    """The cases; each returns its lines."""

    def __init__(self, program: Path, scale: float) -> None:
        self._program = program
        self._scale = scale

    def _rows(self, rows: int) -> int:
        return max(1000, int(rows * self._scale))

    def start_up(self) -> list[Line]:
        """From the worker's start to its end over one row; the mock answers at once."""
        walls, cpus = [], []
        for _ in range(3):
            with scratch() as folder, serving(self._program) as mock:
                write_input(folder / "in.parquet", 1)
                measured = run_worker(write_job(folder, mock))
            walls.append(measured.wall_s)
            cpus.append(measured.cpu_s)
        self.start_cpu_s = min(cpus)
        figure = f"{min(walls):.2f} s wall, {min(cpus):.2f} s CPU"
        return [Line("a whole job of one row", figure, "≤ 1.0 s to the first request")]

    def no_latency(self) -> list[Line]:
        """CPU per row and rows per second at 256 in flight, beside the two baselines."""
        rows, few = self._rows(100_000), self._rows(10_000)
        with scratch() as folder:
            write_input(folder / "in.parquet", rows)
            write_input(folder / "few.parquet", few)
            with serving(self._program) as mock:
                ours = run_worker(write_job(folder, mock, max_concurrency=256))
                ours_rate = rows / span_s(mock)
            floor, floor_rate = self._baseline("stripped", folder / "in.parquet", rows)
            theirs, theirs_rate = self._baseline("openai", folder / "few.parquet", few)
        per_row = (ours.cpu_s - self.start_cpu_s) / rows * 1e3
        floor_per_row, theirs_per_row = floor.cpu_s / rows * 1e3, theirs.cpu_s / few * 1e3
        against = f"{per_row / floor_per_row:.2f} x / {theirs_per_row / per_row:.0f} x"
        return [
            Line(
                "chat job, checkpoint on, 256 in flight, no latency",
                f"{per_row:.3f} ms CPU/row, {ours_rate:,.0f} rows/s",
                "≤ 0.10 ms, ≥ 10,000 rows/s",
            ),
            Line("stripped loop", f"{floor_per_row:.3f} ms CPU/row, {floor_rate:,.0f} rows/s"),
            Line("AsyncOpenAI", f"{theirs_per_row:.3f} ms CPU/row, {theirs_rate:,.0f} rows/s"),
            Line(
                "CPU against the stripped loop / less than AsyncOpenAI", against, "≤ 2 x / ≥ 15 x"
            ),
        ]

    def _baseline(self, kind: str, source: Path, rows: int) -> tuple[Measured, float]:
        with serving(self._program) as mock:
            program = str(HERE / "baselines.py")
            measured = measure([sys.executable, program, kind, mock.url, str(source), "256"])
            assert measured.code == 0
            return measured, rows / span_s(mock)

    def user_code(self) -> list[Line]:
        """A user's own job through the OpenAI-shaped client."""
        rows = self._rows(100_000)
        with scratch() as folder, serving(self._program) as mock:
            write_input(folder / "in.parquet", rows)
            own = {"job": "user_job:UserJob", "import_path": str(HERE)}
            ours = run_worker(write_job(folder, mock, max_concurrency=256, **own))
            rate = rows / span_s(mock)
        per_row = (ours.cpu_s - self.start_cpu_s) / rows * 1e3
        figure = f"{per_row:.3f} ms CPU/row, {rate:,.0f} rows/s"
        return [
            Line("user code through the OpenAI-shaped client, 256 in flight", figure, "≤ 0.15 ms")
        ]

    def checkpoint_cost(self) -> list[Line]:
        """The runner with and without a journal; the best of three each."""
        rows = self._rows(100_000)
        cpu: dict[str, float] = {}
        rates: dict[str, float] = {}
        with scratch() as folder:
            write_input(folder / "in.parquet", rows)
            for kind in ("kept", "dropped") * 3:
                with serving(self._program) as mock:
                    program = str(HERE / "engine_alone.py")
                    command = [sys.executable, program, kind, mock.url]
                    measured = measure([*command, str(folder / "in.parquet"), "256"])
                    assert measured.code == 0
                    cpu[kind] = min(cpu.get(kind, 1e9), measured.cpu_s)
                    rates[kind] = max(rates.get(kind, 0.0), rows / span_s(mock))
        micros = (cpu["kept"] - cpu["dropped"]) / rows * 1e6
        share = 1 - rates["kept"] / rates["dropped"]
        figure = f"{micros:.1f} µs CPU/row, {share:.1%} of rows/s"
        return [Line("what keeping results costs", figure, "≤ 5 µs, ≤ 5 %")]

    def latency(self) -> list[Line]:
        """Share of the possible throughput at a fixed latency of 200 ms."""
        lines = []
        for concurrency, goal in ((256, 0.95), (1024, 0.85)):
            rows = self._rows(concurrency * 200)
            with scratch() as folder, serving(self._program, latency_ms=200) as mock:
                write_input(folder / "in.parquet", rows)
                run_worker(write_job(folder, mock, max_concurrency=concurrency))
                share = rows / span_s(mock) / (concurrency / 0.2)
            what = f"200 ms latency, {concurrency} in flight: share of concurrency / latency"
            lines.append(Line(what, f"{share:.1%}", f"≥ {goal:.0%}"))
        return lines

    def workers(self) -> list[Line]:
        """Two workers beside one, on cores that the mock shares."""
        rows, rates = self._rows(100_000), []
        for workers in (1, 2):
            with scratch() as folder, serving(self._program) as mock:
                write_input(folder / "in.parquet", rows)
                run_worker(write_job(folder, mock, max_concurrency=256, workers=workers))
                rates.append(rows / span_s(mock))
        figure = f"{rates[1]:,.0f} rows/s, {rates[1] / rates[0]:.2f} x one worker"
        return [Line("two workers, 256 in flight, no latency", figure, "≥ 1.5 x")]

    def long_tail(self) -> list[Line]:
        """Busy slots under a lognormal latency, a fixed limit and the one that finds itself."""
        lines, rows = [], self._rows(40_000)
        for limit in (160, "auto"):
            with (
                scratch() as folder,
                serving(self._program, latency_ms=100, sigma=1.2, slots=128) as mock,
            ):
                write_input(folder / "in.parquet", rows)
                run_worker(write_job(folder, mock, max_concurrency=limit))
                stats = mock.stats()
            what = f"lognormal latency (sigma 1.2), 128 slots, limit {limit}"
            before_s = stats["asked_at"] - stats["first_at"]
            busy = stats["busy_asked_s"] / (128 * before_s)
            lines.append(Line(f"{what}: busy until the input is used up", f"{busy:.1%}", "≥ 97 %"))
            drain_s = stats["last_at"] - stats["asked_at"]
            best_s = stats["busy_asked_s"] / 128 + drain_s
            over = (before_s + drain_s) / best_s - 1
            lines.append(
                Line(f"{what}: longer than full slots and the drain", f"{over:.1%}", "≤ 2 %")
            )
        return lines

    def memory_and_resume(self) -> list[Line]:
        """Peak memory for ten times the rows, and going on with a finished job."""
        peaks = {}
        for rows in (self._rows(100_000), self._rows(1_000_000)):
            with scratch() as folder, serving(self._program) as mock:
                write_input(folder / "in.parquet", rows)
                job = write_job(folder, mock, max_concurrency=256)
                peaks[rows] = run_worker(job).peak_mb
                before = mock.stats()["requests"]
                again = run_worker(job)
                assert mock.stats()["requests"] == before
                files = sum(1 for _ in (folder / "checkpoints").rglob("*.segment"))
                resumed = self._resume(folder, rows)
        few, many = sorted(peaks)
        ratio = peaks[many] / peaks[few]
        return [
            Line(
                f"peak memory, {few:,} → {many:,} rows",
                f"{peaks[few]:.0f} → {peaks[many]:.0f} MB ({ratio:.2f} x)",
                "≤ 1.15 x, ≤ 300 MB",
            ),
            Line(
                f"a finished job of {many:,} rows again (full fingerprint, output rewritten)",
                f"{again.wall_s:.1f} s, {again.peak_mb:.0f} MB, {files} segments, no request",
                "≤ 10 s, ≤ 300 MB, ≤ 200 files",
            ),
            *resumed,
        ]

    def _resume(self, folder: Path, rows: int) -> list[Line]:
        """Ten more rows than are finished: how soon the first of them is asked."""
        lines = []
        write_input(folder / "in.parquet", rows + 10)
        (folder / "out.parquet").unlink()
        (folder / "out.manifest.json").unlink()
        for fingerprint in ("off", "full"):
            with serving(self._program) as mock:
                job = write_job(folder, mock, max_concurrency=256, fingerprint=fingerprint)
                began = time.monotonic()
                whole = run_worker(job)
                first_s = mock.stats()["first_at"] - began
                asked = mock.stats()["requests"]
            figure = f"{first_s:.1f} s, the whole run {whole.wall_s:.1f} s, {asked} requests"
            what = f"{rows:,} rows finished, 10 new, fingerprint {fingerprint}: first request after"
            lines.append(Line(what, figure, "≤ 2 s, ≤ 10 s" if fingerprint == "off" else ""))
            [checkpoint] = (folder / "checkpoints").iterdir()
            newest = max(checkpoint.glob("*.segment"))
            newest.unlink()  # so that the ten are new for the next as well
        return lines


def table(lines: list[Line]) -> str:
    """Markdown."""
    rows = [f"| {line.what} | {line.figure} | {line.goal} |" for line in lines]
    return "\n".join(["| what | figure | goal |", "|---|---|---|", *rows])


def machine() -> str:
    """What the figures were measured on."""
    model = "unknown processor"
    for text in Path("/proc/cpuinfo").read_text().splitlines():
        if text.startswith("model name"):
            model = text.partition(":")[2].strip()
            break
    return f"{os.cpu_count()} cores, {model}, Python {platform.python_version()}"


def auto_limits() -> list[Line]:
    """`--max-concurrency auto` against the best fixed number, in virtual time."""
    return [Line(what, figure, "≥ 95 %") for what, figure in limits.lines()]


def write_table(title: str, lines: list[Line]) -> None:
    """Append a section to `RESULTS.md`."""
    with (HERE / "RESULTS.md").open("a") as file:
        file.write(
            f"\n## {title}, {datetime.now(UTC):%Y-%m-%d}\n\n{machine()}.\n\n{table(lines)}\n"
        )


def main() -> None:
    """Run every case and print, or keep, the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--write", action="store_true")
    flags = parser.parse_args()
    with scratch() as folder:
        bench = Bench(build(folder), 0.1 if flags.quick else 1.0)
        cases: list[Callable[[], list[Line]]] = [
            *(bench.start_up, bench.no_latency, bench.workers, bench.user_code),
            *(bench.checkpoint_cost, bench.latency),
            *(bench.long_tail, bench.memory_and_resume, auto_limits),
        ]
        lines = []
        for case in cases:
            found = case()
            print(json.dumps([line.__dict__ for line in found], ensure_ascii=False), flush=True)
            lines += found
    scale = " (a tenth of the rows)" if flags.quick else ""
    if flags.write:
        write_table(f"Engine, `make bench`{scale}", lines)
    print(table(lines))


if __name__ == "__main__":
    main()
