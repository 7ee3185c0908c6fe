"""Whatever a job does as it is ended, nothing of it is left in the queue, or comes back into it."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from domyn_swarm.backends.slurm.job_runs import JobRuns
from domyn_swarm.model import JobHandle, JobStatus
from domyn_swarm.paths import JobPaths
from domyn_swarm.planning.plan import JobResources
from domyn_swarm.services.jobs import JobService
from slurm.cluster import SlurmCluster
from slurm.swarms import (
    Up,
    all_answered,
    down,
    ended,
    jobs_of,
    request,
    submit_held,
    taking_nothing,
    until,
    warn,
)

OWN = JobResources(detached=True)
ROWS = 20
PUBLISHES = """
import os
import time
from pathlib import Path

from domyn_swarm.batch.output.part_writer import PartWriter
from domyn_swarm.jobs import ChatCompletionJob

class Publishes(ChatCompletionJob):
    # Its output goes to a disk that hangs until it is released.
    def __init__(self, *, folder, **options):
        self.folder, finish = Path(folder), PartWriter.finish

        def hangs(writer):
            (self.folder / "publishing").touch()
            while not (self.folder / "released").exists():
                time.sleep(0.1)
            return finish(writer)

        if "SLURM_JOB_ID" in os.environ:
            PartWriter.finish = hangs
        super().__init__(**options)

    def described(self):
        return {**super().described(), "folder": str(self.folder)}
"""


def publishing(folder: Path) -> JobHandle:
    """A job that has all its answers and writes its output, for as long as that takes."""
    asked = request(
        *(folder, ROWS),
        job="source:Publishes",
        job_source=PUBLISHES,
        job_kwargs={"folder": str(folder)},
        resources=OWN,
    )
    handle = JobService().submit(asked)
    until((folder / "publishing").exists)
    return handle


def in_each_state(slurm: SlurmCluster, folder: Path, stack: ExitStack) -> dict[str, JobHandle]:
    """Jobs with an allocation of their own, and what each does. No node takes any more."""
    folder.mkdir()
    writes = publishing(folder / "publishing")
    back = submit_held(folder / "back", resources=OWN).handle
    succeeded = submit_held(folder / "successor", resources=OWN).handle
    slurm.run("scontrol", "update", f"JobId={succeeded.platform_id}", "Requeue=0")
    nodes = slurm.run("sinfo", "--noheader", "--format=%N").stdout.split()[0]
    stack.enter_context(taking_nothing(slurm, nodes))
    waits = JobService().submit(request(folder / "waits", ROWS, resources=OWN))
    warn(slurm, back.platform_id)
    warn(slurm, succeeded.platform_id)
    jobs = {"publishing": writes, "requeued": back, "successor": succeeded, "waits": waits}
    until(lambda: waiting(jobs) == {"requeued", "successor", "waits"})
    runs = JobRuns.read(JobPaths(Path(succeeded.job_dir)))
    assert runs is not None
    assert len(runs.slurm_ids) == 2
    return jobs


def waiting(jobs: dict[str, JobHandle]) -> set[str]:
    seen = {state: JobService().status(job).status for state, job in jobs.items()}
    return {state for state, status in seen.items() if status is JobStatus.PENDING}


def queued(slurm: SlurmCluster, jobs: dict[str, JobHandle]) -> set[str]:
    """Which of the jobs have something in Slurm's queue, by whatever number."""
    names = slurm.run("squeue", "--noheader", "--format=%j").stdout
    return {state for state, job in jobs.items() if f"job-{job.job_id}" in names}


def test_in_each_state_an_end_leaves_nothing_in_the_queue(
    up: Up, slurm: SlurmCluster, tmp_path: Path
) -> None:
    up(min_ready=1, replicas=1)
    with ExitStack() as stack:
        cancelled = in_each_state(slurm, tmp_path / "cancelled", stack)
        assert queued(slurm, cancelled) == cancelled.keys()
        for job in cancelled.values():
            assert JobService().cancel(job).status is JobStatus.CANCELLED
        assert queued(slurm, cancelled) == set()
    # What was answered is kept, what was to be written is not there, and nothing comes back.
    target = tmp_path / "cancelled" / "publishing"
    assert not (target / "out.parquet").exists()
    (target / "released").touch()
    again = ended(JobService().resume(cancelled["publishing"]))
    assert again.status is JobStatus.SUCCEEDED
    assert all_answered(target, ROWS)
    assert again.account is not None
    assert again.account.requests == ROWS  # of both
    assert queued(slurm, cancelled) == set()

    with ExitStack() as stack:
        left = in_each_state(slurm, tmp_path / "left", stack)
        down()
        assert queued(slurm, left) == set()
        assert jobs_of(slurm) == {}
