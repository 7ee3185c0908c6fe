"""Whether a swarm serves: the platform, the watchdogs' reports and the endpoint, in one
observation.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from domyn_swarm import engines
from domyn_swarm.backends.checks import resolves
from domyn_swarm.backends.endpoint.view import CollectorView, EndpointAddress, read_address
from domyn_swarm.backends.job_end import read_tail
from domyn_swarm.backends.protocols import ASLEEP, ServingHandle
from domyn_swarm.backends.slurm.printed import end_by_slurm
from domyn_swarm.engines.engine_protocol import Diagnosis, diagnose
from domyn_swarm.errors import (
    LaunchError,
    NotReady,
    PlatformError,
    ReplicaFailed,
    SwarmError,
    quantity,
    words_of,
)
from domyn_swarm.model import ReplicaReport, ReplicaState
from domyn_swarm.probing import Observation, Phase, Probe, all_of, at_least, endpoint_probe
from domyn_swarm.swarm.factory import LiveSwarm
from domyn_swarm.swarm.swarm_folder import script_failure

_ENDS = (ReplicaState.EXITED, ReplicaState.RESTARTING)
_UNRESOLVED_S = 45.0


class _Unresolved(Observation):
    """The endpoint runs on a node whose name this machine cannot resolve."""


@dataclass(frozen=True)
class SwarmLook:
    """One observation of a swarm. Platform, collector and endpoint are asked once each, so that all
    values about the swarm come from the same answers.
    """

    together: Observation  # the swarm's state; UNKNOWN with `error`
    view: CollectorView | None  # None: the collector does not answer, and wrote none
    places: Mapping[int, Observation]  # the platform's state of each replica
    handle: ServingHandle  # with the present replicas of an elastic swarm
    address: EndpointAddress | None
    error: SwarmError | None = None  # the platform could not be asked for everything


def look_at(
    swarm: LiveSwarm, judged: Callable[[Observation], Observation] | None = None
) -> SwarmLook:
    """Observe a live swarm once. Values that could not be obtained are left out, and `error` says
    why. A scheduler's snapshot may be old: if it shows the swarm as waiting, or a part as lost that
    was replaced since, replicas and URL are more recent.

    A scheduler's look may be old: where it has the swarm wait, or has lost a part that was replaced
    since, it is behind what the replicas and the URL say.

    Args:
        swarm: of this host or cluster.
        judged: maps the endpoint's observation, for callers that keep earlier ones.
    """
    backend, handle = swarm.backend, swarm.handle
    view, places = None, dict[int, Observation]()
    try:
        platform = backend.probe(handle)
        view = backend.view(handle)
        handle = swarm.handle_now()
        places = _places(swarm, handle)
        address = backend.address(handle)
    except SwarmError as error:
        unknown = Observation(Phase.UNKNOWN, error.message)
        return SwarmLook(unknown, view, places, handle, read_address(swarm.paths), error)
    replicas, endpoint = _replicas(swarm, view, places), _endpoint(swarm, address)
    endpoint = endpoint if judged is None else judged(endpoint)
    behind = platform.phase in (Phase.QUEUED, Phase.FAILED)
    if behind and replicas.phase is endpoint.phase is Phase.READY:
        platform = Observation(Phase.READY)
    together = all_of(
        platform=lambda: platform, replicas=lambda: replicas, endpoint=lambda: endpoint
    )()
    return SwarmLook(together, view, places, handle, address)


def readiness(swarm: LiveSwarm) -> Probe:
    """Ready once the platform runs it, `min_ready` replicas report ready, and the URL answers. The
    probe raises `SwarmError` if the platform cannot be asked.

    While the platform cannot be asked the phase is UNKNOWN, with the reason: the swarm is not gone,
    and its waiters keep waiting. The probe raises any other `SwarmError`, which waiting does not
    change.
    """
    unresolved_since: list[float] = []

    def named(endpoint: Observation) -> Observation:
        """A name that does not resolve here now will not do so later: a minute is enough."""
        if not isinstance(endpoint, _Unresolved):
            unresolved_since.clear()
            return endpoint
        unresolved_since.append(endpoint.at)
        over = endpoint.at - unresolved_since[0] >= _UNRESOLVED_S
        return Observation(Phase.FAILED, endpoint.detail) if over else endpoint

    def probe() -> Observation:
        look = look_at(swarm, named)
        if look.error is not None and not isinstance(look.error, PlatformError):
            raise look.error
        return look.together

    return probe


def _replicas(
    swarm: LiveSwarm, view: CollectorView | None, places: Mapping[int, Observation]
) -> Observation:
    ended, reports = _ended(places), reports_of(view)
    probes: list[Probe] = [
        partial(_replica, view, reports.get(replica), replica, ended.get(replica))
        for replica in _wanted(swarm, view)
    ]
    if not probes:
        return Observation(Phase.READY, ASLEEP)
    seen = at_least(min(swarm.plan.min_ready, len(probes)), *probes)()
    wrong = ((index, not_ready_yet(report)) for index, report in sorted(reports.items()))
    first = next((f"replica {index}: {why}" for index, why in wrong if why), None)
    if first is None or seen.phase is not Phase.STARTING:
        return seen
    return replace(seen, detail=f"{seen.detail}; {first}")


def _wanted(swarm: LiveSwarm, view: CollectorView | None) -> Sequence[int]:
    """The replicas that should exist now."""
    if swarm.plan.elastic is None or view is None or view.asked_for is None:
        return range(swarm.plan.launched_replicas)
    return view.asked_for


def _places(swarm: LiveSwarm, handle: ServingHandle) -> dict[int, Observation]:
    """The platform's state of each replica: that of a running job, else of an ended one."""
    seen = swarm.backend.probe_parts(handle)
    places: dict[int, Observation] = {}
    for part in handle.parts:
        before = places.get(part.index)
        if part.kind == "replica" and (before is None or before.phase.terminal):
            places[part.index] = seen[part.platform_id]
    return places


