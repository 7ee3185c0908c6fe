"""A swarm whose disk is full, and has room again: it serves all the while."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest

from endpoint.bench import Bench
from faults.preloaded import FullDisk
from patience import until


@pytest.fixture
def disk(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FullDisk:
    made = FullDisk(bench.paths.root, tmp_path)
    for name, value in made.env.items():
        monkeypatch.setenv(name, value)
    return made


def router_of(endpoint: psutil.Process) -> psutil.Process | None:
    return next(iter(endpoint.children()), None)


def test_the_endpoint_outlives_a_full_disk_and_its_router_with_it(
    bench: Bench, disk: FullDisk, tmp_path: Path
) -> None:
    (tmp_path / "textfiles").mkdir()
    program = bench.start_endpoint(textfile_dir=str(tmp_path / "textfiles"), replicas=1)
    before = bench.address()
    endpoint = psutil.Process(program.pid)
    first = until(lambda: router_of(endpoint))
    disk.fill()
    first.kill()
    replica = bench.replica().start()
    second = until(lambda: (one := router_of(endpoint)) and one.pid != first.pid and one)
    second.kill()  # and once more, whatever the first time left
    until(lambda: (one := router_of(endpoint)) and one.pid not in (first.pid, second.pid))
    disk.make_room()
    bench.until_state("ready")
    assert program.poll() is None
    assert bench.address().url == before.url
    assert replica.process.poll() is None
    os.kill(program.pid, signal.SIGTERM)
    assert program.wait() == 0


def test_an_engine_that_a_full_disk_keeps_from_starting_is_started_later(
    bench: Bench, disk: FullDisk
) -> None:
    bench.start_collector()
    disk.fill()
    replica = bench.replica().start()
    until(lambda: (view := bench.view()) and "cannot start the engine" in str(view.replicas))
    disk.make_room()
    bench.until_state("ready")
    assert replica.process.poll() is None
