"""Swarms on the cluster, and jobs through them: what tests of several modules say of them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import patience
from domyn_swarm.config import DomynLLMSwarmConfig
from domyn_swarm.errors import SwarmError
from domyn_swarm.model import JobHandle, JobProgress
from domyn_swarm.paths import JobPaths, SwarmPaths
from domyn_swarm.planning.plan import JobResources
from domyn_swarm.services.jobs import JobService
from domyn_swarm.services.requests import JobRequest
from domyn_swarm.services.swarms import SwarmService
from domyn_swarm.state import SwarmStore
from domyn_swarm.swarm.launch import Launch, prepare
from domyn_swarm.swarm.lifecycle import SwarmLifecycle
from domyn_swarm.swarm.snapshot import JobSnapshot
from patience import limit_s
from process_list import running
from slurm.cluster import CLIENT_VARIABLES, SlurmCluster

Up = Callable[..., SwarmService]

ENDPOINT = "domyn_swarm.backends.endpoint"
ENDPOINT_TASK = "domyn_swarm.backends.slurm.endpoint_task"
REPLICA_TASK = "domyn_swarm.backends.slurm.replica_task"
SIM_SERVER = "domyn_swarm.engines.sim_server"


def until(condition: Callable[[], Any]) -> Any:
    """`patience.until`, at the pace of conditions of which most start one of Slurm's commands."""
    return patience.until(condition, every_s=0.3)


# -- swarms ----------------------------------------------------------------------------------------


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


def launch_of(**keys: Any) -> Launch:
    return prepare(config(**keys))


def bring_up(made: DomynLLMSwarmConfig, *, wait: bool = True) -> None:
    SwarmLifecycle(SwarmStore.open()).up(prepare(made), timeout_s=2 * limit_s(), wait=wait)


def down(name: str = "demo") -> None:
    SwarmLifecycle(SwarmStore.open()).down(name)


@dataclass(frozen=True)
class Standing:
    """A swarm `demo` that is up for all tests of a module, and its home. A test leaves it as it
    was: its jobs have folders of their own and end with it.
    """

    home: Path


@contextmanager
def standing_swarm(slurm: SlurmCluster, home: Path, **keys: Any) -> Iterator[Standing]:
    """Bring one up in this process' environment. The cluster keeps its jobs between tests."""
    with pytest.MonkeyPatch.context() as here:
        for name in CLIENT_VARIABLES:
            here.setenv(name, slurm.env[name])
        here.setenv("DOMYN_SWARM_HOME", str(home))
        try:
            bring_up(config(**keys))
            slurm.keeps.update(jobs_of(slurm))
            yield Standing(home)
        finally:
            slurm.keeps.clear()
            down()


def ready(name: str = "demo") -> int:
    return SwarmService().status(name).replicas_ready


def observed(name: str = "demo") -> str:
    return SwarmService().status(name).observed


def swarm_paths(name: str = "demo") -> SwarmPaths:
    return SwarmPaths(Path(SwarmService().status(name).swarm_dir))


def jobs_of(slurm: SlurmCluster, name: str = "demo") -> dict[str, str]:
    """Slurm's jobs and tasks of a swarm that are not over, with their states."""
    lines = slurm.run("squeue", "-h", "-r", "-o", "%i|%j|%T").stdout.splitlines()
    split = [line.split("|") for line in lines]
    return {one: state for one, job, state in split if job.startswith(f"{name}-")}


def task(slurm: SlurmCluster, index: int) -> str:
    return next(one for one in jobs_of(slurm) if one.endswith(f"_{index}"))


def endpoint_job(slurm: SlurmCluster) -> str:
    """The endpoint's job; empty when there is none."""
    return next((one for one in jobs_of(slurm) if "_" not in one), "")


def node_of(slurm: SlurmCluster, job: str) -> str:
    return slurm.run("squeue", "-h", "-j", job, "-o", "%N").stdout.strip()


def warn(slurm: SlurmCluster, job: str) -> None:
    """What Slurm sends some time before the job's time limit."""
    slurm.run("scancel", "--batch", "--signal=USR1", job)


def restarts(slurm: SlurmCluster, job: str) -> int:
    """How often a job has gone back into the queue."""
    shown = slurm.run("scontrol", "-o", "show", "job", job).stdout
    return int(shown.partition("Restarts=")[2].split()[0])


def came_back(slurm: SlurmCluster, job: str) -> bool:
    """Whether a job that goes back into the queue has been started again. Slurm has it wait until
    its credentials have expired; on the node that it was on, it could not start before.
    """
    shown = slurm.run("scontrol", "-o", "show", "job", job).stdout
    return "JobState=RUNNING" in shown and "Restarts=0 " not in shown


def program(module: str, job: str) -> psutil.Process:
    """Our program in one of Slurm's jobs or tasks, once it runs."""
    found: psutil.Process = until(lambda: program_now(module, job))
    return found


def program_now(module: str, job: str) -> psutil.Process | None:
    number, _, index = job.partition("_")
    for process in running():
        try:
            if ["-m", module] != process.cmdline()[1:3]:
                continue
            told = process.environ()
        except psutil.Error:
            continue
        if told.get("SLURM_CONF") != os.environ["SLURM_CONF"]:
            continue  # another cluster's, which counts its jobs alike
        own = told.get("SLURM_ARRAY_JOB_ID", told.get("SLURM_JOB_ID"))
        if own == number and told.get("SLURM_ARRAY_TASK_ID", "") == index:
            return process
    return None


