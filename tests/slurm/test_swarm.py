"""A swarm on the real cluster, through everything that happens to one."""

from __future__ import annotations

import json
import re
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from command_line import PROGRAM
from domyn_swarm.config import DomynLLMSwarmConfig, dump_yaml
from domyn_swarm.model import JobStatus, SwarmPhase, utc_now
from domyn_swarm.planning.resources import JobResources
from domyn_swarm.services.jobs import JobService
from domyn_swarm.services.requests import JobRequest
from domyn_swarm.services.swarms import SwarmService
from domyn_swarm.state import SwarmStore
from domyn_swarm.swarm.factory import scheduler
from domyn_swarm.swarm.lifecycle import SwarmLifecycle
from slurm.cluster import SlurmCluster

Up = Callable[..., SwarmService]


def config(**keys: Any) -> DomynLLMSwarmConfig:
    backend = {
        "type": "slurm",
        "partition": "main",
        "container": "none",
        "time_limit": "01:00:00",
        "endpoint": {"mem": "1000M", "cpus_per_task": 1},
        **keys.pop("backend", {}),
    }
    fields = {
        "name": "demo",
        "model": "m",
        "engine": "sim",
        "replicas": 2,
        "gpus_per_replica": 1,
        "engine_options": {"latency_s": 0.1, "slots": 16},
        "backend": backend,
        "watchdog": {"probe_interval": 1, "kill_grace_seconds": 3},
    }
    return DomynLLMSwarmConfig.model_validate({**fields, **keys})


@pytest.fixture
def up(slurm: SlurmCluster) -> Iterator[Up]:
    started: list[str] = []

    def bring(*, timeout_s: float | None = 180.0, wait: bool = True, **keys: Any) -> SwarmService:
        made = config(**keys)
        started.append(str(made.name))
        SwarmLifecycle(SwarmStore.open()).up(made, timeout_s=timeout_s, wait=wait)
        return SwarmService()

    yield bring
    for name in started:
        SwarmLifecycle(SwarmStore.open()).down(name)


def until(condition: Callable[[], Any], within_s: float = 40.0) -> Any:
    """`within_s` is enough for a machine that does nothing else; this one may be busy."""
    deadline = time.monotonic() + 3 * within_s
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.3)
    return value


def ready(name: str = "demo") -> int:
    return SwarmService().status(name).replicas_ready


def jobs_of(slurm: SlurmCluster, name: str = "demo") -> dict[str, str]:
    """Slurm's jobs and tasks of a swarm that are not over, with their states."""
    lines = slurm.run("squeue", "-h", "-r", "-o", "%i|%j|%T").stdout.splitlines()
    split = [line.split("|") for line in lines]
    return {one: state for one, job, state in split if job.startswith(f"{name}-")}


def task(slurm: SlurmCluster, index: int) -> str:
    return next(one for one in jobs_of(slurm) if one.endswith(f"_{index}"))


def write(folder: Path, rows: int) -> Path:
    path = folder / "in.parquet"
    pq.write_table(pa.table({"prompt": [f"p{number}" for number in range(rows)]}), path)
    return path


def request(folder: Path, rows: int, **changes: Any) -> JobRequest:
    fields: dict[str, Any] = {
        "swarm": "demo",
        "input": str(write(folder, rows)),
        "input_columns": ("prompt",),
        "output": str(folder / "out.parquet"),
        "max_concurrency": 16,
        "resources": JobResources(detached=True),
    }
    return JobRequest(**{**fields, **changes})


def all_answered(folder: Path, rows: int) -> bool:
    table = pq.read_table(folder / "out.parquet")
    return table.num_rows == rows and table.column("result").null_count == 0


def scraped(target: Path, key: Path) -> str:
    """The metrics of a swarm, asked for as Prometheus is told to."""
    [group] = json.loads(target.read_text())
    headers = {"Authorization": f"Bearer {key.read_text().strip()}"}
    asked = urllib.request.Request(f"http://{group['targets'][0]}/metrics", headers=headers)
    with urllib.request.urlopen(asked, timeout=10) as reply:
        return str(reply.read().decode())


