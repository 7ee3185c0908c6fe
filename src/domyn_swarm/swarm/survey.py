"""Takes snapshots: asks the platform, the collector and the jobs' own files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from shlex import quote
from typing import Any, TypeVar, cast

from domyn_swarm.backends.endpoint.elastic_state import read_state
from domyn_swarm.backends.endpoint.view import (
    CollectorView,
    EndpointAddress,
    last_view,
    read_address,
)
from domyn_swarm.backends.left_out import LeftOut, left_out
from domyn_swarm.backends.platforms import compute_backend
from domyn_swarm.backends.protocols import ServingHandle
from domyn_swarm.backends.slurm.job_runs import JobRuns
from domyn_swarm.errors import PlatformError, PlatformUnavailable, StateError
from domyn_swarm.jobs.worker_spec import JobResult
from domyn_swarm.model import (
    JobFigures,
    JobHandle,
    JobProgress,
    JobStatus,
    ReplicaState,
    SwarmPhase,
    time_left_fields,
    utc_now,
)
from domyn_swarm.paths import JobPaths
from domyn_swarm.probing import Observation, Phase
from domyn_swarm.state import JobRecord, SwarmRecord
from domyn_swarm.swarm.factory import LiveSwarm, rehydrate
from domyn_swarm.swarm.job_ends import spec_of, why_it_ended, why_it_waits
from domyn_swarm.swarm.readiness import SwarmLook, look_at, reports_of
from domyn_swarm.swarm.reconcile import why_lost
from domyn_swarm.swarm.snapshot import (
    JobSnapshot,
    Observed,
    ReplicaSnapshot,
    SwarmSnapshot,
    placed,
    reported,
)
from domyn_swarm.swarm.whereabouts import is_elsewhere, is_here, whereabouts

_T = TypeVar("_T", JobProgress, JobResult)


def snapshot_of(record: SwarmRecord, jobs: Sequence[JobSnapshot] = ()) -> SwarmSnapshot:
    """A swarm by its record, without any query."""
    swarm = rehydrate(record)
    address = read_address(swarm.paths) if record.phase.live else None
    unknown = Observation(Phase.UNKNOWN)
    return _snapshot(swarm, unknown, (), jobs, probed=False, address=address)


def jobs_of(record: SwarmRecord, jobs: Sequence[JobRecord]) -> list[JobRecord]:
    """The jobs of this swarm among those of its name, without those of an earlier swarm of the name
    that has left no running job behind.
    """
    return [job for job in jobs if job.submitted_at >= record.created_at or not job.status.final]


def take_snapshot(
    swarm: LiveSwarm, jobs: Sequence[JobSnapshot] = (), *, look: SwarmLook | None = None
) -> SwarmSnapshot:
    """The present state of the swarm. `look`: an observation that was just made; else one is made
    here.
    """
    if not swarm.record.phase.live:
        seen = Observation(Phase.STOPPED, swarm.record.detail)
        return _snapshot(swarm, seen, (), jobs)
    if is_elsewhere(swarm.record):
        return _last_known(swarm, jobs)
    look, name = look or look_at(swarm), swarm.record.name
    seen, lost = look.together, None
    if seen.phase is not Phase.READY and (lost := why_lost(swarm)) is not None:
        file = quote(str(swarm.paths.config))
        remedy = f"`domyn-swarm down {name} && domyn-swarm up -c {file}` starts it anew"
        seen = Observation(Phase.FAILED, f"{lost}; {remedy}")
    reports, ends = reports_of(look.view), _expiries(swarm, look.handle)
    anew = f"`domyn-swarm scale {name} {swarm.plan.layout.replicas}` starts it again"
    if swarm.plan.elastic is not None:
        anew = "another one starts when there is work for it"
    replicas = []
    for index in _shown(swarm, look.view, look.places):
        one = reported(look.view, reports.get(index), index, unheard=lost is not None)
        if lost is None:
            one = placed(one, look.places.get(index), anew)
        replicas.append(one.model_copy(update={"expires_at": ends.get(index)}))
    address = look.address if lost is None else None
    return _snapshot(swarm, seen, tuple(replicas), jobs, address=address, view=look.view)


def _shown(
    swarm: LiveSwarm, view: CollectorView | None, places: Mapping[int, Observation]
) -> Sequence[int]:
    """The replicas that are shown: of an elastic swarm the wanted ones, and those that have not
    ended.
    """
    if swarm.plan.elastic is None:
        return range(swarm.plan.layout.replicas)
    asked_for = (view.asked_for or ()) if view is not None else ()
    there = {one for one, place in places.items() if not place.phase.terminal}
    return sorted({*asked_for, *reports_of(view), *there})


def _last_known(swarm: LiveSwarm, jobs: Sequence[JobSnapshot]) -> SwarmSnapshot:
    """The last known state from its record and its files. Nothing is queried: an address in the
    files is in another host's network, where a key must not be sent.
    """
    view = last_view(swarm.paths)
    view = view if view is not None and view.tag == swarm.record.tag else None
    reports = reports_of(view)
    replicas = tuple(reported(view, reports.get(index), index) for index in _shown(swarm, view, {}))
    known_at = swarm.record.updated_at if view is None else view.taken_at
    unknown, address = Observation(Phase.UNKNOWN), read_address(swarm.paths)
    found = _snapshot(swarm, unknown, replicas, jobs, address=address, view=view)
    where = whereabouts(swarm.record, known_at)
    detail = "it cannot be asked from here"
    changed = {"observed": "elsewhere", "detail": detail, "whereabouts": where}
    return found.model_copy(update=changed)


def _expiries(swarm: LiveSwarm, handle: ServingHandle) -> dict[int, datetime]:
    """When replicas end by their time limits, by index."""
    try:
        ends = swarm.backend.expiries(handle)
    except PlatformError:
        return {}
    return {
        part.index: ends[part.platform_id]
        for part in handle.parts
        if part.kind == "replica" and part.platform_id in ends
    }


def _snapshot(
    swarm: LiveSwarm,
    seen: Observation,
    replicas: tuple[ReplicaSnapshot, ...],
    jobs: Sequence[JobSnapshot],
    *,
    probed: bool = True,
    address: EndpointAddress | None = None,
    view: CollectorView | None = None,
) -> SwarmSnapshot:
    record, plan = swarm.record, swarm.plan
    elastic, most = plan.elastic, plan.layout.replicas
    wanted = most
    if elastic is not None:
        wanted = elastic.least if view is None or view.asked_for is None else len(view.asked_for)
    return SwarmSnapshot(
        name=record.name,
        phase=record.phase,
        observed=cast("Observed", seen.phase.name.lower()) if probed else "not_probed",
        detail=_with_trouble(swarm, _detail(record, seen), replicas, wanted)
        if probed
        else _detail(record, seen),
        whereabouts=whereabouts(record, record.updated_at, ask=probed),
        backend=record.backend,
        engine=plan.engine,
        model=plan.model,
        endpoint=None if address is None else address.url,
        replicas_wanted=wanted,
        replicas_min=None if elastic is None else elastic.least,
        replicas_max=None if elastic is None else most,
        asleep=elastic is not None and seen.phase is Phase.READY and wanted == 0,
        min_ready=plan.min_ready,
        replicas=replicas,
        jobs=tuple(jobs),
        left_out=_left_out(swarm) if probed and record.phase.live else (),
        expires_at=max((one.expires_at for one in replicas if one.expires_at), default=None),
        swarm_dir=record.swarm_dir,
        created_at=record.created_at,
    )


def _with_trouble(
    swarm: LiveSwarm, detail: str, replicas: Sequence[ReplicaSnapshot], wanted: int
) -> str:
    """The detail with the reason why an elastic swarm has no replica that serves, or cannot start
    those it wants.
    """
    if not swarm.record.phase.live or swarm.plan.elastic is None:
        return detail
    failed = [one for one in replicas if one.state == ReplicaState.FAILED]
    if wanted and len(failed) >= wanted:
        return f"its replicas failed: {failed[0].reason or 'the cause is not known'}"
    state = read_state(swarm.paths, swarm.record.tag)
    if state is None or not state.trouble:
        return detail
    return f"{detail}; no replica can be started: {state.trouble}"


def _left_out(swarm: LiveSwarm) -> tuple[LeftOut, ...]:
    return tuple(one for one in left_out(swarm.paths) if one.until > utc_now())


def _detail(record: SwarmRecord, seen: Observation) -> str:
    """Of a swarm that `down` could not stop, that error; else the observation."""
    if record.phase is SwarmPhase.STOPPING and record.detail:
        return record.detail
    return seen.detail or record.detail


def asked_snapshots(records: Sequence[JobRecord]) -> list[JobSnapshot]:
    """Jobs whose platforms have just been asked, with the reasons of those that wait."""
    waiting: dict[str, list[JobHandle]] = {}
    for one in records:
        if one.status is JobStatus.PENDING and one.handle is not None and is_here(one):
            waiting.setdefault(one.platform, []).append(one.handle)
    why: dict[str, str] = {}
    for platform, handles in waiting.items():
        why |= compute_backend(platform).why_waiting(handles)
    return [job_snapshot(one, asked=True, waits=why.get(one.job_id)) for one in records]


def job_snapshot(
    record: JobRecord, *, asked: bool = False, waits: str | None = None
) -> JobSnapshot:
    """A job from its record and its own files; its status is the record's. `asked`: whether its
    platform was asked, so that it may be asked for its own name, too; `waits`: the platform's
    reason why it has not started.
    """
    paths = JobPaths(Path(record.job_dir))
    progress = _read(paths.progress, JobProgress)
    result = _read(paths.result, JobResult)
    message = progress.message if progress else waits
    runs = None
    try:
        if record.status.final:
            message = why_it_ended(record, result)
        runs = JobRuns.read(paths)
        if runs is not None and record.status is JobStatus.PENDING:
            message = why_it_waits(record, waits)
    except PlatformUnavailable as error:  # one of its files cannot be read
        message = error.message
    live = record.status is JobStatus.RUNNING
    known_at = progress.updated_at if progress else record.submitted_at
    age_s = max(0.0, (utc_now() - known_at).total_seconds()) if progress and live else None
    figures: dict[str, Any] = {}
    if progress:
        figures = {name: getattr(progress, name) for name in JobFigures.field_names()}
        figures |= {} if live else time_left_fields(None)  # an ended job has none left
    return JobSnapshot(
        job_id=record.job_id,
        external_id=record.external_id,
        name=record.name,
        swarm=record.swarm,
        status=record.status,
        whereabouts=whereabouts(record, known_at, ask=asked),
        **figures,
        figures_age_s=age_s,
        input=record.input,
        output=record.output,
        runs=None if runs is None else runs.number,
        began_at=None if runs is None else runs.first_began,
        account=result.account if result else None,
        message=message,
        remarks=result.remarks if result else (),
        exit_code=record.exit_code,
        submitted_at=record.submitted_at,
        ended_at=record.ended_at,
        log_path=str(paths.log),
    )


def with_what_it_asks(seen: JobSnapshot, record: JobRecord) -> JobSnapshot:
    """The job with its model, class, prompt and parameters, as far as its files exist."""
    from domyn_swarm.batch.output.manifest import without_secrets

    try:
        spec = spec_of(record)
    except StateError:  # a script, or its files were removed
        return seen
    parameters = without_secrets(spec.job_kwargs)
    texts = {name: parameters.pop(name, None) for name in ("prompt", "system")}
    asked = {name: text if isinstance(text, str) else None for name, text in texts.items()}
    changes: dict[str, Any] = {
        "model": spec.model,
        "job_class": spec.job,
        **asked,
        "parameters": parameters,
        "retry_parameters": without_secrets(spec.override) or None,
        "max_gpu_hours": spec.resources.max_gpu_hours,
    }
    return seen.model_copy(update=changes)


def _read(path: Path, kind: type[_T]) -> _T | None:
    try:
        return kind.model_validate_json(path.read_text("utf-8"))
    except (FileNotFoundError, ValueError):  # not written yet, or by another version
        return None
