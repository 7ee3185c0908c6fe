"""Whole runs on a disk that fails once, or from some moment on, at every call in turn.

After each, the run ends well or says why, and the next run of the job completes it: nothing is
asked twice but what was in flight.
"""

from __future__ import annotations

import errno
import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from faults.faulty_disk import Ended, Fault, FaultyDisk
from model_server import Bench, ModelServer
from patience import limit_s

ROWS = 24
CONCURRENCY = 4
NOT_REACHED = 2  # calls beyond those of a run without a fault: the next ones may be more
SAMPLE = 3  # of the calls of a kind, others each time that `make test` runs


@dataclass(frozen=True)
class Series:
    """Faults of one kind, one at each call in turn."""

    kind: str
    error: int
    for_ever: bool = False
    output: str = "out.parquet"

    def fault(self, at: int) -> Fault:
        return Fault(self.kind, at, self.error, self.for_ever)

    def __str__(self) -> str:
        mode = "from-then-on" if self.for_ever else "once"
        return f"{self.kind}-{errno.errorcode[self.error]}-{mode}"


SERIES = [
    Series("fsync", errno.EDQUOT),
    Series("fsync", errno.EIO, for_ever=True),
    Series("write", errno.ENOSPC),
    Series("write", errno.ENOSPC, for_ever=True, output="out.jsonl"),
    Series("rename", errno.EIO, output="out.jsonl"),
    Series("rename", errno.EDQUOT, for_ever=True),
    Series("listdir", errno.ESTALE),
    Series("listdir", errno.EIO, for_ever=True),
    Series("link", errno.ESTALE),
    Series("create", errno.EDQUOT),
    Series("create", errno.ENOSPC, for_ever=True, output="out.jsonl"),
    Series("unlink", errno.EIO),
    Series("read", errno.ESTALE),
    Series("read", errno.EIO, output="out.jsonl"),
    Series("read", errno.EIO, for_ever=True),
]


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyDisk]:
    made = FaultyDisk(tmp_path_factory.mktemp("library"))
    yield made
    made.end()


class Runs:
    """Jobs of their own, each with other rows, over one server."""

    def __init__(self, disk: FaultyDisk, server: ModelServer, root: Path, output: str) -> None:
        self._disk = disk
        self._server = server
        self._root = root
        self._output = output
        self._numbers = itertools.count()

    def new(self) -> Run:
        number = next(self._numbers)
        folder = self._root / f"run-{number}"
        folder.mkdir()
        return Run(self._disk, Bench(folder, self._server), number * ROWS, self._output)


class Run:
    """One job, run once with a fault and then until it is done."""

    def __init__(self, disk: FaultyDisk, bench: Bench, start: int, output: str) -> None:
        self._disk = disk
        self._bench = bench
        self._prompts = [f"p{number}" for number in range(start, start + ROWS)]
        self._output = output
        bench.write(ROWS, start=start)

    def go(self, fault: Fault | None = None) -> Ended:
        bench = self._bench
        spec = bench.spec(
            max_concurrency=CONCURRENCY,
            checkpoint_interval=5,
            output=str(bench.folder / self._output),
        )
        return self._disk.run(bench.folder, bench.job_folder(spec), fault, limit_s())

    @property
    def asked(self) -> list[int]:
        return [self._bench.server.asked[prompt] for prompt in self._prompts]

    def answers(self) -> list[str]:
        if self._output.endswith(".parquet"):
            return [row["answer"] for row in self._bench.output(self._output)]
        lines = (self._bench.folder / self._output).read_text().splitlines()
        return [json.loads(line)["answer"] for line in lines]

    def check(self, fault: Fault) -> None:
        """What must be true of it, whatever call failed."""
        ended = self.go(fault)
        assert "Traceback" not in ended.said, f"{fault}\n{ended.said}"
        errors = [line for line in ended.said.splitlines() if " ERROR " in line]
        if ended.code == 0:
            assert errors == [], f"{fault}\n{ended.said}"
            assert self.answers() == [prompt.upper() for prompt in self._prompts], str(fault)
            assert self.asked == [1] * ROWS, str(fault)
            return
        said = "".join(errors)
        refused = fault.kind == "read" and "in.parquet cannot be read" in said
        assert ended.code == 6 or (refused and ended.code == 2), f"{fault}\n{ended.said}"
        unheard = fault.kind == "write" and fault.for_ever  # the log is on that disk, too
        assert len(errors) == 1 or unheard, f"{fault}\n{ended.said}"
        again = self.go()
        assert again.code == 0, f"after {fault}:\n{again.said}"
        assert self.answers() == [prompt.upper() for prompt in self._prompts], str(fault)
        assert sum(self.asked) <= ROWS + CONCURRENCY, f"{fault}: {self.asked}\n{ended.said}"


@pytest.fixture(scope="module")
def calls(disk: FaultyDisk, tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """How often a run without a fault does each of them."""
    server = ModelServer()
    run = Runs(disk, server, tmp_path_factory.mktemp("counted"), "out.parquet").new()
    ended = run.go()
    assert ended.code == 0, ended.said
    assert run.asked == [1] * ROWS
    assert min(ended.calls[series.kind] for series in SERIES) > 0  # else one of them shows nothing
    server.end()
    return ended.calls


@pytest.mark.parametrize("series", SERIES, ids=str)
def test_a_run_survives_a_fault_or_says_why(
    disk: FaultyDisk, server: ModelServer, tmp_path: Path, calls: dict[str, int], series: Series
) -> None:
    runs = Runs(disk, server, tmp_path, series.output)
    step = max(1, calls[series.kind] // SAMPLE)
    for at in range(random.randrange(step) + 1, calls[series.kind] + 1, step):
        runs.new().check(series.fault(at))


@pytest.mark.slow
@pytest.mark.parametrize("series", SERIES, ids=str)
def test_a_run_survives_every_fault_or_says_why(
    disk: FaultyDisk, server: ModelServer, tmp_path: Path, calls: dict[str, int], series: Series
) -> None:
    runs = Runs(disk, server, tmp_path, series.output)
    for at in range(1, calls[series.kind] + NOT_REACHED):
        runs.new().check(series.fault(at))
