"""A swarm as processes on this machine: the endpoint program and one watchdog per replica."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from typing_extensions import override

from domyn_swarm.backends.checks import Check, ok
from domyn_swarm.backends.endpoint.endpoint_spec import EndpointSpec
from domyn_swarm.backends.endpoint.own_endpoint import OwnEndpoint, build_endpoint_spec
from domyn_swarm.backends.endpoint.view import read_address
from domyn_swarm.backends.gpus import HeldGpus, held_gpus
from domyn_swarm.backends.local import processes
from domyn_swarm.backends.local.processes import HOST, OnThisHost
from domyn_swarm.backends.local.watchdogs import start_watchdog, turn_to_start
from domyn_swarm.backends.protocols import (
    ASLEEP,
    LaunchScripts,
    PartRecorder,
    PlatformPart,
    ServingBackend,
    ServingHandle,
    refuse_draining,
)
from domyn_swarm.backends.watchdog_spec import build_watchdog_spec, copy_watchdog
from domyn_swarm.errors import PlatformError, PlatformUnavailable, quantity
from domyn_swarm.model import ProcessId, Reach
from domyn_swarm.paths import SwarmPaths, private_dir, write_private
from domyn_swarm.planning.plan import DeploymentContext, DeploymentPlan
from domyn_swarm.probing import Observation, Phase

if TYPE_CHECKING:
    from domyn_swarm.backends.rehearsal import Rehearsal

_JOB_GRACE_S = 30.0
_REPLICA_MARGIN_S = 10.0
_ENDPOINT_GRACE_S = 10.0
_ORPHANED_S = 60.0  # after which replicas end without their endpoint, which is never restarted


class LocalServing(OnThisHost, OwnEndpoint, ServingBackend):
    """Endpoint and replicas as processes of this machine."""

    @override
    def launch(
        self,
        plan: DeploymentPlan,
        ctx: DeploymentContext,
        scripts: LaunchScripts,
        record: PartRecorder,
    ) -> ServingHandle:
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

    @override
    def scripts(self, plan: DeploymentPlan, ctx: DeploymentContext) -> LaunchScripts:
        return LaunchScripts({})

    @override
    def rehearse(self, plan: DeploymentPlan, scripts: LaunchScripts) -> tuple[Check, ...]:
        with _gpus_of(plan, range(plan.launched_replicas)):
            pass
        return (ok("rehearsal", "processes on this machine start at once"),)

    @override
    def checks(self, plan: DeploymentPlan) -> Iterator[Check]:
        from domyn_swarm.backends.local.local_site_checks import site_checks

        return site_checks(plan)

    @override
    def checks_on_node(
        self, plan: DeploymentPlan, ctx: DeploymentContext, wish: Rehearsal
    ) -> Iterator[Check]:
        """Runs the checks as a process on this machine."""
        from domyn_swarm.backends.local.local_site_checks import checks_here

        return checks_here(plan, ctx, wish)

    @override
    def scale(
        self,
        plan: DeploymentPlan,
        ctx: DeploymentContext,
        handle: ServingHandle,
        record: PartRecorder,
    ) -> None:
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
        """Start the replicas that do not run. Returns the watchdogs of surplus replicas."""
        paths = SwarmPaths(Path(handle.swarm_dir))
        wanted = plan.layout.replicas
        running = {
            part.index: part
            for current in self.find(handle)
            for part in current.parts
            if part.kind == "replica"
        }
        old_spec = paths.endpoint_spec.read_text("utf-8")
        before = EndpointSpec.model_validate_json(old_spec).replicas
        draining = [part for index, part in running.items() if before <= index < wanted]
        refuse_draining([part.platform_id for part in draining])
        started: list[PlatformPart] = []
        try:
            with _gpus_of(plan, sorted(set(range(wanted)) - running.keys())) as gpus:
                _write_endpoint_spec(plan, ctx, paths)
                for replica, held in gpus.items():
                    started.append(self._start_replica(plan, ctx, paths, replica, held))
                    record(started[-1])
        except BaseException:  # scaling starts all replicas or none
            processes.send([part.process for part in started if part.process], signal.SIGTERM)
            write_private(paths.endpoint_spec, old_spec)
            raise
        surplus = [part for index, part in running.items() if index >= wanted]
        return [part.process for part in surplus if part.process is not None]

    def _start_endpoint(self, ctx: DeploymentContext, paths: SwarmPaths) -> PlatformPart:
        argv = [ctx.interpreter, "-m", "domyn_swarm.backends.endpoint", str(paths.root), "local"]
        env = {**ctx.shared_env, processes.TAG: ctx.tag, processes.PART: "endpoint-0"}
        return _part("endpoint", 0, processes.spawn(argv, env, paths.endpoint_log))

    @staticmethod
    def _write_watchdog_specs(
        plan: DeploymentPlan, ctx: DeploymentContext, paths: SwarmPaths
    ) -> None:
        """Write the specs of the replicas that the endpoint program may start later."""
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
    ) -> PlatformPart:
        _write_watchdog_spec(plan, ctx, paths, replica)
        env = {**ctx.shared_env, processes.TAG: ctx.tag}
        started = start_watchdog(paths, replica, gpus, ctx.interpreter, env)
        return _part("replica", replica, started)

    @override
    def probe(self, handle: ServingHandle) -> Observation:
        reach = self.reach(handle.location)
        if reach is Reach.ELSEWHERE:
            return Observation(Phase.UNKNOWN, f"{handle.location} cannot be reached from here")
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

    @override
    def probe_parts(self, handle: ServingHandle) -> dict[str, Observation]:
        running = self._running(handle)
        supervised = any(part.kind == "endpoint" for part in running)
        return {
            part.platform_id: Observation(Phase.READY, "runs")
            if part in running
            else Observation(Phase.STOPPED, _ended(part, supervised=supervised))
            for part in handle.parts
        }

    def _running(self, handle: ServingHandle) -> set[PlatformPart]:
        """The parts that run, as launched, or as a successor with the same kind and index."""
        running = {part for part in handle.parts if _runs(part)}
        if len(running) == len(handle.parts) and handle.least_replicas is None:
            return running
        current = {part for swarm in self.find(handle) for part in swarm.parts}
        if handle.least_replicas is not None:  # replicas of an elastic swarm are not in the handle
            return running | current
        places = {(part.kind, part.index) for part in current}
        return running | {part for part in handle.parts if (part.kind, part.index) in places}

    @override
    def expiries(self, handle: ServingHandle) -> dict[str, datetime]:
        return {}

    @override
    def lost(self, handle: ServingHandle) -> str | None:
        """Lost once the endpoint program has ended: it is never restarted."""
        address = read_address(SwarmPaths(Path(handle.swarm_dir)))
        if address is not None and address.node != socket.gethostname():
            return None  # its processes are not visible from this host
        endpoint = [part for part in handle.parts if part.kind == "endpoint"]
        if not endpoint or any(_runs(part) for part in endpoint):
            return None
        return "the endpoint program has ended"

    @override
    def find(self, handle: ServingHandle) -> list[ServingHandle]:
        """Parts are launched processes, without their descendants."""
        tagged = processes.carrying(processes.TAG, handle.tag)
        serving = {process: env for process, env in tagged.items() if _kind(env) != "job"}
        if not serving:
            return []
        parts = []
        for process, environment in serving.items():
            kind, _, index = environment.get(processes.PART, "").partition("-")
            if kind in ("endpoint", "replica") and processes.leads_a_session(process):
                parts.append(_part(kind, int(index), process))
        parts.sort(key=lambda part: (part.kind, part.index))
        return [handle.model_copy(update={"parts": tuple(parts)})]

    @override
    def delete(self, handle: ServingHandle) -> None:
        if self.reach(handle.location) is Reach.ELSEWHERE:
            raise PlatformUnavailable(
                f"Its processes run on {handle.location} and are not visible here.",
                hint="Run `domyn-swarm down` there.",
            )

        def tagged() -> set[ProcessId]:
            return set(processes.carrying(processes.TAG, handle.tag))

        # Collected while the leaders run: a router, which shows no tag, is found by its session.
        sessions = {process.pid for process in tagged() if processes.leads_a_session(process)}
        end_jobs_and_replicas(handle.tag, SwarmPaths(Path(handle.swarm_dir)))
        processes.end(lambda: _leaders(handle.tag, "endpoint"), grace_s=_ENDPOINT_GRACE_S)

        def rest() -> set[ProcessId]:
            return tagged() | set(processes.in_sessions(sessions))

        if not processes.end(rest, grace_s=1.0):
            left = ", ".join(str(process.pid) for process in rest())
            raise PlatformError(
                f"Processes of the swarm still run: {left}.",
                hint="They did not end on SIGKILL. See `ps`, then run `domyn-swarm down` again.",
            )


def _gpus_of(
    plan: DeploymentPlan, replicas: Iterable[int]
) -> contextlib.AbstractContextManager[Mapping[int, HeldGpus]]:
    """A context that locks GPUs for these replicas. Their watchdogs inherit and keep the locks.

    Raises:
        PlatformError: when the context is entered, and too few GPUs are free.
    """
    return held_gpus(plan.layout.gpus_per_replica, replicas, plan.name)


def end_jobs_and_replicas(tag: str, paths: SwarmPaths) -> None:
    """End the jobs of a swarm, so that they write their results, then its replicas."""
    processes.end(lambda: _leaders(tag, "job"), grace_s=_JOB_GRACE_S)
    processes.end(lambda: _leaders(tag, "replica"), grace_s=_replica_grace_s(paths))


def _leaders(tag: str, kind: str) -> list[ProcessId]:
    tagged = processes.carrying(processes.TAG, tag)
    of_kind = [process for process, env in tagged.items() if _kind(env) == kind]
    return [process for process in of_kind if processes.leads_a_session(process)]


def _replica_grace_s(paths: SwarmPaths) -> float:
    """How long a watchdog may take to drain, and to end its engine with SIGTERM and SIGKILL."""
    try:
        plan = DeploymentPlan.model_validate_json(paths.plan.read_text("utf-8"))
    except (OSError, ValueError):  # `up` was killed before it wrote the plan
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


def _part(kind: str, index: int, process: ProcessId) -> PlatformPart:
    return PlatformPart.model_validate(
        {"kind": kind, "index": index, "platform_id": str(process.pid), "process": process}
    )


def _runs(part: PlatformPart) -> bool:
    return part.process is not None and processes.alive(part.process)


def _ended(part: PlatformPart, *, supervised: bool) -> str:
    """What has ended. If `supervised`, the endpoint program runs and restarts killed watchdogs."""
    if part.kind == "endpoint":
        return "its endpoint program has ended"
    note = " (a killed watchdog is started again)" if supervised else ""
    return f"its watchdog has ended{note}"


def _kind(environment: dict[str, str]) -> str:
    if processes.JOB in environment:
        return "job"
    return environment.get(processes.PART, "").partition("-")[0] or "replica"