def test_a_job_runs_through_a_swarm_and_down_leaves_nothing(
    up: Up, slurm: SlurmCluster, swarm_home: Path, tmp_path: Path
) -> None:
    (textfiles := tmp_path / "textfiles").mkdir()
    metrics = {"textfile_dir": textfiles}
    service = up(replicas=5, gpus_per_replica=2, min_ready=5, metrics=metrics)
    assert len(jobs_of(slurm)) == 6
    seen = service.status("demo")
    assert seen.expires_at is not None
    assert 3000 < (seen.expires_at - utc_now()).total_seconds() < 3660  # time_limit: an hour
    assert all(replica.expires_at for replica in seen.replicas)
    nodes = slurm.run("squeue", "-h", "-r", "-n", "demo-replicas", "-o", "%N").stdout.split()
    assert max(nodes.count(node) for node in nodes) <= 2
    jobs = JobService()
    handle = jobs.submit(request(tmp_path, 300))
    assert jobs.wait(handle, timeout_s=240).status is JobStatus.SUCCEEDED
    assert all_answered(tmp_path, 300)
    [target] = (swarm_home / "prometheus").glob("domyn-swarm-*.json")
    told = scraped(target, swarm_home / "secrets/metrics_key").splitlines()
    of = f'job_id="{handle.job_id}"'
    for pattern in (
        *(rf'domyn_swarm_replica_state{{replica="{n}",state="ready",.*}} 1.0' for n in range(5)),
        r"domyn_swarm_replicas_serving{.*} 5.0",  # as the router has it
        r"domyn_swarm_router_up{.*} 1.0",
        r'domyn_swarm_router_responses_total{.*status_code="200".*} \d{3}.0',
        rf'domyn_swarm_job_rows_done_total{{{of},.*outcome="answered".*}} 300.0',
    ):
        assert any(re.fullmatch(pattern, line) for line in told), (pattern, told)
    [textfile] = textfiles.iterdir()
    assert 'domyn_swarm_replicas_wanted{swarm="demo"} 5.0' in textfile.read_text()
    SwarmLifecycle(SwarmStore.open()).down("demo")
    assert jobs_of(slurm) == {}
    assert service.status("demo").phase is SwarmPhase.STOPPED
    assert [*textfiles.iterdir(), *target.parent.iterdir()] == []


def test_each_replica_has_gpus_of_its_own(up: Up, slurm: SlurmCluster, tmp_path: Path) -> None:
    up(replicas=4, gpus_per_replica=2, min_ready=4)
    seen = []
    for index in range(4):
        job = task(slurm, index)
        shown = slurm.run("scontrol", "-d", "-o", "show", "job", job).stdout
        node, gpus = shown.split(" Nodes=")[1].split()[0], shown.split("(IDX:")[1].split(")")[0]
        seen.append((node, gpus))
    assert len(set(seen)) == 4


def test_a_replica_near_its_time_limit_drains_comes_back_and_no_request_fails(
    up: Up, slurm: SlurmCluster, tmp_path: Path
) -> None:
    up(min_ready=2)
    jobs = JobService()
    handle = jobs.submit(request(tmp_path, 1500))
    until(lambda: jobs.status(handle).rows_done > 100)
    slurm.run("scancel", "--batch", "--signal=USR1", task(slurm, 0))
    until(lambda: jobs_of(slurm)[task(slurm, 0)] == "PENDING")
    ended = jobs.wait(handle, timeout_s=240)
    assert ended.status is JobStatus.SUCCEEDED
    assert ended.account is not None
    assert (ended.account.requests, ended.account.retries) == (1500, 0)
    assert all_answered(tmp_path, 1500)
    until(lambda: ready() == 2)


