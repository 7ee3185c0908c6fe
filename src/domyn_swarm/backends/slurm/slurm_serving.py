"""A swarm as two Slurm jobs: the endpoint, and an array whose tasks run the replicas."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Collection, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from typing_extensions import override

from domyn_swarm.backends.checks import Check
from domyn_swarm.backends.endpoint.endpoint_spec import EndpointSpec
from domyn_swarm.backends.endpoint.own_endpoint import OwnEndpoint
from domyn_swarm.backends.protocols import (
    LaunchScripts,
    PartRecorder,
    PlatformPart,
    ServingBackend,
    ServingHandle,
    refuse_draining,
)
from domyn_swarm.backends.slurm.cluster import OnCluster
from domyn_swarm.backends.slurm.commands import Slurm
from domyn_swarm.backends.slurm.ending import Ending, Scheduler
from domyn_swarm.backends.slurm.parts import (
    JobsOfParts,
    parts_of,
    replica_parts,
    task_of,
)
from domyn_swarm.backends.slurm.prospects import Prospects, batch_log, ended_how, no_log, of_part
from domyn_swarm.backends.slurm.queue import TaggedJob, replicas_of, tagged
from domyn_swarm.backends.slurm.recovery import comes_back
from domyn_swarm.backends.slurm.script_contents import replicas_per_task, slurm_config
from domyn_swarm.backends.slurm.script_files import (
    render_scripts,
    write_endpoint_spec,
    write_swarm,
    write_watchdog_specs,
)
from domyn_swarm.backends.slurm.slurm_states import LOST, SlurmJob
from domyn_swarm.backends.slurm.step_log import last_end
from domyn_swarm.backends.slurm.submissions import TAKEN_WITHIN_S, Submissions, warn_of_hidden
from domyn_swarm.errors import (
    PlatformError,
    StateError,
    SubmissionUnknown,
    SubmitRejected,
    SwarmError,
)
from domyn_swarm.paths import SwarmPaths, write_private
from domyn_swarm.planning.plan import DeploymentContext, DeploymentPlan
from domyn_swarm.probing import Clock, Observation, Phase

if TYPE_CHECKING:
    from domyn_swarm.backends.rehearsal import Rehearsal
    from domyn_swarm.backends.slurm.site_answers import SiteAnswers

_FRESH_S = 1.0


class SlurmServing(OnCluster, OwnEndpoint, ServingBackend):
    """The endpoint as a Slurm job, replicas as tasks of job arrays."""

    def __init__(self, slurm: Scheduler | None = None, clock: Clock = time) -> None:
        self._slurm = slurm or Slurm()
        self._clock = clock
        self._surely_ended: set[str] = set()  # jobs of replicas that get no successor
        self._surely_over: set[str] = set()  # jobs of endpoints that get none, by a fresh snapshot
        self._site: SiteAnswers | None = None  # of `checks`, for a rehearsal that comes next
        self._prospects = Prospects(self._slurm, clock, _exceeded)

    @override
    def launch(
        self,
        plan: DeploymentPlan,
        ctx: DeploymentContext,
        scripts: LaunchScripts,
        record: PartRecorder,
    ) -> ServingHandle:
        """The scripts are kept in the swarm's folder."""
        paths, per_task = SwarmPaths.of(plan.home_directory, plan.name), scripts.replicas_per_task
        write_swarm(plan, ctx, paths, scripts)
        for script in (paths.endpoint_script, paths.replica_script):
            self._slurm.test(script)
        submissions = Submissions(self._slurm, paths, self._clock)
        endpoint = PlatformPart(kind="endpoint", platform_id=submissions.submit("endpoint"))
        record(endpoint)
        submissions.recorded("endpoint")
        warn_of_hidden(self._slurm, ctx.tag, endpoint.platform_id)
        # No GPU is held for an endpoint that waits: tasks are scheduled once its job has started.
        replicas: list[PlatformPart] = []
        if plan.launched_replicas:
            tasks = None  # all tasks of the script's array
            if plan.elastic is not None:
                tasks = range(math.ceil(plan.launched_replicas / per_task))
            array = submissions.submit("replica", tasks, after=endpoint.platform_id)
            replicas = replica_parts(array, range(plan.launched_replicas), per_task)
            record(*replicas)
            submissions.recorded("replica")
        return ServingHandle(
            platform="slurm",
            tag=ctx.tag,
            swarm_dir=str(paths.root),
            parts=(endpoint, *replicas),
        )

    @override
    def scripts(self, plan: DeploymentPlan, ctx: DeploymentContext) -> LaunchScripts:
        config, unasked = slurm_config(plan), None
        try:
            whole = config.packing == "auto" and self._slurm.gives_whole_nodes(config.partition)
        except PlatformError as error:
            whole, unasked = False, error
        per_task = replicas_per_task(plan, whole_nodes=whole)
        paths = SwarmPaths.of(plan.home_directory, plan.name)
        return LaunchScripts(render_scripts(plan, ctx, paths, per_task), per_task, unasked)

    @override
    def rehearse(self, plan: DeploymentPlan, scripts: LaunchScripts) -> tuple[Check, ...]:
        """Runs `sbatch --test-only` for each script, and checks the limits
        that it ignores.
        """
        from domyn_swarm.backends.slurm.slurm_rehearsal import would_take_checks

        site, self._site = self._site, None
        if (never := _exceeded(plan, site)) is not None:
            raise SubmitRejected(f"Slurm would accept it and never run it: {never}")
        said: list[Check] = []
        with tempfile.TemporaryDirectory(prefix="domyn-swarm-") as folder:
            for name, text in scripts.texts.items():
                script = Path(folder) / name
                script.write_text(text, "utf-8")
                said += would_take_checks(name, self._slurm.test(script))
        return tuple(said)

    @override
    def checks(self, plan: DeploymentPlan) -> Iterator[Check]:
        from domyn_swarm.backends.slurm.site_answers import SiteAnswers
        from domyn_swarm.backends.slurm.slurm_site_checks import site_checks

        self._site = SiteAnswers(Slurm())
        return site_checks(plan, self._site)

    @override
    def checks_on_node(
        self, plan: DeploymentPlan, ctx: DeploymentContext, wish: Rehearsal
    ) -> Iterator[Check]:
        """Runs the checks in a job of two minutes."""
        from domyn_swarm.backends.slurm.slurm_rehearsal import RehearsalJob

        return RehearsalJob(Slurm(), wish, self._clock).checks(plan, ctx)

    @override
    def scale(
        self,
        plan: DeploymentPlan,
        ctx: DeploymentContext,
        handle: ServingHandle,
        record: PartRecorder,
    ) -> None:
        """Added replicas are a new array of the kept script."""
        paths = SwarmPaths(Path(handle.swarm_dir))
        self._slurm.expect_change()  # the endpoint may have just replaced a replica
        replicas = [one for one in self._tagged(handle) if one.kind == "replica"]
        per_task = next((one.per_task for one in replicas), 1)
        spec_before = paths.endpoint_spec.read_text("utf-8")
        before = EndpointSpec.model_validate_json(spec_before).replicas
        wanted = plan.layout.replicas
        tasks, tasks_before = math.ceil(wanted / per_task), math.ceil(before / per_task)
        live = {one.group: one.job.id for one in replicas if not one.job.over}
        _check_scale(wanted, before, per_task)
        refuse_draining([live[group] for group in live if tasks_before <= group < tasks])
        write_watchdog_specs(plan, ctx, paths, range(before, wanted), per_task)
        write_endpoint_spec(plan, ctx, paths)
        missing = sorted(set(range(tasks)) - live.keys())
        try:
            if missing:
                submissions = Submissions(self._slurm, paths, self._clock)
                array = submissions.submit("replica", missing, before=replicas)
                added = [one for group in missing for one in replicas_of(group, per_task)]
                record(*replica_parts(array, added, per_task))
                submissions.recorded("replica")
            self._slurm.cancel([live[group] for group in live if group >= tasks], signal="TERM")
        except SubmissionUnknown:  # they may appear, and are wanted then
            raise
        except (SwarmError, OSError):
            write_private(paths.endpoint_spec, spec_before)
            raise

    # -- queries ----------------------------------------------------------------------------------

    @override
    def probe(self, handle: ServingHandle) -> Observation:
        try:
            seen = self._seen(handle)
        except PlatformError as error:
            return Observation(Phase.UNKNOWN, error.message)
        together = self._prospects.of(handle, seen)
        if together.phase is Phase.STOPPED and (kind := self._unanswered(handle)) is not None:
            return Observation(Phase.UNKNOWN, f"Slurm may yet accept what was submitted ({kind})")
        return together

    @override
    def probe_parts(self, handle: ServingHandle) -> dict[str, Observation]:
        """A replica whose successor is still to be submitted is waiting."""
        try:
            seen, coming = self._seen(handle), self._successors(handle)
            if self._any_doubtful(seen, coming):
                self._slurm.queue(at_most_s=0.0)
                seen, coming = self._seen(handle), self._successors(handle)
        except PlatformError as error:
            unknown = Observation(Phase.UNKNOWN, error.message)
            return {part.platform_id: unknown for part in handle.parts}
        paths = SwarmPaths(Path(handle.swarm_dir))
        return {
            part.platform_id: self._place(paths, part, job, part in coming)
            for part, job in seen.items()
        }

    @staticmethod
    def _place(
        paths: SwarmPaths, part: PlatformPart, job: SlurmJob | None, successor: bool
    ) -> Observation:
        """The job of a part: for one that was requeued, also how its last run ended, and for one
        that failed without writing to its log, why.
        """
        again = part.kind == "replica" and job is not None and job.waiting
        before = last_end(batch_log(paths, part)) if again else None
        place = of_part(job, successor, before)
        words = no_log(paths, part, job) if place.phase.terminal else None
        return place if words is None else Observation(place.phase, words)

    def _any_doubtful(self, seen: JobsOfParts, coming: Collection[PlatformPart]) -> bool:
        """Whether a replica seems to have ended without a record for the first time. The record is
        removed once the successor is submitted, which an older snapshot does not show.
        """
        ended = {
            job.id
            for part, job in seen.items()
            if part.kind == "replica" and job is not None and job.over and part not in coming
        }
        doubtful = ended - self._surely_ended
        self._surely_ended |= doubtful
        return bool(doubtful)

    def _successors(self, handle: ServingHandle) -> set[PlatformPart]:
        """The replicas whose jobs are over and that the endpoint program will resubmit, as far as
        this can be determined from outside.
        """
        paths = SwarmPaths(Path(handle.swarm_dir))
        last = {
            part.index: one.job
            for one in self._tagged(handle)
            for part in parts_of(one)
            if one.kind == "replica"
        }
        taken = {index for index, job in last.items() if job.state in LOST}
        return {
            part
            for part in handle.parts
            if part.kind == "replica" and (part.index in taken or _left_word(paths, task_of(part)))
        }

    @override
    def expiries(self, handle: ServingHandle) -> dict[str, datetime]:
        return {
            part.platform_id: job.limit
            for part, job in self._seen(handle).items()
            if job is not None and job.going and job.limit is not None
        }

    @override
    def lost(self, handle: ServingHandle) -> str | None:
        """Lost: an endpoint's job that a user ended, that failed too often, or
        that no replica is left to replace.
        """
        own = [part.platform_id for part in handle.parts if part.kind == "endpoint"]
        try:
            for at_most_s in (math.inf, 0.0):  # an older snapshot may not show its successor
                jobs = tagged(self._slurm.queue(at_most_s).values(), handle.tag)
                endpoints = [one.job for one in jobs if one.kind == "endpoint"]
                known = endpoints or [*self._slurm.jobs(own).values()]  # a site may remove its tag
                if any(not job.over for job in known):
                    return None
                last = f"{handle.tag}/{known[-1].id}" if known else handle.tag
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
            return None  # it looks like a swarm whose jobs do not show their tag
        return f"the endpoint's job {ended_how(known[-1] if known else None)}"

    @override
    def find(self, handle: ServingHandle) -> list[ServingHandle]:
        """Jobs that are over are left out."""
        jobs = self._live(handle, at_most_s=_FRESH_S)
        if not jobs:  # an absent swarm may be recorded as stopped: recent jobs must show
            jobs = self._live(handle, at_most_s=0.0)
        parts = [part for one in jobs for part in parts_of(one)]
        if not parts:
            return []
        parts.sort(key=lambda part: (part.kind, part.index))
        return [handle.model_copy(update={"parts": tuple(parts)})]

    def _seen(self, handle: ServingHandle) -> JobsOfParts:
        """The job of each part: the one that is not over, whatever its id; else its own."""
        live = {
            (part.kind, part.index): one.job
            for one in self._tagged(handle)
            if not one.job.over
            for part in parts_of(one)
        }
        parts = list(handle.parts)
        if handle.least_replicas is not None:  # its replicas come and go
            there = [
                part
                for one in self._tagged(handle)
                for part in parts_of(one)
                if one.kind == "replica" and not one.job.over
            ]
            parts = [*dict.fromkeys([*parts, *there])]
        others = [part for part in parts if (part.kind, part.index) not in live]
        own = self._slurm.jobs([part.platform_id for part in others])
        return {
            part: live.get((part.kind, part.index)) or own.get(part.platform_id) for part in parts
        }

    def _unanswered(self, handle: ServingHandle) -> str | None:
        return self._submissions(handle).unanswered(self._tagged(handle))

    def _submissions(self, handle: ServingHandle) -> Submissions:
        return Submissions(self._slurm, SwarmPaths(Path(handle.swarm_dir)), self._clock)

    def _live(self, handle: ServingHandle, *, at_most_s: float) -> list[TaggedJob]:
        return [one for one in self._tagged(handle, at_most_s) if not one.job.over]

    def _tagged(self, handle: ServingHandle, at_most_s: float = math.inf) -> list[TaggedJob]:
        """Its jobs by their tag, and those that show no tag and were never recorded."""
        queue = self._slurm.queue(at_most_s)
        found = tagged(queue.values(), handle.tag)
        return [*found, *self._submissions(handle).untagged(queue, found)]

    # -- ending ------------------------------------------------------------------------------------

    @override
    def delete(self, handle: ServingHandle) -> None:
        """Jobs first, then replicas, then the endpoint, and the tasks that
        it may have submitted meanwhile or that went back into the queue.
        """
        known = {
            kind: [part.platform_id for part in handle.parts if part.kind == kind]
            for kind in ("replica", "endpoint")
        }
        for one in self._live(handle, at_most_s=0.0):
            known.setdefault(one.kind, []).append(one.job.id)
        Ending(self._slurm, handle.tag, known, self._clock).end(
            "job", "replica", "endpoint", "replica", "endpoint"
        )
        kind = self._unanswered(handle)
        if kind is not None:
            raise PlatformError(
                f"Nothing of the swarm runs, but Slurm may yet accept what was submitted ({kind}) "
                "minutes ago: it has not answered.",
                hint=f"Run `domyn-swarm down` again in {TAKEN_WITHIN_S / 60:g} minutes.",
            )


def _check_scale(wanted: int, before: int, per_task: int) -> None:
    if wanted != before and (wanted % per_task or before % per_task):
        raise StateError(
            f"Each node of this swarm holds {per_task} replicas: {before} cannot become {wanted}.",
            hint=f"Choose a multiple of {per_task}; from another size, bring the swarm up anew.",
        )


def _exceeded(plan: DeploymentPlan, site: SiteAnswers | None = None) -> str | None:
    from domyn_swarm.backends.slurm.site_answers import SiteAnswers
    from domyn_swarm.backends.slurm.site_limits import never_kept

    return never_kept(plan, site or SiteAnswers(Slurm()))


def _left_word(paths: SwarmPaths, task: int) -> bool:
    return paths.expired(task).exists() or paths.elsewhere(task).exists()
