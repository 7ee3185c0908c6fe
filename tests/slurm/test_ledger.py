"""The ledger of a swarm on a cluster with accounting: whatever ended, and however, the sum is
Slurm's own.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from domyn_swarm.backends import ledger
from domyn_swarm.backends.gpu_time import Use
from domyn_swarm.backends.slurm import printed
from domyn_swarm.backends.slurm.queue import any_replicas_name
from domyn_swarm.services.usage import UsageService
from domyn_swarm.services.usage_report import UsageReport, UsageSums
from domyn_swarm.state import SwarmStore
from patience import scaled
from slurm.cluster import CLIENT_VARIABLES, SlurmCluster
from slurm.fixtures import need_programs
from slurm.swarms import (
    REPLICA_TASK,
    bring_up,
    config,
    down,
    jobs_of,
    program,
    ready,
    task,
    until,
    warn,
)

GPUS = 2


@pytest.fixture(scope="module")
def accounting_cluster() -> Iterator[SlurmCluster]:
    need_programs(accounting=True)
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    cluster = SlurmCluster(folder, nodes=2, accounting=True)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def accounted(accounting_cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> SlurmCluster:
    for name in CLIENT_VARIABLES:
        monkeypatch.setenv(name, accounting_cluster.env[name])
    return accounting_cluster


def accounts(slurm: SlurmCluster) -> list[tuple[str, str, int, int]]:
    """Of each run of a task: id, end, seconds, GPUs, as sacct tells it."""
    form = "JobID,End,ElapsedRaw,AllocTRES,JobName%100"
    told = slurm.run("sacct", "-n", "-P", "-X", "-D", "-o", form).stdout
    found = []
    for line in told.splitlines():
        job, end, elapsed, tres, name = line.split("|")
        gpus = re.search(r"gres/gpu=(\d+)", tres)
        if name.startswith("demo-replicas") and gpus:
            found.append((job, end, int(elapsed), int(gpus[1])))
    return found


def by_its_own_programs() -> UsageReport:
    """As if there were no scheduler to be asked."""
    service, sums = UsageService(), UsageSums(None)
    for entry in ledger.entries():
        sums.add(service.swarm_spans(entry, ask=False), None, None)
    return sums.report(service._clock(), (), only=False)


def test_the_sum_is_that_of_accounting_whatever_was_killed_and_came_back(
    accounted: SlurmCluster,
) -> None:
    bring_up(config(replicas=2, min_ready=2, gpus_per_replica=GPUS))
    try:
        first = task(accounted, 0)
        warn(accounted, first)  # its time limit is near: it goes back into the queue
        until(lambda: len(runs_of(accounted, first)) > 1 and ready() == 2)
        lost = task(accounted, 1)
        os.kill(program(REPLICA_TASK, lost).pid, signal.SIGKILL)
        until(lambda: len(accounts(accounted)) > 3 and ready() == 2)  # its successor runs
        assert lost not in jobs_of(accounted)
        live = UsageService().usage(swarm="demo").swarms[0]
        assert live.live
    finally:
        down()
    until(lambda: all(end != "Unknown" for _, end, *_ in accounts(accounted)))

    runs = accounts(accounted)
    slurms = sum(elapsed * gpus for _, _, elapsed, gpus in runs)
    assert len(runs) >= 4
    own = by_its_own_programs().swarms[0]
    until(lambda: not UsageService().usage(swarm="demo").swarms[0].live)
    found = UsageService().usage(swarm="demo").swarms[0]
    assert found.held_gpu_s == pytest.approx(slurms, rel=0.01)
    assert sum(one.allocations for one in found.replicas) == len(runs)
    named = sum(one.gpu_s for one in found.uses if one.use is not Use.QUEUED)
    assert named == pytest.approx(slurms, rel=0.01)
    assert found.replica_s(Use.QUEUED) > 0
    # Without accounting: its times are whole seconds, and a kill costs a heartbeat and what Slurm
    # takes to clear up
    assert own.held_gpu_s == pytest.approx(slurms, rel=0.01, abs=GPUS * (len(runs) + scaled(5)))
    assert live.held_gpu_s > 0
    # What was kept stays when the cluster forgets
    kept = ledger.entry_folder(SwarmStore.open().swarm("demo").tag) / "spans.jsonl"
    assert kept.exists()
    accounted.stop_controller()
    try:
        assert UsageService().usage(swarm="demo").swarms[0] == found
    finally:
        accounted.start_controller()


def runs_of(slurm: SlurmCluster, job: str) -> list[str]:
    return [one for one, *_ in accounts(slurm) if one == job]


def test_runs_are_read_as_sacct_prints_them() -> None:
    """Recorded from Slurm 22.05, but for the last two lines, which tell of one that waits, and of
    another swarm's.
    """
    text = (
        "3|1796078756|1796078808|demo-endpoint.b35e4b4d62c6\n"
        "4_0|1796078757|1796078766|demo-replicas-1.b35e4b4d62c6\n"
        "4_0|1796078778|Unknown|demo-replicas-1.b35e4b4d62c6\n"
        "4_[1-3]|Unknown|Unknown|demo-replicas-1.b35e4b4d62c6\n"
        "6_1|1796078802|1796078806|demo-replicas-1.000000000000\n"
    )
    found = printed.runs(text, any_replicas_name("demo.b35e4b4d62c6"))
    assert found == {"4_0": [(1796078757.0, 1796078766.0), (1796078778.0, None)]}
