"""Signals to tasks of which others of the array wait in the queue: Slurm's scancel repeats them."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil

from domyn_swarm.backends.slurm.commands import Slurm
from domyn_swarm.model import JobStatus
from domyn_swarm.planning.plan import JobResources
from domyn_swarm.services.jobs import JobService
from patience import scaled, until
from process_list import running
from slurm.cluster import SlurmCluster
from slurm.swarms import Up, ended, jobs_of, ready, request, task

COUNTS = """\
#!/bin/bash
#SBATCH --array=0-9
#SBATCH --gres=gpu:4
#SBATCH --mem=100M
#SBATCH --output=/dev/null
trap 'echo told >> "$SLURM_SUBMIT_DIR/$SLURM_ARRAY_TASK_ID.told"' TERM
touch "$SLURM_SUBMIT_DIR/$SLURM_ARRAY_TASK_ID.runs"
while true; do sleep 0.1; done
"""


def told(folder: Path) -> dict[str, int]:
    """How often each task got the signal."""
    return {one.stem: len(one.read_text().split()) for one in folder.glob("*.told")}


def scancels(slurm: SlurmCluster) -> list[int]:
    """Those of this cluster that run."""
    found = []
    for one in running():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if one.name() == "scancel" and one.environ()["SLURM_CONF"] == slurm.env["SLURM_CONF"]:
                found.append(one.pid)
    return found


def test_each_gets_it_once_and_whoever_sends_it_does_not_wait(
    slurm: SlurmCluster, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "counts.sh"
    script.write_text(COUNTS)
    array = Slurm().submit(script)
    until(lambda: len([*tmp_path.glob("*.runs")]) == len(slurm.node_names))
    Slurm().cancel([f"{array}_{index}" for index in (0, 1, 2, 8, 9)], signal="TERM")
    assert scancels(slurm) == []  # nobody is left to repeat it
    until(lambda: told(tmp_path).keys() == {"0", "1", "2"})
    assert set(told(tmp_path).values()) == {1}
    left = [one for one, job in Slurm().queue().items() if not job.over]
    assert sorted(left) == [f"{array}_{index}" for index in range(8)]


def test_scaling_down_a_swarm_that_waits_for_replicas_ends_no_request(
    up: Up, slurm: SlurmCluster, tmp_path: Path
) -> None:
    service = up(
        replicas=6,
        gpus_per_replica=4,
        min_ready=4,
        engine_options={"latency_s": scaled(16.0)},
    )
    assert ready() == 4
    until(lambda: sorted(jobs_of(slurm).values()).count("PENDING") == 2)
    asked = request(tmp_path / "asked", 16, resources=JobResources(), max_concurrency=16)
    handle = JobService().submit(asked)
    until(lambda: in_flight(service) == 16)
    leaving = [task(slurm, index) for index in (1, 2, 3)]
    service.scale("demo", 1)
    assert "PENDING" not in jobs_of(slurm).values()
    done = ended(handle)
    assert (done.status, done.rows_failed) == (JobStatus.SUCCEEDED, 0)
    assert done.account is not None
    assert (done.account.requests, done.account.retries) == (16, 0)
    until(lambda: not {*leaving} & {*jobs_of(slurm)})


def in_flight(service) -> int:
    seen = service.status("demo").replicas
    return int(sum(one.requests_running or 0 for one in seen))