@contextmanager
def lost(slurm: SlurmCluster, node: str) -> Iterator[None]:
    """The node is reset and stays away; afterwards it is back."""
    slurm.crash_node(node)
    slurm.run("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    try:
        yield
    finally:
        slurm.start_node(node)
        slurm.run("scontrol", "update", f"nodename={node}", "state=resume")


@contextmanager
def taking_nothing(slurm: SlurmCluster, nodes: str) -> Iterator[None]:
    slurm.run("scontrol", "update", f"nodename={nodes}", "state=drain", "reason=test")
    try:
        yield
    finally:
        slurm.run("scontrol", "update", f"nodename={nodes}", "state=resume")
        until(lambda: not silent(slurm, nodes))


def silent(slurm: SlurmCluster, nodes: str) -> bool:
    """Whether the controller has yet to hear from one of the nodes, as after their return: a step
    that is requested meanwhile waits for a minute and longer.
    """
    return "*" in slurm.run("sinfo", "--noheader", f"--nodes={nodes}", "--format=%T").stdout


UNANSWERED_SBATCH = """#!/bin/sh
case "$*" in *--test-only*) exec {real} "$@" ;; *{script}) ;; *) exec {real} "$@" ;; esac
(while [ ! -e {taken} ]; do sleep 0.1; done; exec {real} "$@") > /dev/null 2>&1 &
echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2
exit 1
"""


@contextmanager
def unanswered(folder: Path, script: str) -> Iterator[Path]:
    """A controller that is too busy to answer the submission of this script, and takes it once a
    file is there, the one that this gives.
    """
    taken, stand_in = folder / "taken", folder / "bin" / "sbatch"
    stand_in.parent.mkdir()
    real = shutil.which("sbatch")
    stand_in.write_text(UNANSWERED_SBATCH.format(real=real, script=script, taken=taken))
    stand_in.chmod(0o755)
    with pytest.MonkeyPatch.context() as busy:
        busy.setenv("PATH", f"{stand_in.parent}:{os.environ['PATH']}")
        yield taken


# -- jobs ------------------------------------------------------------------------------------------


def write(folder: Path, rows: int) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "in.parquet"
    pq.write_table(pa.table({"prompt": [f"p{number}" for number in range(rows)]}), path)
    return path


def request(folder: Path, rows: int, **changes: Any) -> JobRequest:
    """A job as one of Slurm's; its checkpoint is that of its folder."""
    fields: dict[str, Any] = {
        "swarm": "demo",
        "input": str(write(folder, rows)),
        "input_columns": ("prompt",),
        "output": str(folder / "out.parquet"),
        "max_concurrency": 16,
        "checkpoint_tag": str(folder),
        "resources": JobResources(detached=True),
    }
    return JobRequest.model_validate({**fields, **changes})


def all_answered(folder: Path, rows: int) -> bool:
    table = pq.read_table(folder / "out.parquet")
    return table.num_rows == rows and table.column("result").null_count == 0


def ended(handle: JobHandle) -> JobSnapshot:
    """The job, once it has ended."""
    return JobService().wait(handle, timeout_s=limit_s())


def under_way(handle: JobHandle, rows: int = 20) -> None:
    """Wait until the job is in the middle: so many rows are answered."""

    def middle() -> bool:
        seen = JobService().status(handle)
        assert not seen.status.final, f"ended before its middle: {seen.status}, {seen.message}"
        return seen.rows_done >= rows

    until(middle)


def resumed(handle: JobHandle) -> JobHandle:
    """The job once more, as soon as its swarm takes it and nobody holds its checkpoint."""

    def again() -> JobHandle | None:
        try:
            return JobService().resume(handle)
        except SwarmError:
            return None

    found: JobHandle = until(again)
    return found


HELD = """
import asyncio
from pathlib import Path

from domyn_swarm.jobs import ChatCompletionJob

class Held(ChatCompletionJob):
    def __init__(self, *, released, rows, **options):
        self.released, self.left = Path(released), rows
        super().__init__(**options)

    def described(self):
        return {**super().described(), "released": str(self.released)}

    async def transform_item(self, item):
        self.left -= 1
        if not self.released.exists():
            await asyncio.sleep(0.5)
        while self.left < 1 and not self.released.exists():
            await asyncio.sleep(0.1)
        return await super().transform_item(item)
"""


@dataclass(frozen=True)
class HeldJob:
    """A job under way that cannot end before it is released, however long what happens meanwhile
    takes: it asks slowly, and keeps its last rows back. Few rows are enough.
    """

    handle: JobHandle
    folder: Path
    rows: int

    @property
    def progress(self) -> JobProgress:
        text = JobPaths(Path(self.handle.job_dir)).progress.read_text()
        return JobProgress.model_validate_json(text)

    def goes_on(self) -> None:
        """Wait until rows that were asked from now on are answered."""
        done = self.progress.rows_done
        until(lambda: self.progress.rows_done >= min(done + 16, self.rows - 16))

    def release(self) -> JobSnapshot:
        """Let it go to its end, and wait for that."""
        (self.folder / "released").touch()
        return ended(self.handle)


def submit_held(folder: Path, rows: int = 150, **changes: Any) -> HeldJob:
    """Submit such a job and wait until it is under way. It asks 13 rows a second."""
    kwargs = {"released": str(folder / "released"), "rows": rows}
    asked = request(
        folder, rows, job="source:Held", job_source=HELD, job_kwargs=kwargs, max_concurrency=8
    )
    handle = JobService().submit(asked.model_copy(update=changes))
    under_way(handle, 10)
    return HeldJob(handle, folder, rows)