@pytest.mark.parametrize("event", ["requeue", "preempt", "crash"])
def test_a_replica_that_is_taken_away_comes_back_and_no_row_fails(
    up: Up, slurm: SlurmCluster, tmp_path: Path, event: str
) -> None:
    up(min_ready=2, gpus_per_replica=4)  # a node each
    jobs = JobService()
    handle = jobs.submit(request(tmp_path, 1200))
    until(lambda: jobs.status(handle).rows_done > 100)
    victim = task(slurm, 1)
    node = slurm.run("squeue", "-h", "-j", victim, "-o", "%N").stdout.strip()
    if event == "requeue":
        slurm.run("scontrol", "requeue", victim)
    elif event == "preempt":
        wanted = ["--partition=urgent", f"--nodelist={node}", "--gres=gpu:4", "--time=1"]
        slurm.run("sbatch", "--job-name=other", *wanted, "--wrap=sleep 3")
    else:
        slurm.crash_node(node)
        slurm.run("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    try:
        until(lambda: jobs_of(slurm).get(victim) != "RUNNING", 30)
        ended = jobs.wait(handle, timeout_s=240)
        assert ended.status is JobStatus.SUCCEEDED
        assert all_answered(tmp_path, 1200)
        until(lambda: ready() == 2, 90)
    finally:
        if event == "crash":
            slurm.start_node(node)
            slurm.run("scontrol", "update", f"nodename={node}", "state=resume")


def test_the_endpoint_comes_back_elsewhere_and_the_job_goes_on(
    up: Up, slurm: SlurmCluster, tmp_path: Path
) -> None:
    service = up(min_ready=2)
    before = service.status("demo").endpoint
    jobs = JobService()
    handle = jobs.submit(request(tmp_path, 1500))
    until(lambda: jobs.status(handle).rows_done > 100)
    endpoint = next(one for one in jobs_of(slurm) if "_" not in one)
    slurm.run("scontrol", "requeue", endpoint)
    ended = jobs.wait(handle, timeout_s=240)
    assert ended.status is JobStatus.SUCCEEDED
    assert ended.rows_failed == 0
    assert all_answered(tmp_path, 1500)
    assert service.status("demo").endpoint != before


def test_the_controller_is_restarted_under_a_job(
    up: Up, slurm: SlurmCluster, tmp_path: Path
) -> None:
    service = up(min_ready=2)
    jobs = JobService()
    handle = jobs.submit(request(tmp_path, 1000))
    until(lambda: jobs.status(handle).rows_done > 50)
    time.sleep(1.5)  # else it may forget what was submitted last
    slurm.stop_controller()
    try:
        scheduler().expect_change()  # its last look may be good for seconds yet
        seen = service.status("demo")
        assert seen.observed == "unknown"
        assert seen.replicas_ready == 2  # the collector still knows
    finally:
        slurm.start_controller()
    assert jobs.wait(handle, timeout_s=240).status is JobStatus.SUCCEEDED
    assert all_answered(tmp_path, 1000)
    until(lambda: service.status("demo").observed == "ready")


def test_a_slurmd_that_dies_takes_no_job_with_it(
    up: Up, slurm: SlurmCluster, tmp_path: Path
) -> None:
    up(min_ready=2, gpus_per_replica=4)
    jobs = JobService()
    handle = jobs.submit(request(tmp_path, 600))
    until(lambda: jobs.status(handle).rows_done > 50)
    node = slurm.run("squeue", "-h", "-j", task(slurm, 1), "-o", "%N").stdout.strip()
    slurm.stop_slurmd(node)
    try:
        ended = jobs.wait(handle, timeout_s=240)
        assert ended.status is JobStatus.SUCCEEDED
        assert all_answered(tmp_path, 600)
    finally:
        slurm.start_node(node)
    until(lambda: ready() == 2, 60)


def test_an_endpoint_that_an_admin_cancels_under_a_job(
    up: Up, slurm: SlurmCluster, tmp_path: Path
) -> None:
    service = up(min_ready=2)
    jobs = JobService()
    handle = jobs.submit(request(tmp_path, 1200))
    until(lambda: jobs.status(handle).rows_done > 100)
    slurm.run("scancel", "--name", "demo-endpoint")
    until(lambda: service.status("demo").observed == "failed", 30)
    assert "the endpoint's job was cancelled" in service.status("demo").detail
    until(lambda: "does not answer" in str(jobs.status(handle).message), 30)  # it waits
    SwarmLifecycle(SwarmStore.open()).down("demo")
    assert jobs.status(handle).status is JobStatus.CANCELLED
    up(min_ready=2)
    ended = jobs.wait(jobs.resume(handle), timeout_s=240)
    assert ended.status is JobStatus.SUCCEEDED
    assert ended.account is not None
    assert ended.account.rows_answered == 1200
    assert ended.account.rows_answered + 16 * 3 >= ended.account.requests - ended.account.retries
    assert all_answered(tmp_path, 1200)


def test_replicas_join_one_by_one_as_the_cluster_has_room(up: Up, slurm: SlurmCluster) -> None:
    wanted = ["--gres=gpu:4", "--nodes=3", "--ntasks-per-node=1", "--time=5"]
    other = slurm.run("sbatch", "--parsable", *wanted, "--wrap=srun sleep 60").stdout.strip()
    until(lambda: slurm.run("squeue", "-h", "-j", other, "-o", "%T").stdout.strip() == "RUNNING")
    service = up(replicas=3, gpus_per_replica=4, min_ready=1)
    seen = service.status("demo")
    assert seen.replicas_ready == 1
    assert sorted(jobs_of(slurm).values()) == ["PENDING", "PENDING", "RUNNING", "RUNNING"]
    slurm.run("scancel", other)
    until(lambda: ready() == 3)


def test_a_swarm_in_the_queue_keeps_its_place(up: Up, slurm: SlurmCluster) -> None:
    wanted = ["--gres=gpu:4", "--nodes=4", "--ntasks-per-node=1", "--time=5"]
    other = slurm.run("sbatch", "--parsable", *wanted, "--wrap=srun sleep 60").stdout.strip()
    until(lambda: slurm.run("squeue", "-h", "-j", other, "-o", "%T").stdout.strip() == "RUNNING")
    service = up(wait=False, wait_endpoint_s=2)
    time.sleep(4)
    assert service.status("demo").observed == "queued"
    slurm.run("scancel", other)
    until(lambda: ready() == 2)


def test_a_machine_without_slurm_still_lists_its_swarms(
    up: Up, monkeypatch: pytest.MonkeyPatch, slurm: SlurmCluster
) -> None:
    service = up(wait=False)
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("PATH", "/nowhere")
        scheduler().expect_change()
        [seen] = service.list()
        assert (seen.observed, seen.phase) == ("unknown", SwarmPhase.LAUNCHING)
        assert "not on PATH" in seen.detail
    scheduler().expect_change()
    assert len(jobs_of(slurm)) == 3


def test_a_killed_up_is_found_by_its_tag(slurm: SlurmCluster, tmp_path: Path) -> None:
    file = tmp_path / "swarm.yaml"
    file.write_text(dump_yaml(config(engine_options={"start_s": 30})))
    command = [PROGRAM, "up", "-c", str(file)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as launching:
        until(lambda: len(jobs_of(slurm)) == 3)
        launching.kill()
    assert SwarmService().status("demo").phase is SwarmPhase.LAUNCHING
    SwarmLifecycle(SwarmStore.open()).down("demo")
    assert jobs_of(slurm) == {}


def test_two_jobs_and_one_is_cancelled(up: Up, tmp_path: Path) -> None:
    up(min_ready=2)
    jobs = JobService()
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    one = jobs.submit(request(folders[0], 3000, checkpoint_tag="a"))
    other = jobs.submit(request(folders[1], 400, checkpoint_tag="b"))
    until(lambda: jobs.status(one).rows_done > 50 and jobs.status(other).rows_done > 50)
    assert jobs.cancel(one).status is JobStatus.CANCELLED
    assert jobs.wait(other, timeout_s=240).status is JobStatus.SUCCEEDED
    done = jobs.status(one).rows_done
    again = jobs.resume(one)
    ended = jobs.wait(again, timeout_s=240)
    assert ended.status is JobStatus.SUCCEEDED
    assert ended.account is not None
    assert ended.account.requests == 3000  # over both runs: what the first had done stays done
    assert 50 < done < 3000


def test_a_job_near_its_time_limit_finishes_what_is_in_flight(
    up: Up, slurm: SlurmCluster, tmp_path: Path
) -> None:
    up(min_ready=2)
    jobs = JobService()
    handle = jobs.submit(request(tmp_path, 3000))
    until(lambda: jobs.status(handle).rows_done > 50)
    slurm.run("scancel", "--batch", "--signal=USR1", handle.platform_id)
    ended = jobs.wait(handle, timeout_s=240)
    assert ended.status is JobStatus.TIMED_OUT
    again = jobs.wait(jobs.resume(handle), timeout_s=240)
    assert again.status is JobStatus.SUCCEEDED
    assert again.account is not None
    assert again.account.requests == 3000
