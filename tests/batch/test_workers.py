"""One job over several processes: no row lost, none twice, whatever happens to the processes."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

import psutil
import pytest

import warm
from domyn_swarm.jobs.worker import main
from patience import limit_s, until
from process_list import words_of


def start(bench: Any, **changes: Any) -> warm.Process:
    return warm.start_worker(bench.job_folder(bench.spec(**changes)))


def workers(job: warm.Process) -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process(job.pid).children()
        if "domyn_swarm.jobs.linked_worker" in words_of(child)
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
    assert bench.server.most_at_once <= 20


def test_a_killed_worker_is_replaced_and_costs_rows_in_flight_only(bench: Any, answer: Any) -> None:
    bench.write(2000)
    bench.server.behave = lambda _prompt, _nth: answer(delay_s=0.02)
    job = start(bench, workers=2, max_concurrency=20)
    until(lambda: bench.server.answered.total() > 300)
    workers(job)[0].kill()
    assert job.wait() == 0
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
    job.wait()
    _, alive = psutil.wait_procs(children, timeout=limit_s())
    assert not alive
    assert start(bench, workers=3, max_concurrency=20).wait() == 0
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
        job.wait()
    assert start(bench, workers=1, max_concurrency=20).wait() == 0
    assert right(bench, 1500)
    assert bench.server.asked.total() <= 1500 + 3 * 20


def test_sigterm_finishes_what_is_in_flight_in_every_worker(bench: Any, answer: Any) -> None:
    bench.write(2000)
    bench.server.behave = lambda _prompt, _nth: answer(delay_s=0.2)
    job = start(bench, workers=2, max_concurrency=20)
    until(lambda: bench.server.answered.total() > 50)
    job.send_signal(signal.SIGTERM)
    assert job.wait() == 128 + signal.SIGTERM
    asked = bench.server.asked.total()
    assert bench.server.answered.total() == asked
    bench.server.behave = lambda _prompt, _nth: answer()
    assert start(bench, workers=2, max_concurrency=20).wait() == 0
    assert bench.server.asked.total() == 2000
    assert right(bench, 2000)


def test_a_wholesale_failure_stops_all_workers(bench: Any, answer: Any) -> None:
    bench.write(6_000)
    bench.server.behave = lambda _prompt, _nth: answer(status=400, delay_s=0.005)
    folder = bench.job_folder(bench.spec(workers=2, max_concurrency=20))
    assert main([str(folder)]) == 6
    assert bench.server.asked.total() < 4_000
    assert "rows failed and 0 were answered" in (folder / "result.json").read_text()
    bench.server.behave = lambda _prompt, _nth: answer()
    assert main([str(folder)]) == 0
    assert right(bench, 6_000)


def test_a_worker_that_cannot_write_ends_the_job(bench: Any, answer: Any) -> None:
    """As on a full disk: the checkpoint's folder goes while the job runs."""
    bench.write(5000)
    bench.server.behave = lambda _prompt, _nth: answer(delay_s=0.01)
    job = start(bench, workers=2, max_concurrency=10, checkpoint_interval=10)
    until(lambda: bench.server.answered.total() > 200)
    limit = psutil.RLIMIT_FSIZE
    for child in workers(job):
        child.rlimit(limit, (4096, 4096))
    assert job.wait() == 6
    log = warm.said(bench.folder / "job")
    assert "Cannot write the checkpoint" in log
    assert start(bench, workers=2, max_concurrency=10).wait() == 0
    assert right(bench, 5000)
