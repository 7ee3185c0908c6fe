"""Whether a swarm's jobs will run: the state of the whole swarm, and of each part. Pure.

None stands for a job that Slurm does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from domyn_swarm.backends.endpoint.view import read_address
from domyn_swarm.backends.protocols import ASLEEP, PlatformPart, ServingHandle
from domyn_swarm.backends.slurm.ending import Scheduler
from domyn_swarm.backends.slurm.parts import JobsOfParts, task_of
from domyn_swarm.backends.slurm.reasons import (
    AFTER_ENDPOINT,
    counted,
    limits_the_group,
    limits_the_user,
)
from domyn_swarm.backends.slurm.recovery import comes_back
from domyn_swarm.backends.slurm.script_contents import slurm_config
from domyn_swarm.backends.slurm.slurm_states import SlurmJob
from domyn_swarm.paths import SwarmPaths
from domyn_swarm.planning.plan import DeploymentPlan
from domyn_swarm.probing import Clock, Observation, Phase

PlacedJobs = Sequence[SlurmJob | None]
WILL_NOT_RUN = "Slurm will not run it"


def whole(endpoint: PlacedJobs, replicas: PlacedJobs) -> Observation:
    """The state of all jobs of a swarm; it counts as ready once its endpoint and one replica
    run.
    """
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


def without_replicas(endpoint: PlacedJobs, replicas: PlacedJobs) -> Observation | None:
    """The state of an elastic swarm whose endpoint runs and which needs no replica now; None: its
    endpoint does not run.
    """
    if not any(job is not None and job.going for job in endpoint):
        return None
    waits = [job for job in replicas if job is not None and job.waiting]
    return Observation(Phase.READY, f"a replica starts, {_waiting(waits)}" if waits else ASLEEP)


def of_part(job: SlurmJob | None, successor: bool, before: str | None = None) -> Observation:
    """The state of one part; with a `successor` another job will replace it. `before`: how its last
    run ended, if that is known.
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
    """How a job that is over ended, as words that follow its name."""
    return "is not known any more" if job is None else job.observation.detail


def _over(job: SlurmJob | None) -> bool:
    return job is None or job.over


def _waiting(jobs: Sequence[SlurmJob]) -> str:
    return counted((job.id, job.reason) for job in jobs)


_WAITS_S = 60.0  # Slurm updates the reasons of waiting jobs at least this often
_GROUPS_ASKED_S = 600.0


