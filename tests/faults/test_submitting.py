"""Jobs that are submitted from a home whose disk fails once, or from some moment on, at every call
in turn: the command ends well or says why in one error, nothing is forgotten, nothing asked twice.
"""

from __future__ import annotations

import errno
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from domyn_swarm.model import JobStatus
from domyn_swarm.services.jobs import JobService
from faults.faulty_disk import Ended, Fault, FaultyDisk
from model_server import KEY, Bench, ModelServer
from patience import limit_s, until

ROWS = 4
NOT_REACHED = 2
SAMPLE = 2
SERIES = [
    ("create", errno.EROFS, True),
    ("create", errno.EDQUOT, False),
    ("write", errno.ENOSPC, True),
    ("write", errno.ENOSPC, False),
    ("fsync", errno.EIO, False),
    ("rename", errno.EDQUOT, True),
    ("unlink", errno.EIO, False),
    ("listdir", errno.EIO, False),
]


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyDisk]:
    made = FaultyDisk(tmp_path_factory.mktemp("library"))
    yield made
    made.end()


@dataclass(frozen=True)
class Submissions:
    """Jobs with homes of their own, each over other rows."""

    disk: FaultyDisk
    server: ModelServer
    root: Path
    monkeypatch: pytest.MonkeyPatch
    numbers: Iterator[int]

    def check(self, fault: Fault) -> None:
        """What must be true whatever call failed."""
        number = next(self.numbers)
        folder = self.root / f"submission-{number}"
        home = folder / "home"
        home.mkdir(parents=True)
        self.monkeypatch.setenv("DOMYN_SWARM_HOME", str(home))
        self.monkeypatch.setenv("DOMYN_SWARM_API_TOKEN", KEY)
        bench = Bench(folder, self.server)
        bench.write(ROWS, start=number * ROWS)
        ended = self.submit(bench, home, fault)
        assert "Traceback" not in ended.said, f"{fault}\n{ended.said}"
        assert ended.code in (0, 2, 3, 4, 6), f"{fault}\n{ended.said}"
        errors = [line for line in ended.said.splitlines() if line.startswith("error: ")]
        assert len(errors) == (ended.code != 0), f"{fault}\n{ended.said}"
        service = JobService()
        started = service.list()
        if ended.code == 0:
            assert len(started) == 1
        folders = {path.name for path in home.glob("jobs/*")}
        assert folders == {job.job_id for job in started}, f"{fault}\n{ended.said}"
        for job in started:
            assert job.status is not JobStatus.PENDING or "may have been submitted" in ended.said
            until(lambda ref=job.job_id: service.status(ref).status is not JobStatus.PENDING)
            service.wait(job.job_id)
        if not (folder / "out.parquet").exists():
            again = self.submit(bench, home, None)
            assert again.code == 0, f"after {fault}:\n{again.said}"
            service.wait(service.list()[0].job_id)
        assert [row["answer"] for row in bench.output()] == [
            f"P{one}" for one in range(number * ROWS, (number + 1) * ROWS)
        ]
        asked = [self.server.asked[f"p{one}"] for one in range(number * ROWS, (number + 1) * ROWS)]
        assert asked == [1] * ROWS, f"{fault}\n{ended.said}"

    def submit(self, bench: Bench, home: Path, fault: Fault | None) -> Ended:
        where = ["--endpoint", self.server.url, "--model", "m", "--input-column", "prompt"]
        source, target = str(bench.folder / "in.parquet"), str(bench.folder / "out.parquet")
        rows = ["--input", source, "--output", target, "--output-column", "answer"]
        return self.disk.command(home, ["job", "submit", *where, *rows, "-d"], fault, limit_s())


@pytest.fixture
def submissions(
    disk: FaultyDisk, server: ModelServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Submissions:
    return Submissions(disk, server, tmp_path, monkeypatch, itertools.count())


@pytest.fixture(scope="module")
def calls(disk: FaultyDisk, tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """How often a submission without a fault does each of them."""
    server = ModelServer()
    folder = tmp_path_factory.mktemp("counted")
    (folder / "home").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOMYN_SWARM_HOME", str(folder / "home"))
        patch.setenv("DOMYN_SWARM_API_TOKEN", KEY)
        bench = Bench(folder, server)
        bench.write(ROWS)
        made = Submissions(disk, server, folder, patch, itertools.count())
        ended = made.submit(bench, folder / "home", None)
        assert ended.code == 0, ended.said
        service = JobService()
        service.wait(service.list()[0].job_id)
    server.end()
    assert min(ended.calls[kind] for kind, *_ in SERIES) > 0  # else a series shows nothing
    return ended.calls


def _named(series: tuple[str, int, bool]) -> str:
    kind, error, for_ever = series
    return f"{kind}-{errno.errorcode[error]}-{'from-then-on' if for_ever else 'once'}"


@pytest.mark.parametrize("series", SERIES, ids=_named)
def test_a_submission_ends_well_or_says_why(
    submissions: Submissions, calls: dict[str, int], series: tuple[str, int, bool]
) -> None:
    kind, error, for_ever = series
    step = max(1, calls[kind] // SAMPLE)
    for at in range(random.randrange(step) + 1, calls[kind] + 1, step):
        submissions.check(Fault(kind, at, error, for_ever))


@pytest.mark.slow
@pytest.mark.parametrize("series", SERIES, ids=_named)
def test_every_submission_ends_well_or_says_why(
    submissions: Submissions, calls: dict[str, int], series: tuple[str, int, bool]
) -> None:
    kind, error, for_ever = series
    for at in range(1, calls[kind] + NOT_REACHED):
        submissions.check(Fault(kind, at, error, for_ever))
