"""A swarm as two Slurm jobs: the endpoint, and an array whose tasks hold the replicas."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from domyn_swarm.backends.base import Part, PartRecorder, ServingHandle, refuse_draining
from domyn_swarm.backends.checks import Check
from domyn_swarm.backends.endpoint.reading import OwnEndpoint
from domyn_swarm.backends.endpoint.spec import EndpointSpec
from domyn_swarm.backends.endpoint.view import read_address
from domyn_swarm.backends.slurm.cluster import OnCluster
from domyn_swarm.backends.slurm.commands import Slurm
from domyn_swarm.backends.slurm.ending import Ending
from domyn_swarm.backends.slurm.folder import (
    render_scripts,
    write_endpoint_spec,
    write_swarm,
    write_watchdog_specs,
)
from domyn_swarm.backends.slurm.layout import replicas_per_task, slurm_config
from domyn_swarm.backends.slurm.lost_endpoint import comes_back
from domyn_swarm.backends.slurm.scheduler import Scheduler
from domyn_swarm.backends.slurm.states import TAKEN, SlurmJob
from domyn_swarm.backends.slurm.submissions import TAKEN_WITHIN_S, Submissions, warn_of_hidden
from domyn_swarm.backends.slurm.tagged import TaggedJob, tagged
from domyn_swarm.errors import PlatformError, StateError
from domyn_swarm.paths import SwarmPaths
from domyn_swarm.planning.context import DeploymentContext
from domyn_swarm.planning.plan import DeploymentPlan
from domyn_swarm.probing import Clock, Observation, Phase

_FRESH_S = 1.0


class SlurmServing(OnCluster, OwnEndpoint):
    """See `ServingBackend`."""

    def __init__(self, slurm: Scheduler | None = None, clock: Clock = time) -> None:
        self._slurm = slurm or Slurm()
        self._clock = clock
        self._surely_ended: set[str] = set()  # replicas' jobs without a successor
        self._surely_over: set[str] = set()  # endpoints' jobs without a successor, by a fresh look
        self._silent_since: dict[str, float] = {}  # endpoints' jobs that run and do not listen yet

    def launch(
        self, plan: DeploymentPlan, ctx: DeploymentContext, record: PartRecorder
    ) -> ServingHandle:
        """See `ServingBackend.launch`. The scripts are kept in the swarm's folder."""
        paths = SwarmPaths.of(plan.home_directory, plan.name)
        per_task = self._per_task(plan)
        write_swarm(plan, ctx, paths, per_task)
        for script in (paths.endpoint_script, paths.replica_script):
            self._slurm.test(script)
        submissions = Submissions(self._slurm, paths, self._clock)
        endpoint = Part(kind="endpoint", platform_id=submissions.submit("endpoint"))
        record(endpoint)
        warn_of_hidden(self._slurm, ctx.tag, endpoint.platform_id)
        array = submissions.submit("replica")
        replicas = _replica_parts(array, range(plan.layout.replicas), per_task)
        record(*replicas)
        return ServingHandle(
            platform="slurm",
            tag=ctx.tag,
            swarm_dir=str(paths.root),
            parts=(endpoint, *replicas),
        )

    def _per_task(self, plan: DeploymentPlan) -> int:
        config = slurm_config(plan)
        whole = config.packing == "auto" and self._slurm.gives_whole_nodes(config.partition)
        return replicas_per_task(plan, whole_nodes=whole)

    def scripts(self, plan: DeploymentPlan, ctx: DeploymentContext) -> dict[str, str]:
        """See `ServingBackend.scripts`. Where whole nodes are given is Slurm's to say, if it is
        there.
        """
        try:
            per_task = self._per_task(plan)
        except PlatformError:
            per_task = replicas_per_task(plan, whole_nodes=False)
        return render_scripts(plan, ctx, SwarmPaths.of(plan.home_directory, plan.name), per_task)

    def rehearse(self, plan: DeploymentPlan, ctx: DeploymentContext) -> tuple[str, ...]:
        """See `ServingBackend.rehearse`: `sbatch --test-only` of each script."""
        said = []
        with tempfile.TemporaryDirectory(prefix="domyn-swarm-") as folder:
            for name, text in self.scripts(plan, ctx).items():
                script = Path(folder) / name
                script.write_text(text, "utf-8")
                said.append(f"{name}: {self._slurm.test(script)}")
        return tuple(said)

    def checks(self, plan: DeploymentPlan) -> Iterator[Check]:
        """See `ServingBackend.checks`."""
        from domyn_swarm.backends.slurm.site import site_checks

        return site_checks(plan, Slurm())

    def scale(
        self,
        plan: DeploymentPlan,
        ctx: DeploymentContext,
        handle: ServingHandle,
        record: PartRecorder,
    ) -> None:
        """See `ServingBackend.scale`. Added replicas are a new array of the kept script."""
        paths = SwarmPaths(Path(handle.swarm_dir))
        self._slurm.expect_change()  # the endpoint may have replaced a replica a moment ago
        replicas = [one for one in self._tagged(handle.tag) if one.kind == "replica"]
        per_task = next((one.per_task for one in replicas), 1)
        before = EndpointSpec.model_validate_json(paths.endpoint_spec.read_text("utf-8")).replicas
        wanted = plan.layout.replicas
        tasks, tasks_before = math.ceil(wanted / per_task), math.ceil(before / per_task)
        live = {one.group: one.job.id for one in replicas if not one.job.over}
        _check_scale(wanted, before, per_task)
        refuse_draining([live[group] for group in live if tasks_before <= group < tasks])
        write_watchdog_specs(plan, ctx, paths, range(before, wanted))
        write_endpoint_spec(plan, ctx, paths)
        missing = sorted(set(range(tasks)) - live.keys())
        if missing:
            submissions = Submissions(self._slurm, paths, self._clock)
            array = submissions.submit("replica", missing, before=replicas)
            added = [one for group in missing for one in _replicas_of(group, per_task)]
            record(*_replica_parts(array, added, per_task))
        self._slurm.cancel([live[group] for group in live if group >= tasks], signal="TERM")

    # -- asking ------------------------------------------------------------------------------------

    def probe(self, handle: ServingHandle) -> Observation:
        """See `ServingBackend.probe`."""
        try:
            seen = self._seen(handle)
        except PlatformError as error:
            return Observation(Phase.UNKNOWN, error.message)
        places = {(part.kind, part.index): job for part, job in seen.items()}
        endpoint = [job for (kind, _), job in places.items() if kind == "endpoint"]
        replicas = [job for (kind, _), job in places.items() if kind == "replica"]
        whole = self._silent(endpoint, handle) or _whole(endpoint, replicas)
        if whole.phase is Phase.STOPPED and (kind := self._unanswered(handle)) is not None:
            return Observation(Phase.UNKNOWN, f"Slurm may yet take what was submitted ({kind})")
        return whole

    def _silent(
        self, endpoint: Sequence[SlurmJob | None], handle: ServingHandle
    ) -> Observation | None:
        """A failure once the endpoint's job has run for `endpoint.timeout_s`, as far as this
        process has seen, and has never said where it listens.
        """
        running = [job for job in endpoint if job is not None and job.runs_on]
        paths = SwarmPaths(Path(handle.swarm_dir))
        if not running or read_address(paths) is not None:
            return None
        now = self._clock.monotonic()
        silent_s = now - self._silent_since.setdefault(running[0].id, now)
        plan = DeploymentPlan.model_validate_json(paths.plan.read_text("utf-8"))
        limit_s = slurm_config(plan).endpoint.timeout_s
        if silent_s < limit_s:
            return None
        return Observation(
            Phase.FAILED, f"the endpoint's job has run for {limit_s:g} s and does not listen"
        )

    def probe_parts(self, handle: ServingHandle) -> dict[str, Observation]:
        """See `ServingBackend.probe_parts`. A replica whose successor is to come waits."""
        try:
            seen, coming = self._seen(handle), self._successors(handle)
            if self._any_doubtful(seen, coming):
                self._slurm.queue(at_most_s=0.0)
                seen, coming = self._seen(handle), self._successors(handle)
        except PlatformError as error:
            unknown = Observation(Phase.UNKNOWN, error.message)
            return {part.platform_id: unknown for part in handle.parts}
        return {part.platform_id: _of_part(job, part in coming) for part, job in seen.items()}

    def _any_doubtful(self, seen: Mapping[Part, SlurmJob | None], coming: Collection[Part]) -> bool:
        """Whether a replica seems to have ended without a word for the first time. The word is
        taken away once the successor is submitted, which a look from before does not show.
        """
        ended = {
            job.id
            for part, job in seen.items()
            if part.kind == "replica" and job is not None and job.over and part not in coming
        }
        doubtful = ended - self._surely_ended
        self._surely_ended |= doubtful
        return bool(doubtful)

    def _successors(self, handle: ServingHandle) -> set[Part]:
        """The replicas whose jobs are over and that the endpoint program submits anew, as far as
        can be told from outside.
        """
        paths = SwarmPaths(Path(handle.swarm_dir))
        last = {
            part.index: one.job
            for one in self._tagged(handle.tag)
            for part in _parts_of(one)
            if one.kind == "replica"
        }
        taken = {index for index, job in last.items() if job.state in TAKEN}
        return {
            part
            for part in handle.parts
            if part.kind == "replica"
            and (part.index in taken or paths.expired(_task_of(part)).exists())
        }

    def expiries(self, handle: ServingHandle) -> dict[str, datetime]:
        """See `ServingBackend.expiries`."""
        return {
            part.platform_id: job.limit
            for part, job in self._seen(handle).items()
            if job is not None and job.going and job.limit is not None
        }

    def lost(self, handle: ServingHandle) -> str | None:
        """See `ServingBackend.lost`: an endpoint's job that somebody ended, that failed too often,
        or that no replica is there to replace.
        """
        own = [part.platform_id for part in handle.parts if part.kind == "endpoint"]
        try:
            for at_most_s in (math.inf, 0.0):  # a look from before may not show its successor
                jobs = tagged(self._slurm.queue(at_most_s).values(), handle.tag)
                endpoints = [one.job for one in jobs if one.kind == "endpoint"]
                known = endpoints or [*self._slurm.jobs(own).values()]  # a site may take its tag
                if any(not job.over for job in known):
                    return None
                last = known[-1].id if known else handle.tag
                if last in self._surely_over:
                    break
        except PlatformError:
            return None
        self._surely_over.add(last)
        looked_after = any(one.kind == "replica" and not one.job.over for one in jobs)
        paths = SwarmPaths(Path(handle.swarm_dir))
        if endpoints and looked_after and comes_back(paths, endpoints[-1], self._clock):
            return None
        if not known and not own and not jobs:
            return None  # it cannot be told from a swarm whose jobs do not show their tag
        return f"the endpoint's job {_told(known[-1] if known else None)}"

    def find(self, handle: ServingHandle) -> list[ServingHandle]:
        """See `ServingBackend.find`. Jobs that are over are not told of."""
        jobs = self._live(handle.tag, at_most_s=_FRESH_S)
        if not jobs:  # the swarm may be written off: what began a moment ago must be seen
            jobs = self._live(handle.tag, at_most_s=0.0)
        parts = [part for one in jobs for part in _parts_of(one)]
        if not parts:
            return []
        parts.sort(key=lambda part: (part.kind, part.index))
        return [handle.model_copy(update={"parts": tuple(parts)})]

    def _seen(self, handle: ServingHandle) -> dict[Part, SlurmJob | None]:
        """The job in each part's place: the one that is not over, whatever its id; else its own."""
        live = {
            (part.kind, part.index): one.job
            for one in self._tagged(handle.tag)
            if not one.job.over
            for part in _parts_of(one)
        }
        others = [part for part in handle.parts if (part.kind, part.index) not in live]
        own = self._slurm.jobs([part.platform_id for part in others])
        return {
            part: live.get((part.kind, part.index)) or own.get(part.platform_id)
            for part in handle.parts
        }

    def _unanswered(self, handle: ServingHandle) -> str | None:
        submissions = Submissions(self._slurm, SwarmPaths(Path(handle.swarm_dir)), self._clock)
        return submissions.unanswered(self._tagged(handle.tag))

    def _live(self, tag: str, *, at_most_s: float) -> list[TaggedJob]:
        jobs = tagged(self._slurm.queue(at_most_s).values(), tag)
        return [one for one in jobs if not one.job.over]

    def _tagged(self, tag: str) -> list[TaggedJob]:
        return tagged(self._slurm.queue().values(), tag)

    # -- ending ------------------------------------------------------------------------------------

    def delete(self, handle: ServingHandle) -> None:
        """See `ServingBackend.delete`: jobs first, then replicas, then the endpoint, and what that
        may have submitted meanwhile, or went back into the queue.
        """
        known = {
            kind: [part.platform_id for part in handle.parts if part.kind == kind]
            for kind in ("replica", "endpoint")
        }
        Ending(self._slurm, handle.tag, known, self._clock).end(
            "job", "replica", "endpoint", "replica", "endpoint"
        )
        kind = self._unanswered(handle)
        if kind is not None:
            raise PlatformError(
                f"Nothing of the swarm runs, but Slurm may yet take what was submitted ({kind}) "
                "minutes ago: it has not said whether it did.",
                hint=f"Run `domyn-swarm down` again in {TAKEN_WITHIN_S / 60:g} minutes.",
            )


