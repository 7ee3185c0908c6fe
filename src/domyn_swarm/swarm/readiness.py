"""Is a swarm serving? The platform, the watchdogs' reports and the endpoint, in one probe."""

from __future__ import annotations

import contextlib
from functools import partial

from domyn_swarm import engines
from domyn_swarm.backends.base import read_tail
from domyn_swarm.backends.endpoint.view import CollectorView
from domyn_swarm.engines.base import Diagnosis, diagnose
from domyn_swarm.errors import LaunchError, NotReady, PlatformError, ReplicaFailed
from domyn_swarm.model import ReplicaReport, ReplicaState
from domyn_swarm.probing import Observation, Phase, Probe, all_of, at_least, endpoint_probe
from domyn_swarm.swarm.factory import LiveSwarm
from domyn_swarm.swarm.script_failure import script_failure


def readiness(swarm: LiveSwarm) -> Probe:
    """Ready once the platform runs it, `min_ready` replicas report ready, and the URL answers.

    A scheduler's look may be old: where it has the swarm wait, or has lost a part that was replaced
    since, it is behind what the replicas and the URL say.
    """

    def probe() -> Observation:
        platform = swarm.backend.probe(swarm.handle)
        replicas, endpoint = _replicas(swarm), _endpoint(swarm)
        behind = platform.phase in (Phase.QUEUED, Phase.FAILED)
        if behind and replicas.phase is endpoint.phase is Phase.READY:
            platform = Observation(Phase.READY)
        return all_of(
            platform=lambda: platform, replicas=lambda: replicas, endpoint=lambda: endpoint
        )()

    return probe


def _replicas(swarm: LiveSwarm) -> Observation:
    view = swarm.backend.view(swarm.handle)
    ended, reports = ended_replicas(swarm), reports_of(view)
    probes: list[Probe] = [
        partial(_replica, view, reports.get(replica), replica, replica in ended)
        for replica in range(swarm.plan.layout.replicas)
    ]
    return at_least(swarm.plan.min_ready, *probes)()


def ended_replicas(swarm: LiveSwarm) -> frozenset[int]:
    """The replicas that the platform started and that do not run any more, reported or not."""
    seen = swarm.backend.probe_parts(swarm.handle)
    known: set[int] = set()
    going: set[int] = set()
    for part in swarm.handle.parts:
        if part.kind == "replica":
            known.add(part.index)
            if not seen[part.platform_id].phase.terminal:
                going.add(part.index)
    return frozenset(known - going)


def _replica(
    view: CollectorView | None, report: ReplicaReport | None, replica: int, ended: bool
) -> Observation:
    if report is not None and _has_failed(report, ended=ended):
        return Observation(Phase.FAILED, f"replica {replica}: {report.reason or report.state}")
    if view is not None and report is not None and _is_ready(view, report):
        return Observation(Phase.READY)  # its successor may be: a look at the queue can be older
    if ended:
        return Observation(Phase.FAILED, f"replica {replica}: its watchdog has ended")
    if view is None:
        return Observation(Phase.STARTING, "the collector does not answer yet")
    if report is None:
        return Observation(Phase.STARTING, f"replica {replica} has not reported yet")
    return Observation(Phase.STARTING, f"replica {replica} is {report.state}")


def _has_failed(report: ReplicaReport, *, ended: bool) -> bool:
    """One that ended as asked has not, as long as the platform has a place for it: a time limit or
    a lost node sent it back into the queue.
    """
    return report.state is ReplicaState.FAILED or (report.state is ReplicaState.EXITED and ended)


def _is_ready(view: CollectorView, report: ReplicaReport) -> bool:
    return report.state is ReplicaState.READY and not is_stale(view, report)


def reports_of(view: CollectorView | None) -> dict[int, ReplicaReport]:
    """The last report of each replica of which there was any."""
    return {} if view is None else {report.replica: report for report in view.replicas}


def age_s(view: CollectorView, report: ReplicaReport) -> float:
    """How old a report was when the view was taken, by the collector's own clock."""
    if report.reported_at is None:
        return 0.0
    return max(0.0, (view.taken_at - report.reported_at).total_seconds())


def is_stale(view: CollectorView, report: ReplicaReport) -> bool:
    """Whether a report is too old to be believed."""
    return age_s(view, report) > view.stale_after_s


def _endpoint(swarm: LiveSwarm) -> Observation:
    address = swarm.backend.address(swarm.handle)
    if address is None:
        return Observation(Phase.STARTING, "the endpoint has not said where it listens yet")
    try:
        key = swarm.paths.api_key.read_text("utf-8").strip()
    except FileNotFoundError:
        return Observation(Phase.FAILED, f"{swarm.paths.api_key} is gone")
    return endpoint_probe(
        address.url, key, use_proxy=address.collector_url is None, ca_file=address.ca_file
    )()


# -- what went wrong ----------------------------------------------------------------------------


def launch_error(swarm: LiveSwarm, seen: Observation) -> LaunchError:
    """Why the swarm did not come up, from reports and logs."""
    with contextlib.suppress(PlatformError):
        swarm.backend.fetch_logs(swarm.handle, range(swarm.plan.layout.replicas))
    view, ended = swarm.backend.view(swarm.handle), ended_replicas(swarm)
    failed = [
        report
        for report in (view.replicas if view else ())
        if _has_failed(report, ended=report.replica in ended)
    ]
    if failed:
        return _replica_error(swarm, failed)
    if seen.phase.terminal:
        return _ended_unreported(swarm, seen)
    return NotReady(
        f"{swarm.record.name} was not ready in time: {seen.detail}.",
        hint=f"See the logs under {swarm.paths.root / 'logs'}, or raise wait_endpoint_s.",
    )


def _ended_unreported(swarm: LiveSwarm, seen: Observation) -> LaunchError:
    """A program of ours ended without a word to the collector: its own log must tell."""
    if (found := script_failure(swarm.paths)) is not None:
        said, log = found
        return LaunchError(f"{swarm.record.name} did not come up: {said}.", hint=f"See {log}.")
    ended = sorted(ended_replicas(swarm))
    log = swarm.paths.watchdog_log(ended[0]) if ended else swarm.paths.endpoint_log
    if ended:
        batch = swarm.paths.slurm_logs / f"replica-{ended[0]}.log"
        log = batch if "slurmstepd" in read_tail(batch) else log  # Slurm killed it, and says why
    tail = read_tail(log).strip().splitlines()
    last = f" Its log ends with: {tail[-1]}" if tail else ""
    message = f"{swarm.record.name} did not come up: {seen.detail}.{last}"
    kind = ReplicaFailed if ended else LaunchError
    return kind(message, hint=f"See {log}.")


def _replica_error(swarm: LiveSwarm, failed: list[ReplicaReport]) -> ReplicaFailed:
    first = failed[0]
    log = swarm.paths.engine_log(first.replica)
    found = diagnosis(swarm, first.replica)
    counted = f"{len(failed)} of {swarm.plan.layout.replicas} replicas failed"
    if found is None:
        cause = first.reason or "the engine ended"
        return ReplicaFailed(f"{counted}: {cause} (replica {first.replica}).", hint=f"See {log}.")
    return ReplicaFailed(
        f"{counted}: {found.cause} (replica {first.replica}: {found.line}).",
        hint=f"{found.hint} See {log}.",
    )


def diagnosis(swarm: LiveSwarm, replica: int) -> Diagnosis | None:
    """What a replica's log says of its end."""
    engine = engines.get(swarm.plan.engine)
    return diagnose(engine.failure_patterns, read_tail(swarm.paths.engine_log(replica)))
