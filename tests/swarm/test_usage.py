"""The ledger on this machine: real programs, killed and ended, against what the system says."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from command_line import CommandLine
from domyn_swarm import DomynLLMSwarm, watchdog
from domyn_swarm.backends import ledger
from domyn_swarm.backends.endpoint.view import read_view
from domyn_swarm.backends.gpu_time import Use
from domyn_swarm.errors import JobNotFound, StateError, SwarmNotFound
from domyn_swarm.jobs import ChatCompletionJob
from domyn_swarm.model import utc_now
from domyn_swarm.paths import SwarmPaths
from domyn_swarm.services.database import DatabaseService
from domyn_swarm.services.jobs import JobService
from domyn_swarm.services.requests import JobRequest
from domyn_swarm.services.swarms import SwarmService
from domyn_swarm.services.usage import UsageService
from domyn_swarm.services.usage_report import SwarmUsage
from domyn_swarm.state import SwarmStore
from domyn_swarm.swarm.lifecycle import SwarmLifecycle
from local_swarms import config, launch_of
from patience import limit_s, scaled, until

GPUS = 2
WATTS = 350.0
# What a real one prints for `--query-gpu=power.draw --format=csv,noheader,nounits --id=0,1`
NVIDIA_SMI = f"""#!/bin/sh
for word in "$@"; do
  case "$word" in --id=*) ids=$(echo "${{word#--id=}}" | tr ',' ' ');; esac
