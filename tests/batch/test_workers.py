"""One job over several processes: no row lost, none twice, whatever happens to the processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from domyn_swarm.jobs.worker import main


def start(bench: Any, **changes: Any) -> subprocess.Popen[bytes]:
    folder = bench.job_folder(bench.spec(**changes))
    command = [sys.executable, "-m", "domyn_swarm.jobs.worker", str(folder)]
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def until(condition: Any, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def workers(job: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process(job.pid).children()
        if "domyn_swarm.jobs.range_worker" in child.cmdline()
    ]


def right(bench: Any, rows: int) -> bool:
    found = [row["answer"] for row in bench.output()]
    return found == [f"P{number}" for number in range(rows)]


@pytest.mark.parametrize("rows", [0, 1, 2, 5, 3000])
def test_several_workers_answer_every_row_once_and_in_order(bench: Any, rows: int) -> None:
    bench.write(rows)
    folder = bench.job_folder(bench.spec(workers=3, max_concurrency=24))
    assert main([str(folder)]) == 0
    assert right(bench, rows)
    assert sum(bench.server.asked.values()) == rows
    result = json.loads((folder / "result.json").read_text())
    assert (result["rows_done"], result["requests"]) == (rows, rows)


def test_concurrency_is_the_jobs_total(bench: Any, answer: Any) -> None:
    bench.write(400)
    bench.server.behave = lambda _prompt, _nth: answer(delay_s=0.05)
    folder = bench.job_folder(bench.spec(workers=3, max_concurrency=20))
    assert main([str(folder)]) == 0
    assert 15 <= bench.server.most_at_once <= 20


def test_more_workers_than_calls_at_once(bench: Any, answer: Any) -> None:
    bench.write(30)
    bench.server.behave = lambda _prompt, _nth: answer(delay_s=0.01)
    assert main([str(bench.job_folder(bench.spec(workers=4, max_concurrency=2)))]) == 0
    assert bench.server.most_at_once <= 2
    assert right(bench, 30)


def test_a_slow_range_does_not_hold_the_end_back(bench: Any, answer: Any) -> None:
    """The first rows are slow; whoever has them must not sit on others meanwhile."""
    bench.write(300)
    slow = {f"p{number}" for number in range(4)}
    bench.server.behave = lambda prompt, _nth: answer(delay_s=3.0 if prompt in slow else 0.002)
    began: dict[str, float] = {}
    behave = bench.server.behave

    def timed(prompt: str, nth: int) -> Any:
        began[prompt] = time.monotonic()
        return behave(prompt, nth)

    bench.server.behave = timed
    assert main([str(bench.job_folder(bench.spec(workers=2, max_concurrency=8)))]) == 0
    others = [at for prompt, at in began.items() if prompt not in slow]
    assert max(others) - min(began.values()) < 2.5


@pytest.mark.parametrize("seed", range(3))
def test_a_killed_worker_is_replaced_and_costs_rows_in_flight_only(
    bench: Any, answer: Any, seed: int
) -> None:
    bench.write(2000)
    bench.server.behave = lambda _prompt, _nth: answer(delay_s=0.02)
    job = start(bench, workers=2, max_concurrency=20)
    until(lambda: bench.server.answered.total() > 300 * (seed + 1))
    workers(job)[seed % 2].kill()
    assert job.wait(60) == 0
    assert right(bench, 2000)
    assert bench.server.asked.total() <= 2000 + 20


def test_a_killed_coordinator_takes_its_workers_along_and_the_next_goes_on(
    bench: Any, answer: Any
) -> None:
    bench.write(2000)
    bench.server.behave = lambda _prompt, _nth: answer(delay_s=0.02)
    job = start(bench, workers=2, max_concurrency=20)
    until(lambda: bench.server.answered.total() > 500)
    children = workers(job)
    job.kill()
    job.wait(10)
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    assert start(bench, workers=3, max_concurrency=20).wait(60) == 0
    assert right(bench, 2000)
    assert bench.server.asked.total() <= 2000 + 20


def test_all_of_them_killed_at_once(bench: Any, answer: Any) -> None:
    bench.write(1500)
    bench.server.behave = lambda _prompt, _nth: answer(delay_s=0.02)
    for kills in range(3):
        job = start(bench, workers=2 + kills, max_concurrency=20)
        until(lambda kills=kills: bench.server.answered.total() > 300 * (kills + 1))
        family = [*workers(job), job]
        for process in family:
            os.kill(process.pid, signal.SIGKILL)
        job.wait(10)
    assert start(bench, workers=1, max_concurrency=20).wait(60) == 0
    assert right(bench, 1500)
    assert bench.server.asked.total() <= 1500 + 3 * 20


def test_sigterm_finishes_what_is_in_flight_in_every_worker(bench: Any, answer: Any) -> None:
    bench.write(2000)
    bench.server.behave = lambda _prompt, _nth: answer(delay_s=0.2)
    job = start(bench, workers=2, max_concurrency=20)
    until(lambda: bench.server.answered.total() > 50)
    job.terminate()
    assert job.wait(30) == 128 + signal.SIGTERM
    asked = bench.server.asked.total()
    assert bench.server.answered.total() == asked
    bench.server.behave = lambda _prompt, _nth: answer()
    assert start(bench, workers=2, max_concurrency=20).wait(60) == 0
    assert bench.server.asked.total() == 2000
    assert right(bench, 2000)


def test_a_wholesale_failure_stops_all_workers(bench: Any, answer: Any) -> None:
    bench.write(20_000)
    bench.server.behave = lambda _prompt, _nth: answer(status=400, delay_s=0.005)
    folder = bench.job_folder(bench.spec(workers=2, max_concurrency=20))
    assert main([str(folder)]) == 6
    assert bench.server.asked.total() < 5_000
    assert "rows failed and 0 were answered" in (folder / "result.json").read_text()
    bench.server.behave = lambda _prompt, _nth: answer()
    assert main([str(folder)]) == 0
    assert right(bench, 20_000)


def test_a_row_that_kills_workers_ends_the_job_with_one_error(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deadly.py").write_text(
        "import os\n"
        "from domyn_swarm import SwarmJob\n"
        "class Deadly(SwarmJob):\n"
        "    input_columns = ('prompt',)\n"
        "    output_schema = ['answer']\n"
        "    async def transform_item(self, item):\n"
        "        if item == 'p7':\n"
        "            os._exit(9)\n"
        "        return item.upper()\n"
    )
    bench.write(50)
    spec = bench.spec(job="deadly:Deadly", import_path=str(tmp_path), workers=2, max_concurrency=4)
    folder = bench.job_folder(spec)
    assert main([str(folder)]) == 6
    assert (
        "worker processes died, the last with exit code 9" in (folder / "result.json").read_text()
    )


def test_a_worker_that_cannot_write_ends_the_job(bench: Any, answer: Any) -> None:
    """As on a full disk: the checkpoint's folder goes while the job runs."""
    bench.write(5000)
    bench.server.behave = lambda _prompt, _nth: answer(delay_s=0.01)
    job = start(bench, workers=2, max_concurrency=10, checkpoint_interval=10)
    until(lambda: bench.server.answered.total() > 200)
    limit = psutil.RLIMIT_FSIZE
    for child in workers(job):
        child.rlimit(limit, (4096, 4096))
    assert job.wait(60) == 6
    log = (bench.folder / "job" / "log").read_text()
    assert "Cannot write the checkpoint" in log
    assert start(bench, workers=2, max_concurrency=10).wait(60) == 0
    assert right(bench, 5000)


def test_workers_wait_together_for_an_endpoint_that_is_gone(bench: Any, answer: Any) -> None:
    bench.write(1000)
    bench.server.behave = lambda _prompt, _nth: answer(delay_s=0.01)
    job = start(bench, workers=2, max_concurrency=10)
    until(lambda: bench.server.answered.total() > 100)
    bench.server.stop()
    progress = bench.folder / "job" / "progress.json"
    until(lambda: json.loads(progress.read_text())["state"] == "paused")
    bench.server.start()
    assert job.wait(60) == 0
    assert right(bench, 1000)