def _check_scale(wanted: int, before: int, per_task: int) -> None:
    if wanted != before and (wanted % per_task or before % per_task):
        raise StateError(
            f"Each node of this swarm holds {per_task} replicas: {before} cannot become {wanted}.",
            hint=f"Choose a multiple of {per_task}; from another size, bring the swarm up anew.",
        )


def _replicas_of(group: int, per_task: int) -> range:
    return range(group * per_task, (group + 1) * per_task)


def _replica_parts(array: str, replicas: Iterable[int], per_task: int) -> list[Part]:
    return [
        Part(kind="replica", index=index, platform_id=f"{array}_{index // per_task}")
        for index in replicas
    ]


def _parts_of(one: TaggedJob) -> list[Part]:
    if one.kind == "endpoint":
        return [Part(kind="endpoint", platform_id=one.job.id)]
    return [Part(kind="replica", index=index, platform_id=one.job.id) for index in one.replicas]


def _whole(endpoint: list[SlurmJob | None], replicas: list[SlurmJob | None]) -> Observation:
    """What the jobs of a swarm, None for those that Slurm does not know, are together."""
    if all(_over(job) for job in [*endpoint, *replicas]):
        return Observation(Phase.STOPPED, "none of its jobs is in the queue")
    for kind, jobs in (
        ("the endpoint's job", endpoint),
        ("every replica has ended: one", replicas),
    ):
        if jobs and all(_over(job) for job in jobs):
            return Observation(Phase.FAILED, f"{kind} {_told(jobs[-1])}")
    running = sum(job is not None and job.going for job in replicas)
    waiting = [job for job in [*endpoint, *replicas] if job is not None and job.waiting]
    if running and not any(job is not None and job.waiting for job in endpoint):
        return Observation(Phase.READY, f"{running} replicas run, {len(waiting)} jobs wait")
    hopeless = [job for job in waiting if job.hopeless]
    if hopeless:
        return Observation(Phase.FAILED, f"Slurm will not run it ({_reasons(hopeless)})")
    return Observation(Phase.QUEUED, f"{len(waiting)} jobs wait ({_reasons(waiting)})")


def _of_part(job: SlurmJob | None, successor: bool) -> Observation:
    if successor and _over(job):
        return Observation(Phase.QUEUED, "its job has ended, and a successor is to come")
    if job is None:
        return Observation(Phase.STOPPED, "Slurm does not know it any more")
    return job.observation


def _task_of(part: Part) -> int:
    return int(part.platform_id.rpartition("_")[2])


def _over(job: SlurmJob | None) -> bool:
    return job is None or job.over


def _told(job: SlurmJob | None) -> str:
    return "is not known any more" if job is None else job.observation.detail


def _reasons(jobs: Sequence[SlurmJob]) -> str:
    return ", ".join(sorted({job.reason for job in jobs if job.reason})) or "no reason given"
