"""SIGKILL, SIGTERM, damage and outages in the middle of a run, counted at the server."""

from __future__ import annotations

import json
import random
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

import warm
from patience import until

CONCURRENCY = 16


def start(bench: Any, **changes: Any) -> warm.Process:
    folder = bench.job_folder(bench.spec(max_concurrency=CONCURRENCY, **changes))
    return warm.start_worker(folder)


def finish(bench: Any, **changes: Any) -> int:
    code = start(bench, **changes).wait()
    log = warm.said(bench.folder / "job")
    assert "Traceback" not in log, log
    return code


def wait_until_answered(bench: Any, count: int, worker: warm.Process) -> None:
    until(
        lambda: bench.server.answered.total() >= count or worker.poll() is not None, every_s=0.002
    )


def wait_until_paused(bench: Any) -> None:
    progress = Path(bench.folder / "job" / "progress.json")
    until(lambda: json.loads(progress.read_text())["state"] == "paused")


def check_output(bench: Any, rows: int) -> None:
    assert [row["answer"] for row in bench.output()] == [f"P{n}" for n in range(rows)]


@pytest.mark.parametrize("seed", range(3))
def test_sigkill_loses_only_rows_in_flight(bench: Any, answer: Any, seed: int) -> None:
    rows = 600
    bench.write(rows)
    bench.server.behave = lambda _prompt, _nth: answer(delay_s=0.002)
    moment = random.Random(seed)
    kills = 3
    for _ in range(kills):
        with start(bench) as worker:
            so_far = sum(bench.server.answered.values())
            wait_until_answered(bench, so_far + moment.randrange(1, 150), worker)
            worker.send_signal(signal.SIGKILL)
            worker.wait()
    assert finish(bench) == 0
    check_output(bench, rows)
    redone = sum(bench.server.asked.values()) - rows
    assert redone <= kills * CONCURRENCY


def test_sigterm_finishes_rows_in_flight_and_keeps_them(bench: Any, answer: Any) -> None:
    rows = 400
    bench.write(rows)
    bench.server.behave = lambda _prompt, _nth: answer(delay_s=0.05)
    with start(bench) as worker:
        wait_until_answered(bench, 50, worker)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait() == 128 + signal.SIGTERM
    result = json.loads((bench.folder / "job" / "result.json").read_text())
    assert result["output"] is None
    assert result["rows_done"] == sum(bench.server.answered.values())
    assert finish(bench) == 0
    check_output(bench, rows)
    assert set(bench.server.asked.values()) == {1}


def test_a_checkpoint_file_cut_anywhere_is_mended(bench: Any) -> None:
    rows = 200
    bench.write(rows)
    assert finish(bench) == 0
    [segment] = (bench.folder / "checkpoints").glob("*/*/*.segment")
    whole = segment.read_bytes()
    for cut in (0, 1, len(whole) // 3, len(whole) - 1):
        segment.write_bytes(whole[:cut])
        for later in (bench.folder / "checkpoints").glob("*/*/*.segment"):
            if later != segment:
                later.unlink()
        assert finish(bench) == 0
        check_output(bench, rows)


def test_values_damaged_in_place_are_asked_again(bench: Any) -> None:
    rows = 200
    bench.write(rows)
    assert finish(bench) == 0
    [segment] = (bench.folder / "checkpoints").glob("*/*/*.segment")
    damaged = bytearray(segment.read_bytes())
    damaged[-5] ^= 0xFF
    segment.write_bytes(damaged)
    bench.server.asked.clear()
    assert finish(bench) == 0
    check_output(bench, rows)
    assert sum(bench.server.asked.values()) == rows


def test_the_endpoint_disappears_and_the_job_waits(bench: Any, answer: Any) -> None:
    rows = 300
    bench.write(rows)
    bench.server.behave = lambda _prompt, _nth: answer(delay_s=0.01)
    with start(bench, retries=1) as worker:
        wait_until_answered(bench, 60, worker)
        bench.server.stop()
        wait_until_paused(bench)
        bench.server.start()
    log = warm.said(bench.folder / "job")
    assert worker.returncode == 0, log
    assert "does not answer; waiting for it" in log
    check_output(bench, rows)


def test_a_full_disk_is_one_clear_error_and_resumable(bench: Any, tmp_path: Path) -> None:
    rows = 3000
    bench.write(rows)
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system needs the right to mount one")
    try:
        folder = bench.job_folder(bench.spec(checkpoint_root=str(small), max_concurrency=256))
        assert warm.start_worker(folder).wait() == 6
        assert "Cannot write the checkpoint" in warm.said(folder)
        assert "Traceback" not in warm.said(folder)
        grow = ["mount", "-o", "remount,size=64m", str(small)]
        subprocess.run(grow, check=True)
        assert finish(bench, checkpoint_root=str(small)) == 0
        check_output(bench, rows)
        redone = sum(bench.server.asked.values()) - rows
        assert redone <= 2 * 256
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_router_without_replicas_is_an_outage_and_no_row_error(bench: Any, answer: Any) -> None:
    rows = 200
    bench.write(rows)
    bench.server.behave = lambda _prompt, _nth: answer(
        delay_s=0.005, status=200 if bench.server.serving else 404
    )
    with start(bench, retries=0) as worker:
        wait_until_answered(bench, 40, worker)
        bench.server.serving = False
        wait_until_paused(bench)
        bench.server.serving = True
    assert worker.returncode == 0, warm.said(bench.folder / "job")
    check_output(bench, rows)
