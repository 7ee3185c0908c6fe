"""A swarm as processes of this machine: the endpoint program and one watchdog per replica."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from domyn_swarm.backends.base import (
    ASLEEP,
    LaunchScripts,
    Part,
    PartRecorder,
    ServingHandle,
    refuse_draining,
)
from domyn_swarm.backends.checks import Check, ok
from domyn_swarm.backends.endpoint.own_endpoint import OwnEndpoint, build_endpoint_spec
from domyn_swarm.backends.endpoint.spec import EndpointSpec
from domyn_swarm.backends.endpoint.view import read_address
from domyn_swarm.backends.gpus import HeldGpus, held_gpus
from domyn_swarm.backends.local import processes
from domyn_swarm.backends.local.processes import HOST, OnThisHost
from domyn_swarm.backends.local.watchdogs import start_watchdog, turn_to_start
from domyn_swarm.backends.watchdog_spec import build_watchdog_spec, copy_watchdog
from domyn_swarm.errors import (
    PlatformError,
    PlatformUnavailable,
    quantity,
)
from domyn_swarm.model import ProcessId, Reach
from domyn_swarm.paths import SwarmPaths, private_dir, write_private
from domyn_swarm.planning.plan import DeploymentContext, DeploymentPlan
from domyn_swarm.probing import Observation, Phase

if TYPE_CHECKING:
    from domyn_swarm.backends.rehearsal import Rehearsal

_JOB_GRACE_S = 30.0
_REPLICA_MARGIN_S = 10.0
_ENDPOINT_GRACE_S = 10.0
_ORPHANED_S = 60.0  # replicas outlive their endpoint by so much: nobody starts that again


class LocalServing(OnThisHost, OwnEndpoint):
    """See `ServingBackend`."""

    def launch(
        self,
        plan: DeploymentPlan,
        ctx: DeploymentContext,
        scripts: LaunchScripts,  # noqa: ARG002 - there are none
        record: PartRecorder,
    ) -> ServingHandle:
        """See `ServingBackend.launch`."""
        paths = SwarmPaths.of(plan.home_directory, plan.name)
        private_dir(paths.scripts)
        copy_watchdog(paths.watchdog_program)
        _write_endpoint_spec(plan, ctx, paths)
        self._write_watchdog_specs(plan, ctx, paths)
        with _gpus_of(plan, range(plan.launched_replicas)) as gpus:
            parts = [self._start_endpoint(ctx, paths)]
            record(parts[0])
            for replica, held in gpus.items():
                parts.append(self._start_replica(plan, ctx, paths, replica, held))
                record(parts[-1])
        return ServingHandle(
            platform="local", tag=ctx.tag, swarm_dir=str(paths.root), parts=tuple(parts)
        )

    def scripts(self, plan: DeploymentPlan, ctx: DeploymentContext) -> LaunchScripts:  # noqa: ARG002 - there are none
        """See `ServingBackend.scripts`."""
        return LaunchScripts({})

    def rehearse(self, plan: DeploymentPlan, scripts: LaunchScripts) -> tuple[Check, ...]:  # noqa: ARG002 - of the protocol
        """See `ServingBackend.rehearse`."""
        with _gpus_of(plan, range(plan.launched_replicas)):
            pass
        return (ok("rehearsal", "processes of this machine start at once"),)

    def checks(self, plan: DeploymentPlan) -> Iterator[Check]:
        """See `ServingBackend.checks`."""
        from domyn_swarm.backends.local.site import site_checks

        return site_checks(plan)

    def checks_on_node(
        self, plan: DeploymentPlan, ctx: DeploymentContext, wish: Rehearsal
    ) -> Iterator[Check]:
        """See `ServingBackend.checks_on_node`: a process of this machine."""
        from domyn_swarm.backends.local.site import checks_here

        return checks_here(plan, ctx, wish)

    def scale(
        self,
        plan: DeploymentPlan,
        ctx: DeploymentContext,
        handle: ServingHandle,
        record: PartRecorder,
    ) -> None:
        """See `ServingBackend.scale`."""
        paths = SwarmPaths(Path(handle.swarm_dir))
        with turn_to_start(paths):
            surplus = self._grow(plan, ctx, handle, record)
        processes.send(surplus, signal.SIGTERM)

    def _grow(
        self,
        plan: DeploymentPlan,
        ctx: DeploymentContext,
        handle: ServingHandle,
        record: PartRecorder,
    ) -> list[ProcessId]:
        """Start the replicas that do not run; those that run and are not wanted."""
        paths = SwarmPaths(Path(handle.swarm_dir))
        wanted = plan.layout.replicas
        running = {
            part.index: part
            for found in self.find(handle)
            for part in found.parts
            if part.kind == "replica"
        }
        told = paths.endpoint_spec.read_text("utf-8")
        before = EndpointSpec.model_validate_json(told).replicas
        refuse_draining([running[one].platform_id for one in running if before <= one < wanted])
        started: list[Part] = []
        try:
            with _gpus_of(plan, sorted(set(range(wanted)) - running.keys())) as gpus:
                _write_endpoint_spec(plan, ctx, paths)
                for replica, held in gpus.items():
                    started.append(self._start_replica(plan, ctx, paths, replica, held))
                    record(started[-1])
        except BaseException:  # some of them are as none
            processes.send([one.process for one in started if one.process], signal.SIGTERM)
            write_private(paths.endpoint_spec, told)
            raise
        surplus = [part.process for index, part in running.items() if index >= wanted]
        return [one for one in surplus if one is not None]

    def _start_endpoint(self, ctx: DeploymentContext, paths: SwarmPaths) -> Part:
        argv = [ctx.interpreter, "-m", "domyn_swarm.backends.endpoint", str(paths.root), "local"]
        env = {**ctx.shared_env, processes.TAG: ctx.tag, processes.PART: "endpoint-0"}
        return _part("endpoint", 0, processes.spawn(argv, env, paths.endpoint_log))

    @staticmethod
    def _write_watchdog_specs(
        plan: DeploymentPlan, ctx: DeploymentContext, paths: SwarmPaths
    ) -> None:
        """Of the replicas that the endpoint program may start later."""
        for replica in range(plan.launched_replicas, plan.layout.replicas):
            private_dir(paths.replica_logs(replica))
            _write_watchdog_spec(plan, ctx, paths, replica)

    def _start_replica(
        self,
        plan: DeploymentPlan,
        ctx: DeploymentContext,
        paths: SwarmPaths,
        replica: int,
        gpus: HeldGpus,
    ) -> Part:
        _write_watchdog_spec(plan, ctx, paths, replica)
        env = {**ctx.shared_env, processes.TAG: ctx.tag}
        started = start_watchdog(paths, replica, gpus, ctx.interpreter, env)
        return _part("replica", replica, started)

    def probe(self, handle: ServingHandle) -> Observation:
        """See `ServingBackend.probe`."""
        reach = self.reach(handle.location)
        if reach is Reach.ELSEWHERE:
            return Observation(Phase.UNKNOWN, f"{handle.location} cannot be asked from here")
        running = set() if reach is Reach.OVER else self._running(handle)
        replicas = sum(part.kind == "replica" for part in running)
        if not running:
            return Observation(Phase.STOPPED, "none of its processes runs")
        if replicas == 0 and handle.least_replicas == 0:
            return Observation(Phase.READY, ASLEEP)
        if replicas == len(running):
            return Observation(Phase.FAILED, "the endpoint program has ended")
        if replicas == 0:
            return Observation(Phase.FAILED, "every replica has ended")
        run = quantity(replicas, "replica runs", "replicas run")
        return Observation(Phase.READY, run)

    def probe_parts(self, handle: ServingHandle) -> dict[str, Observation]:
        """See `ServingBackend.probe_parts`."""
        running = self._running(handle)
        kept = any(part.kind == "endpoint" for part in running)
        return {
            part.platform_id: Observation(Phase.READY, "runs")
            if part in running
            else Observation(Phase.STOPPED, _ended(part, kept=kept))
            for part in handle.parts
        }

    def _running(self, handle: ServingHandle) -> set[Part]:
        """The parts of which something runs: what was launched, or what follows it."""
        running = {part for part in handle.parts if _runs(part)}
        if len(running) == len(handle.parts) and handle.least_replicas is None:
            return running
        if handle.least_replicas is not None:  # its replicas come and go
            return running | {part for one in self.find(handle) for part in one.parts}
        found = {(part.kind, part.index) for one in self.find(handle) for part in one.parts}
        return running | {part for part in handle.parts if (part.kind, part.index) in found}

    def expiries(self, handle: ServingHandle) -> dict[str, datetime]:  # noqa: ARG002 - nothing expires
        """See `ServingBackend.expiries`."""
        return {}

    def lost(self, handle: ServingHandle) -> str | None:
        """See `ServingBackend.lost`: nobody starts an endpoint program of this machine again."""
        address = read_address(SwarmPaths(Path(handle.swarm_dir)))
        if address is not None and address.node != socket.gethostname():
            return None  # its processes cannot be seen from here
        endpoint = [part for part in handle.parts if part.kind == "endpoint"]
        if not endpoint or any(_runs(part) for part in endpoint):
            return None
        return "the endpoint program has ended"

    def find(self, handle: ServingHandle) -> list[ServingHandle]:
        """See `ServingBackend.find`. Parts are what was launched, not what they started."""
        found = processes.carrying(processes.TAG, handle.tag)
        serving = {process: env for process, env in found.items() if _kind(env) != "job"}
        if not serving:
            return []
        parts = []
        for process, environment in serving.items():
            kind, _, index = environment.get(processes.PART, "").partition("-")
            if kind in ("endpoint", "replica") and processes.leads_a_session(process):
                parts.append(_part(kind, int(index), process))
        parts.sort(key=lambda part: (part.kind, part.index))
        return [handle.model_copy(update={"parts": tuple(parts)})]

    def delete(self, handle: ServingHandle) -> None:
        """See `ServingBackend.delete`."""
        if self.reach(handle.location) is Reach.ELSEWHERE:
            raise PlatformUnavailable(
                f"Its processes are those of {handle.location} and not seen here.",
                hint="Run `domyn-swarm down` there.",
            )

        def tagged() -> set[ProcessId]:
            return set(processes.carrying(processes.TAG, handle.tag))

        # Noted while their leaders live: a router shows no tag.
        sessions = {process.pid for process in tagged() if processes.leads_a_session(process)}
        end_jobs_and_replicas(handle.tag, SwarmPaths(Path(handle.swarm_dir)))
        processes.end(lambda: _leaders(handle.tag, "endpoint"), grace_s=_ENDPOINT_GRACE_S)

        def rest() -> set[ProcessId]:
            return tagged() | set(processes.in_sessions(sessions))

        if not processes.end(rest, grace_s=1.0):
            left = ", ".join(str(process.pid) for process in rest())
            raise PlatformError(
                f"Processes of the swarm still run: {left}.",
                hint="They do not end on SIGKILL; see `ps`, then run `domyn-swarm down` again.",
            )


def _gpus_of(
    plan: DeploymentPlan, replicas: Iterable[int]
) -> contextlib.AbstractContextManager[Mapping[int, HeldGpus]]:
    """GPUs for these replicas, for as long as they run: their watchdogs get the locks.

    Raises:
        PlatformError: too few are free, as soon as it is entered.
    """
    return held_gpus(plan.layout.gpus_per_replica, replicas, plan.name)


def end_jobs_and_replicas(tag: str, paths: SwarmPaths) -> None:
    """End everything of a swarm but its endpoint: jobs first, so that they flush."""
    processes.end(lambda: _leaders(tag, "job"), grace_s=_JOB_GRACE_S)
    processes.end(lambda: _leaders(tag, "replica"), grace_s=_replica_grace_s(paths))


def _leaders(tag: str, kind: str) -> list[ProcessId]:
    found = processes.carrying(processes.TAG, tag)
    of_kind = [process for process, env in found.items() if _kind(env) == kind]
    return [process for process in of_kind if processes.leads_a_session(process)]


def _replica_grace_s(paths: SwarmPaths) -> float:
    """How long a watchdog may take: to drain, and to hand SIGTERM and SIGKILL on."""
    try:
        plan = DeploymentPlan.model_validate_json(paths.plan.read_text("utf-8"))
    except (OSError, ValueError):  # a crash before it was written
        return _REPLICA_MARGIN_S
    return 2 * plan.watchdog.kill_grace_seconds + _REPLICA_MARGIN_S


def _write_endpoint_spec(plan: DeploymentPlan, ctx: DeploymentContext, paths: SwarmPaths) -> None:
    spec = build_endpoint_spec(plan, ctx, paths, host=HOST)
    write_private(paths.endpoint_spec, spec.model_dump_json(indent=2))


def _write_watchdog_spec(
    plan: DeploymentPlan, ctx: DeploymentContext, paths: SwarmPaths, replica: int
) -> None:
    spec = build_watchdog_spec(plan, ctx, paths, replica, host=HOST)
    spec["orphaned_seconds"] = _ORPHANED_S
    write_private(paths.watchdog_spec(replica), json.dumps(spec, indent=2))


def _part(kind: str, index: int, process: ProcessId) -> Part:
    return Part.model_validate(
        {"kind": kind, "index": index, "platform_id": str(process.pid), "process": process}
    )


def _runs(part: Part) -> bool:
    return part.process is not None and processes.alive(part.process)


def _ended(part: Part, *, kept: bool) -> str:
    """In words; `kept`: the endpoint program starts watchdogs again."""
    if part.kind == "endpoint":
        return "its endpoint program has ended"
    return "its watchdog has ended" + (" (one that was killed starts again)" if kept else "")


def _kind(environment: dict[str, str]) -> str:
    if processes.JOB in environment:
        return "job"
    return environment.get(processes.PART, "").partition("-")[0] or "replica"