def _ended(places: Mapping[int, Observation]) -> dict[int, str]:
    """The replicas that do not run and will not restart as things are, whether they reported or
    not, with the platform's state of them.
    """
    return {index: place.detail for index, place in places.items() if place.phase.terminal}


def _replica(
    view: CollectorView | None, report: ReplicaReport | None, replica: int, ended: str | None
) -> Observation:
    """`ended`: the platform's words about a replica that is over; None: it may still run."""
    if report is not None and _has_failed(report, ended=ended is not None):
        return Observation(Phase.FAILED, f"replica {replica}: {report.reason or report.state}")
    if view is not None and report is not None and _is_ready(view, report):
        return Observation(Phase.READY)  # its successor may run: a queue snapshot can be older
    if ended is not None:
        return Observation(Phase.FAILED, f"replica {replica}: {ended}")
    if view is None:
        return Observation(Phase.STARTING, "the collector does not answer yet")
    if report is None:
        return Observation(Phase.STARTING, f"replica {replica} has not reported yet")
    loading = report.loading and not is_stale(view, report)
    return Observation(Phase.STARTING, f"replica {replica} is {report.state}", loading=loading)


def not_ready_yet(report: ReplicaReport) -> str | None:
    """What a starting replica lacks to be ready, as its watchdog last observed."""
    status = report.http_status
    if report.reason or report.state is not ReplicaState.STARTING or status is None:
        return report.reason
    return f"its health path answered HTTP {status}" if status >= 400 else None


def _has_failed(report: ReplicaReport, *, ended: bool) -> bool:
    """A replica that ended on request, or asked for another node, has not failed as long as the
    platform has a place for it: it was requeued after a time limit or a lost node.
    """
    return report.state is ReplicaState.FAILED or (ended and report.state in _ENDS)


def _is_ready(view: CollectorView, report: ReplicaReport) -> bool:
    return report.state is ReplicaState.READY and not is_stale(view, report)


def reports_of(view: CollectorView | None) -> dict[int, ReplicaReport]:
    """The last report of each replica that has reported."""
    return {} if view is None else {report.replica: report for report in view.replicas}


def age_s(view: CollectorView, report: ReplicaReport) -> float:
    """The age of a report when the view was taken, in seconds of the collector's clock."""
    if report.reported_at is None:
        return 0.0
    return max(0.0, (view.taken_at - report.reported_at).total_seconds())


def is_stale(view: CollectorView, report: ReplicaReport) -> bool:
    """Whether a report is too old to count."""
    return age_s(view, report) > view.stale_after_s


