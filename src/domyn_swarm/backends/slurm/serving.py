"""A swarm as two Slurm jobs: the endpoint, and an array with a task for each replica."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from domyn_swarm.backends.base import Part, PartRecorder, ServingHandle
from domyn_swarm.backends.endpoint.spec import build_endpoint_spec
from domyn_swarm.backends.slurm.commands import TAG_PREFIX, Slurm
from domyn_swarm.backends.slurm.layout import endpoint_script, replica_script, slurm_config
from domyn_swarm.backends.slurm.states import SlurmJob
from domyn_swarm.backends.watchdog_spec import build_watchdog_spec, watchdog_source
from domyn_swarm.errors import PlatformError
from domyn_swarm.paths import SwarmPaths, private_dir, write_private
from domyn_swarm.planning.context import DeploymentContext
from domyn_swarm.planning.plan import DeploymentPlan
from domyn_swarm.probing import Observation, Phase

_JOB_GRACE_S = 30.0
_END_S = 90.0  # from scancel until nothing runs: KillWait (30 s as a rule), and some nodes are slow
_LOOK_S = 1.0


class SlurmServing:
    """See `ServingBackend`."""

    def __init__(self, slurm: Slurm | None = None) -> None:
        self._slurm = slurm or Slurm()

    def launch(
        self, plan: DeploymentPlan, ctx: DeploymentContext, record: PartRecorder
    ) -> ServingHandle:
        """See `ServingBackend.launch`. The scripts are kept in the swarm's folder."""
        paths = SwarmPaths.of(plan.home_directory, plan.name)
        endpoint, replicas = self._write(plan, ctx, paths)
        parts = [Part(kind="endpoint", platform_id=self._slurm.submit(endpoint))]
        record(parts[0])
        array = self._slurm.submit(replicas)
        for index in range(plan.layout.replicas):
            parts.append(Part(kind="replica", index=index, platform_id=f"{array}_{index}"))
            record(parts[-1])
        return ServingHandle(
            platform="slurm", tag=ctx.tag, swarm_dir=str(paths.root), parts=tuple(parts)
        )

    @staticmethod
    def _write(
        plan: DeploymentPlan, ctx: DeploymentContext, paths: SwarmPaths
    ) -> tuple[Path, Path]:
        """Everything the nodes are told, before anything is submitted."""
        config = slurm_config(plan)
        private_dir(paths.scripts)
        private_dir(paths.slurm_logs)
        private_dir(paths.endpoint_log.parent)
        shutil.copyfile(watchdog_source(), paths.watchdog_program)
        spec = build_endpoint_spec(plan, ctx, paths, host="")
        write_private(paths.endpoint_spec, spec.model_dump_json(indent=2))
        for index in range(plan.layout.replicas):
            private_dir(paths.replica_logs(index))
            told = build_watchdog_spec(plan, ctx, paths, index, host="")
            drain_s = config.drain_before_end_s - 2 * plan.watchdog.kill_grace_seconds
            told["drain_seconds"] = max(plan.watchdog.kill_grace_seconds, drain_s)
            write_private(paths.watchdog_spec(index), json.dumps(told, indent=2))
        endpoint, replicas = paths.scripts / "endpoint.sh", paths.scripts / "replicas.sh"
        site = None if config.template_path is None else Path(config.template_path)
        write_private(endpoint, endpoint_script(plan, ctx, paths).render("batch.sh.j2", site))
        write_private(replicas, replica_script(plan, ctx, paths).render("batch.sh.j2", site))
        return endpoint, replicas

    # -- asking ------------------------------------------------------------------------------------

    def probe(self, handle: ServingHandle) -> Observation:
        """See `ServingBackend.probe`."""
        try:
            jobs = self._slurm.jobs([part.platform_id for part in handle.parts])
        except PlatformError as error:
            return Observation(Phase.UNKNOWN, error.message)
        if not any(not job.over for job in jobs.values()):
            return Observation(Phase.STOPPED, "none of its jobs is in the queue")
        kinds = {part.platform_id: part.kind for part in handle.parts}
        endpoint = [jobs.get(one) for one, kind in kinds.items() if kind == "endpoint"]
        replicas = [jobs.get(one) for one, kind in kinds.items() if kind == "replica"]
        if endpoint and all(job is None or job.over for job in endpoint):
            return Observation(Phase.FAILED, f"the endpoint's job {_told(endpoint[0])}")
        if replicas and all(job is None or job.over for job in replicas):
            return Observation(Phase.FAILED, f"every replica has ended: one {_told(replicas[0])}")
        running = sum(job is not None and job.going for job in replicas)
        waiting = [job for job in [*endpoint, *replicas] if job is not None and job.waiting]
        if not running or any(job is not None and job.waiting for job in endpoint):
            return Observation(Phase.QUEUED, f"{len(waiting)} jobs wait ({_reasons(waiting)})")
        return Observation(Phase.READY, f"{running} replicas run, {len(waiting)} jobs wait")

    def probe_parts(self, handle: ServingHandle) -> dict[str, Observation]:
        """See `ServingBackend.probe_parts`."""
        ids = [part.platform_id for part in handle.parts]
        try:
            jobs = self._slurm.jobs(ids)
        except PlatformError as error:
            return dict.fromkeys(ids, Observation(Phase.UNKNOWN, error.message))
        gone = Observation(Phase.STOPPED, "Slurm does not know it any more")
        return {one: jobs[one].observation if one in jobs else gone for one in ids}

    def expiries(self, handle: ServingHandle) -> dict[str, datetime]:
        """See `ServingBackend.expiries`."""
        jobs = self._slurm.jobs([part.platform_id for part in handle.parts])
        return {one: job.limit for one, job in jobs.items() if job.going and job.limit is not None}

    def find(self, tag: str) -> list[ServingHandle]:
        """See `ServingBackend.find`. Jobs that are over are not told of."""
        parts = [
            part
            for job in self._tagged(tag)
            if (part := _part(job, tag)) is not None and not job.over
        ]
        if not parts:
            return []
        parts.sort(key=lambda part: (part.kind, part.index))
        return [ServingHandle(platform="slurm", tag=tag, swarm_dir="", parts=tuple(parts))]

    def _tagged(self, tag: str) -> list[SlurmJob]:
        prefix = f"{TAG_PREFIX}/{tag}/"
        return [job for job in self._slurm.queue().values() if job.comment.startswith(prefix)]

    # -- ending ------------------------------------------------------------------------------------

    def delete(self, handle: ServingHandle) -> None:
        """See `ServingBackend.delete`: jobs first, then replicas, then the endpoint."""
        known = {part.platform_id: part.kind for part in handle.parts}

        def left(kind: str) -> list[str]:
            found = {job.id: job for job in self._tagged(handle.tag)}
            found |= self._slurm.jobs([one for one, of in known.items() if of == kind])
            return [
                one
                for one, job in found.items()
                if not job.over and (known.get(one) or _kind(job, handle.tag)) == kind
            ]

        self._slurm.cancel(left("job"), signal="TERM")
        self._until(lambda: not left("job"), _JOB_GRACE_S)
        for kind in ("job", "replica", "endpoint"):
            self._slurm.cancel(left(kind))
            if not self._until(lambda kind=kind: not left(kind), _END_S):  # type: ignore[misc]
                still = ", ".join(left(kind))
                raise PlatformError(
                    f"Slurm still has jobs of the swarm: {still}.",
                    hint="Nodes may be slow to let go; see `squeue`, then run `domyn-swarm down`.",
                )

    @staticmethod
    def _until(condition: Callable[[], bool], within_s: float) -> bool:
        deadline = time.monotonic() + within_s
        while not condition():
            if time.monotonic() >= deadline:
                return False
            time.sleep(_LOOK_S)
        return True


def _kind(job: SlurmJob, tag: str) -> str:
    return job.comment.removeprefix(f"{TAG_PREFIX}/{tag}/").split("/")[0]


def _part(job: SlurmJob, tag: str) -> Part | None:
    kind = _kind(job, tag)
    if kind not in ("endpoint", "replica"):
        return None
    _, _, index = job.id.partition("_")
    number = int(index) if index.isdecimal() else 0
    return Part.model_validate({"kind": kind, "index": number, "platform_id": job.id})


def _told(job: SlurmJob | None) -> str:
    return "is not known any more" if job is None else job.observation.detail


def _reasons(jobs: Sequence[SlurmJob]) -> str:
    return ", ".join(sorted({job.reason for job in jobs if job.reason})) or "no reason given"