class Prospects:
    """The prospects of the swarms that a process watches. `exceeded` returns the site's limit that
    a plan can never keep, if any.
    """

    def __init__(
        self, slurm: Scheduler, clock: Clock, exceeded: Callable[[DeploymentPlan], str | None]
    ) -> None:
        self._slurm = slurm
        self._exceeded = exceeded
        self._clock = clock
        # Jobs of endpoints that run and do not listen yet, by swarm tag and job id.
        self._silent_since: dict[tuple[str, str], float] = {}
        self._waits_since: dict[str, float] = {}  # swarms that may wait in vain, and since when

    def of(self, handle: ServingHandle, seen: JobsOfParts) -> Observation:
        """The state of the whole swarm.

        Raises:
            PlatformError: Slurm cannot be asked.
        """
        places = {(part.kind, part.index): job for part, job in seen.items()}
        endpoint = [job for (kind, _), job in places.items() if kind == "endpoint"]
        replicas = [job for (kind, _), job in places.items() if kind == "replica"]
        paths = SwarmPaths(Path(handle.swarm_dir))
        if (anew := self._anew(paths, endpoint, replicas)) is not None:
            return anew
        together = whole(endpoint, replicas)
        if handle.least_replicas == 0 and not any(
            job is not None and job.going for job in replicas
        ):
            together = without_replicas(endpoint, replicas) or together
        if together.phase.terminal:
            words = (no_log(paths, part, job) for part, job in seen.items())
            said = next((one for one in words if one is not None), None)
            return Observation(together.phase, said or self._with_limit(handle, together))
        if together.phase is Phase.QUEUED and (why := self._in_vain(handle, seen)) is not None:
            detail = f"{WILL_NOT_RUN} ({together.detail}): {why}"
            return Observation(Phase.FAILED, detail)
        return self._silent(handle, endpoint) or together

    def _anew(
        self, paths: SwarmPaths, endpoint: PlacedJobs, replicas: PlacedJobs
    ) -> Observation | None:
        """The state of a swarm that has served, and whose endpoint's job is over and is resubmitted
        by a running replica: that is no failure.
        """
        last = endpoint[-1] if endpoint else None
        if last is None or any(job is not None and not job.over for job in endpoint):
            return None
        going = any(job is not None and job.runs_on for job in replicas)
        if not going or read_address(paths) is None or not comes_back(paths, last, self._clock):
            return None
        why = f"the endpoint's job {ended_how(last)}; a replica submits it anew"
        return Observation(Phase.QUEUED, why)

    def _with_limit(self, handle: ServingHandle, together: Observation) -> str:
        """The state with the site's limit that keeps the job from running, if it is known: Slurm
        gives the same reason for several limits.
        """
        hopeless = together.detail.startswith(WILL_NOT_RUN)
        limit = self._exceeded(read_plan(handle)) if hopeless else None
        return together.detail if limit is None else f"{together.detail}: {limit}"

    def _silent(self, handle: ServingHandle, endpoint: list[SlurmJob | None]) -> Observation | None:
        """A failure once the endpoint's job has run for `endpoint.timeout_s`, as far as this
        process has observed, without announcing where it listens.
        """
        running = [job for job in endpoint if job is not None and job.runs_on]
        paths = SwarmPaths(Path(handle.swarm_dir))
        if not running or read_address(paths) is not None:
            return None
        now = self._clock.monotonic()
        silent_s = now - self._silent_since.setdefault((handle.tag, running[0].id), now)
        limit_s = slurm_config(read_plan(handle)).endpoint.timeout_s
        if silent_s < limit_s:
            return None
        return Observation(
            Phase.FAILED, f"the endpoint's job has run for {limit_s:g} s and does not listen"
        )

    def _in_vain(self, handle: ServingHandle, seen: JobsOfParts) -> str | None:
        """Why waiting jobs will never run, once the queue has shown it for a while: the swarm waits
        for its own jobs, or for more than its group ever has.
        """
        own = [job for job in seen.values() if job is not None and not job.over]
        reasons = {job.reason for job in own if job.waiting} - {AFTER_ENDPOINT}
        ids = {job.id for job in own}
        others = any(job.going and job.id not in ids for job in self._slurm.queue().values())
        group = bool(reasons) and all(limits_the_group(one) for one in reasons)
        alone = not others and bool(reasons) and all(limits_the_user(one) for one in reasons)
        if not group and not alone:
            self._waits_since.pop(handle.tag, None)
            return None
        now = self._clock.monotonic()
        if now - self._waits_since.setdefault(handle.tag, now) < _WAITS_S:
            return None
        if alone:
            return (
                "nothing else of yours runs, the endpoint's job uses up what your jobs may have "
                "together. Have that limit raised, or give the endpoint another QoS: "
                "backend.endpoint.qos"
            )
        self._waits_since[handle.tag] = now + _GROUPS_ASKED_S  # ask again then
        return self._exceeded(read_plan(handle))


def no_log(paths: SwarmPaths, part: PlatformPart, job: SlurmJob | None) -> str | None:
    """The message for a job that failed before it could write a line: Slurm opens its log as the
    user on the node. None: it is not one of these.
    """
    log = paths.endpoint_log if part.kind == "endpoint" else batch_log(paths, part)
    if job is None or job.state != "FAILED" or log.exists():
        return None
    return (
        f"the job {job.id} failed on {job.node or 'its node'} and could not write its log into "
        f"{log.parent}: the nodes do not see that folder. Set home_directory, or DOMYN_SWARM_HOME, "
        "to one that they share"
    )


def read_plan(handle: ServingHandle) -> DeploymentPlan:
    """The plan that the swarm was launched with."""
    text = SwarmPaths(Path(handle.swarm_dir)).plan.read_text("utf-8")
    return DeploymentPlan.model_validate_json(text)


def batch_log(paths: SwarmPaths, part: PlatformPart) -> Path:
    """The output of the batch script of a replica's task."""
    return paths.slurm_logs / f"replica-{task_of(part)}.log"