def _endpoint(swarm: LiveSwarm, address: EndpointAddress | None) -> Observation:
    if address is None:
        return Observation(Phase.STARTING, "the endpoint has not reported its address yet")
    try:
        key = swarm.paths.api_key.read_text("utf-8").strip()
    except FileNotFoundError:
        return Observation(Phase.FAILED, f"{swarm.paths.api_key} is gone")
    except OSError as error:
        return Observation(Phase.UNKNOWN, words_of(error, swarm.paths.api_key))
    host = urlsplit(address.url).hostname or ""
    if address.collector_url is not None and not resolves(host):  # else a proxy may resolve it
        here = socket.gethostname()
        return _Unresolved(
            Phase.STARTING,
            f"this machine ({here}) cannot resolve {host}, the name of the endpoint's node: have "
            "the nodes' names in its DNS or /etc/hosts, or run this on a machine that knows them",
        )
    return endpoint_probe(
        address.url, key, use_proxy=address.collector_url is None, ca_file=address.ca_file
    )()


# -- causes of failure -----------------------------------------------------------------------


def launch_error(swarm: LiveSwarm, seen: Observation) -> LaunchError:
    """Why the swarm did not come up, from reports and logs."""
    with contextlib.suppress(PlatformError):
        swarm.backend.fetch_logs(swarm.handle, range(swarm.plan.layout.replicas))
    view, places = None, dict[int, Observation]()
    with contextlib.suppress(PlatformError):  # then what was seen last is all that is known
        view = swarm.backend.view(swarm.handle)
        places = _places(swarm, swarm.handle_now())
    ended = _ended(places)
    failed = [
        report
        for report in (view.replicas if view else ())
        if _has_failed(report, ended=report.replica in ended)
    ]
    if failed:
        return _replica_error(swarm, failed, len(_wanted(swarm, view)))
    if seen.phase.terminal:
        return _ended_unreported(swarm, seen, places)
    return NotReady(
        f"{swarm.record.name} was not ready in time: {seen.detail}.",
        hint=f"See the logs under {swarm.paths.root / 'logs'}, or raise wait_endpoint_s.",
    )


def _ended_unreported(
    swarm: LiveSwarm, seen: Observation, places: Mapping[int, Observation]
) -> LaunchError:
    """A program of ours ended without a report to the collector: its own log must show why."""
    if (found := script_failure(swarm.paths)) is not None:
        said, where = found
        return LaunchError(f"{swarm.record.name} did not come up: {said}.", hint=f"See {where}.")
    log = _last_log(swarm, places)
    text = "" if log is None else read_tail(log)
    tail = end_by_slurm(text) or next(reversed(text.strip().splitlines()), None)
    last = f" Its log ends with: {tail}" if tail else ""
    message = f"{swarm.record.name} did not come up: {seen.detail}.{last}"
    kind = ReplicaFailed if _ended(places) else LaunchError
    return kind(message, hint=f"See {log}." if log is not None and log.exists() else "")


def _last_log(swarm: LiveSwarm, places: Mapping[int, Observation]) -> Path | None:
    """The log of the part that ended first; None if all replicas only wait: then no log shows
    why.
    """
    ended = sorted(_ended(places))
    if not ended:
        waits = bool(places) and all(one.phase is Phase.QUEUED for one in places.values())
        return None if waits else swarm.paths.endpoint_log
    batch = swarm.paths.slurm_logs / f"replica-{ended[0]}.log"
    if end_by_slurm(read_tail(batch)):
        return batch
    return swarm.paths.watchdog_log(ended[0])


def _replica_error(swarm: LiveSwarm, failed: list[ReplicaReport], wanted: int) -> ReplicaFailed:
    first = failed[0]
    log = swarm.paths.engine_log(first.replica)
    found = diagnosis(swarm, first)
    counted = f"{len(failed)} of {quantity(wanted, 'replica')} failed"
    if found is None:
        cause = first.reason or "the engine ended"
        return ReplicaFailed(f"{counted}: {cause} (replica {first.replica}).", hint=f"See {log}.")
    return ReplicaFailed(
        f"{counted}: {found.cause} (replica {first.replica}: {found.line}).",
        hint=f"{found.hint} See {log}.",
    )


def diagnosis(swarm: LiveSwarm, report: ReplicaReport) -> Diagnosis | None:
    """The cause of a replica's end in its log. A watchdog has judged it, and knows which part of
    the log belongs to this end: where it named no cause, none is returned.
    """
    known = engines.get(swarm.plan.engine).failure_patterns
    if report.watchdog_pid is not None:
        known = [one for one in known if (report.reason or "").startswith(one.cause)]
    return diagnose(known, read_tail(swarm.paths.engine_log(report.replica)))