done
for id in $ids; do echo "{WATTS:.2f}"; done
"""


Seconds = dict[int, float]


class Lifetimes:
    """When processes of this machine began and ended, as the system tells it."""

    def __init__(self) -> None:
        self.spans: dict[int, tuple[float, float]] = {}
        self._threads: list[threading.Thread] = []

    def follow(self, pid: int) -> None:
        """From now on. Since the boot its begin is known to a tick; the boot to a second only."""
        began = psutil.Process(pid).create_time()
        ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
        up_s = float(Path("/proc/uptime").read_text().split()[0])
        lived_since = time.time() - (up_s - ticks / os.sysconf("SC_CLK_TCK"))

        def wait() -> None:
            while psutil.pid_exists(pid) and _runs(pid, began):
                time.sleep(0.02)
            self.spans[pid] = (lived_since, time.time())

        self._threads.append(threading.Thread(target=wait, daemon=True))
        self._threads[-1].start()

    def seconds(self) -> Seconds:
        until(lambda: len(self.spans) == len(self._threads))
        return {pid: end - begin for pid, (begin, end) in self.spans.items()}


def _runs(pid: int, began: float) -> bool:
    try:
        process = psutil.Process(pid)
        ended = process.status() == psutil.STATUS_ZOMBIE
        return process.create_time() == began and not ended
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four GPUs, whose power a program tells that prints what nvidia-smi does."""
    for name in ("tmp", "bin"):
        (tmp_path / name).mkdir()
    program = tmp_path / "bin" / "nvidia-smi"
    program.write_text(NVIDIA_SMI)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(watchdog.tempfile, "tempdir", None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")


def pids(paths: SwarmPaths) -> dict[int, int]:
    view = read_view(paths)
    return {} if view is None else {one.replica: one.watchdog_pid or 0 for one in view.replicas}


def ask(swarm: DomynLLMSwarm, folder: Path, rows: int, topic: str) -> str:
    table = pa.table({"prompt": [f"{topic} {number}" for number in range(rows)]})
    pq.write_table(table, folder / f"{topic}.parquet")
    return swarm.submit_job(
        ChatCompletionJob(output_columns=["answer"], max_tokens=3),
        input_path=folder / f"{topic}.parquet",
        output_path=folder / f"{topic}-out.parquet",
        input_columns=["prompt"],
        max_concurrency=4,
        progress=False,
    ).job_id


def test_the_ledger_agrees_with_the_system_and_outlives_every_program_and_the_swarm(
    lifecycle: SwarmLifecycle,
    tmp_path: Path,
    machine: None,
    swarm_home: Path,
    until_held: Callable[[], None],
) -> None:
    first, job, seconds = lived(tmp_path, until_held)
    found = UsageService().usage(swarm="demo").swarms[0]
    assert (found.live, found.gpus_per_replica, len(found.replicas)) == (False, GPUS, 2)
    # The replica that was ended as it should, within 1 %; the killed one within a heartbeat more
    whole = found.replicas[1]
    assert whole.held_gpu_s == pytest.approx(GPUS * seconds[first[1]], rel=0.01)
    killed = found.replicas[0]
    rest = sum(lasted for pid, lasted in seconds.items() if pid != first[1])
    beat_s = 1.0
    assert killed.allocations == 2
    assert killed.held_replica_s == pytest.approx(rest, rel=0.01, abs=scaled(2 * beat_s))
    check_names(found)
    mine = UsageService().usage(job=job)
    assert [one.job_id for one in mine.jobs] == [job]
    assert {one.use for one in mine.total.uses} <= {Use.WORKING, Use.REPEATED, Use.ROWS_WAIT}
    assert 0 < mine.total.gpu_s(Use.WORKING, Use.REPEATED) <= mine.jobs[0].held_gpu_s
    assert mine.jobs[0].held_gpu_s < found.held_gpu_s

    # The swarm is forgotten, and its ledger stays as it was
    before = UsageService().usage()
    DatabaseService().prune(DatabaseService().prunable())
    assert not (swarm_home / "swarms" / "demo").exists()
    after = UsageService().usage()
    assert after.total == before.total
    assert UsageService().usage(job=job).jobs == mine.jobs
    assert UsageService().usage(user=found.user).total == after.total
    assert UsageService().usage(since=utc_now() + timedelta(days=1)).total.held_gpu_s == 0
    check_printed(CommandLine(swarm_home))


def lived(folder: Path, until_held: Callable[[], None]) -> tuple[dict[int, int], str, Seconds]:
    """A swarm that worked, of which a watchdog was killed: its first watchdogs, its first job, and
    how long each watchdog lived.
    """
    lives = Lifetimes()
    keys = {"engine_options": {"latency_s": scaled(0.5)}, "gpus_per_replica": GPUS}
    with DomynLLMSwarm(config(replicas=2, min_ready=2, gpus_per_node=4, **keys)) as swarm:
        record = SwarmStore.open().swarm("demo")
        paths = SwarmPaths(Path(record.swarm_dir))
        first = pids(paths)
        for pid in first.values():
            lives.follow(pid)
        job = ask(swarm, folder, 60, "first")
        os.kill(first[0], signal.SIGKILL)
        until(lambda: pids(paths).get(0) not in (None, 0, first[0]))
        lives.follow(pids(paths)[0])
        until(lambda: swarm.snapshot().replicas_ready == 2)
        ask(swarm, folder, 40, "second")
        live = swarm.usage()
        assert live.live
        assert live.held_gpu_s == pytest.approx(
            sum(one.replica_s for one in live.uses if one.use is not Use.QUEUED) * GPUS, rel=1e-3
        )
        page = JobService().report(job).path.read_text()
        assert "What replicas did" in page
        assert "band working" in set(re.findall(r'class="(band \w+)"', page))
        snapshot = SwarmService().status("demo")
        assert snapshot.usage is not None
        assert snapshot.usage.held_gpu_s >= live.held_gpu_s
        until_held()
    return first, job, lives.seconds()


def check_names(found: SwarmUsage) -> None:
    """Every second has a name, and the energy is that of the power that was told."""
    for one in (found, *found.replicas):
        named = sum(use.gpu_s for use in one.uses if use.use is not Use.QUEUED)
        assert named == pytest.approx(one.held_gpu_s, abs=0.01)
    assert found.gpu_s(Use.WORKING) > 0
    assert found.gpu_s(Use.STARTING) > 0
    assert found.gpu_s(Use.UNKNOWN) < 0.05 * found.held_gpu_s
    assert found.energy_kwh is not None
    assert found.energy_gpu_s > 0.5 * found.held_gpu_s
    assert found.energy_kwh == pytest.approx(found.energy_gpu_s * WATTS / 3.6e6, rel=0.01)


def check_printed(line: CommandLine) -> None:
    table = line("usage", "--swarm", "demo").stdout
    rows, *_ = table.split("\n\n")  # below them are causes, as many as a busy machine gives
    assert max(map(len, rows.splitlines())) <= 80
    assert table.splitlines()[0].split()[:4] == ["replica", "held", "queued", "start"]
    assert "limit too low" in table  # four requests for two replicas of many slots
    assert "total" in table
    assert "kWh" in table
    printed = json.loads(line("usage", "--since", "7d", "--json").stdout)
    assert printed["swarms"][0]["name"] == "demo"
    refused = line("usage", "--since", "yesterday")
    assert refused.returncode == 2
    assert "7d, 12h or 90m" in refused.stderr


@pytest.fixture
def until_held(tmp_path: Path) -> Callable[[], None]:
    """Waits until so much was held that a hundredth of it is more than the clocks' grain."""
    began = time.monotonic()

    def wait() -> None:
        until(lambda: time.monotonic() - began > 15.0)

    return wait


def test_a_job_that_ended_with_an_earlier_swarm_wanted_nothing_of_the_next_of_its_name(
    lifecycle: SwarmLifecycle, tmp_path: Path
) -> None:
    pq.write_table(pa.table({"prompt": ["p"]}), tmp_path / "in.parquet")
    held = tmp_path / "held"
    held.touch()
    options = {"errors": [{"held_by": str(held)}]}
    lifecycle.up(launch_of(engine_options=options), timeout_s=limit_s())
    request = JobRequest(
        swarm="demo",
        input=str(tmp_path / "in.parquet"),
        input_columns=("prompt",),
        output=str(tmp_path / "out.parquet"),
    )
    job = JobService().submit(request)
    lifecycle.down("demo")  # and nobody looks at the job afterwards
    second = lifecycle.up(launch_of(), timeout_s=limit_s()).record.tag
    lifecycle.down("demo")
    found = UsageService().usage(tag=second)
    assert found.total.held_replica_s > 0
    assert job.job_id not in {one.job_id for one in found.jobs}
    assert Use.ROWS_WAIT not in {one.use for one in found.total.uses}


def test_what_was_never_there_is_an_error_with_a_name() -> None:
    service = UsageService()
    assert service.usage().swarms == ()
    with pytest.raises(SwarmNotFound, match="demo"):
        service.usage(swarm="demo")
    with pytest.raises(JobNotFound, match="j1"):
        service.usage(job="j1")
    with pytest.raises(StateError, match="nobody"):
        service.usage(user="nobody")
    assert ledger.entries() == []
