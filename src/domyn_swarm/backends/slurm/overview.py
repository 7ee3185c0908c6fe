"""What the jobs of a swarm are together, and what each is in its place. Pure.

None stands for a job that Slurm does not know.
"""

from __future__ import annotations

from collections.abc import Sequence

from domyn_swarm.backends.base import ASLEEP
from domyn_swarm.backends.slurm.reasons import counted
from domyn_swarm.backends.slurm.states import SlurmJob
from domyn_swarm.probing import Observation, Phase

Jobs = Sequence[SlurmJob | None]
WILL_NOT_RUN = "Slurm will not run it"


def whole(endpoint: Jobs, replicas: Jobs) -> Observation:
    """Of all jobs of a swarm; ready as soon as its endpoint and one replica run."""
    if all(_over(job) for job in [*endpoint, *replicas]):
        return Observation(Phase.STOPPED, "none of its jobs is in the queue")
    for kind, jobs in (
        ("the endpoint's job", endpoint),
        ("every replica has ended: one", replicas),
    ):
        if jobs and all(_over(job) for job in jobs):
            return Observation(Phase.FAILED, f"{kind} {ended_how(jobs[-1])}")
    for jobs in (endpoint, replicas):
        left = [job for job in jobs if job is not None and not job.over]
        if left and all(job.hopeless for job in left):
            return Observation(Phase.FAILED, f"{WILL_NOT_RUN} ({_waiting(left)})")
    running = sum(job is not None and job.going for job in replicas)
    waits = [job for job in endpoint if job is not None and job.waiting]
    others = [job for job in replicas if job is not None and job.waiting]
    run = f"{running} {'replica runs' if running == 1 else 'replicas run'}"
    if running and waits:
        why = f"{run} and cannot serve: of the endpoint {_waiting(waits)}"
        return Observation(Phase.QUEUED, why)
    if not running:
        return Observation(Phase.QUEUED, _waiting([*waits, *others]))
    return Observation(Phase.READY, f"{run}, {_waiting(others)}" if others else run)


def without_replicas(endpoint: Jobs, replicas: Jobs) -> Observation | None:
    """Of an elastic swarm whose endpoint runs, that may do without replicas and has none that runs
    now; None: its endpoint does not run.
    """
    if not any(job is not None and job.going for job in endpoint):
        return None
    waits = [job for job in replicas if job is not None and job.waiting]
    return Observation(Phase.READY, f"a replica starts, {_waiting(waits)}" if waits else ASLEEP)


def of_part(job: SlurmJob | None, successor: bool, before: str | None = None) -> Observation:
    """Of one place; with a `successor` another job is about to stand in it. `before`: how its last
    run ended, where that is known.
    """
    if successor and _over(job):
        why = "is over" if job is None else job.observation.detail
        return Observation(Phase.QUEUED, f"its job {why}, and a successor is to come")
    if job is None:
        return Observation(Phase.STOPPED, "Slurm does not know it any more")
    seen = job.observation
    if seen.phase.terminal:
        return Observation(seen.phase, f"its job {seen.detail}")
    return seen if before is None else Observation(seen.phase, f"{before}, {seen.detail}")


def ended_how(job: SlurmJob | None) -> str:
    """How a job that is over ended, in words that follow its name."""
    return "is not known any more" if job is None else job.observation.detail


def _over(job: SlurmJob | None) -> bool:
    return job is None or job.over


def _waiting(jobs: Sequence[SlurmJob]) -> str:
    return counted((job.id, job.reason) for job in jobs)
