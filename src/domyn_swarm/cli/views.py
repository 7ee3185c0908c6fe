"""The output of the commands about swarms."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

from domyn_swarm.cli.job_views import failure_notes, print_jobs, rows_text, where_text
from domyn_swarm.cli.rendering import (
    Column,
    State,
    moment,
    print_checks,
    print_gap,
    print_note,
    print_pairs,
    print_record,
    print_table,
)
from domyn_swarm.cli.shared_options import Format
from domyn_swarm.cli.usage_command import usage_line
from domyn_swarm.swarm.snapshot import SwarmList

if TYPE_CHECKING:
    from domyn_swarm.planning.plan import DeploymentPlan
    from domyn_swarm.services.description import SwarmDescription
    from domyn_swarm.services.doctor import Examination
    from domyn_swarm.services.requests import DownResult, EndpointInfo, PlanReport, UpResult
    from domyn_swarm.swarm.snapshot import ReplicaSnapshot, SwarmSnapshot

SWARM_COLUMNS = (
    Column("name", whole=True),
    Column("phase"),
    Column("replicas"),
    Column("model", spare=1),
    Column("backend", spare=3),
    Column("endpoint", whole=True, spare=2),
    Column("since", spare=4),
)
_JOBS_SHOWN = 5  # of a swarm, and all that run


def show_plan(report: PlanReport, output: Format) -> None:
    """The launch that `up` would start."""
    if output is not Format.TABLE:
        print_record(report, output)
        return
    plan, layout = report.plan, report.plan.layout
    hours = "no time limit" if report.gpu_hours is None else f"{report.gpu_hours:g} GPU-hours"
    gpus = f"{report.gpus}, {layout.gpus_per_replica} per replica ({hours})"
    print_pairs(
        [
            ("name", plan.name),
            ("backend", plan.backend),
            ("engine", plan.engine),
            ("model", plan.model),
            ("replicas", _planned_replicas(plan)),
            ("GPUs" if plan.elastic is None else "GPUs, at most", gpus),
            ("nodes, at most", str(layout.nodes)),
            ("engine's command", shlex.join(report.engine_command)),
            ("engine ports from", str(plan.port_from)),
            ("waits at most", f"{plan.wait_endpoint_s:g} s"),
            ("folder", str(plan.home_directory / "swarms" / plan.name)),
            *(("the scheduler says", said) for said in report.test or ()),
        ]
    )
    for name, text in report.scripts.items():
        typer.echo(f"\n# {name}\n{text}")


def _planned_replicas(plan: DeploymentPlan) -> str:
    if plan.elastic is None:
        return f"{plan.layout.replicas} ({plan.min_ready} must answer)"
    bounds = f"{plan.elastic.least} to {plan.layout.replicas}, as many as there is work for"
    return f"{bounds} ({plan.min_ready} must answer)"


def show_examination(found: Examination, output: Format) -> None:
    """The results of `doctor`."""
    if output is not Format.TABLE:
        print_record(found, output)
        return
    print_checks((one.name, one.status, one.detail, one.fix or "") for one in found.checks)


def show_up(result: UpResult, output: Format) -> None:
    """A swarm that came up; as a table only its name, so that `$(domyn-swarm up …)` works."""
    if output is Format.TABLE:
        typer.echo(result.name)
    else:
        print_record(result, output)


def show_swarm(swarm: SwarmSnapshot, output: Format) -> None:
    """One swarm with its replicas and jobs."""
    if output is not Format.TABLE:
        print_record(swarm, output)
        return
    ready = f"{swarm.replicas_ready} of {swarm.replicas_wanted} ready, {swarm.min_ready} needed"
    if swarm.replicas_max is not None:
        ready += f"; elastic: {swarm.replicas_min} to {swarm.replicas_max}"
    print_pairs(
        [
            ("swarm", swarm.name),
            ("phase", _phase(swarm) + (f": {swarm.detail}" if swarm.detail else "")),
            *([("where", where_text(swarm.whereabouts))] if swarm.whereabouts else []),
            ("endpoint", swarm.endpoint or "-"),
            ("model", f"{swarm.model} ({swarm.engine} on {swarm.backend})"),
            ("replicas", ready),
            *([("expires", moment(swarm.expires_at))] if swarm.expires_at else []),
            *([("used", usage_line(swarm.usage))] if swarm.usage else []),
            *(
                (
                    "left out",
                    f"{one.node} until {moment(one.until)} (replica {one.replica}: {one.reason})",
                )
                for one in swarm.left_out
            ),
        ]
    )
    if swarm.replicas:
        print_gap()
        _print_replicas(swarm.replicas)
    if swarm.jobs:
        print_gap()
        _print_last_jobs(swarm)


def _print_last_jobs(swarm: SwarmSnapshot) -> None:
    """Running jobs and the last ones that ended, the newest last."""
    ended = [job.job_id for job in swarm.jobs if job.status.final]
    older = set(ended[: max(0, len(ended) - _JOBS_SHOWN)])
    shown = [job for job in swarm.jobs if job.job_id not in older]
    print_jobs(shown)
    for note in failure_notes(shown):
        print_note(note)
    if older:
        print_note(f"jobs before these: {len(older)}; domyn-swarm job list --name {swarm.name}")


def show_swarms(swarms: Sequence[SwarmSnapshot], output: Format) -> None:
    """All swarms, a line each."""
    if output is not Format.TABLE:
        print_record(SwarmList(swarms=tuple(swarms)), output)
        return
    if swarms:
        print_table(SWARM_COLUMNS, map(swarm_cells, swarms))
    else:
        print_note("No swarm is live: domyn-swarm up -c FILE brings one up.")


def swarm_cells(swarm: SwarmSnapshot) -> tuple[str, ...]:
    """One swarm as a line under `SWARM_COLUMNS`."""
    ready = "?" if swarm.observed == "not_probed" else swarm.replicas_ready
    return (
        swarm.name,
        State(_phase(swarm)),
        f"{ready}/{swarm.replicas_wanted}",
        swarm.model,
        _backend_text(swarm),
        swarm.endpoint or "-",
        moment(swarm.created_at),
    )


def swarm_line(swarm: SwarmSnapshot) -> str:
    """One swarm in a line."""
    states = ", ".join(
        f"{one.index} {one.state.value}{' (stale)' if one.stale else ''}" for one in swarm.replicas
    )
    jobs = "".join(
        f"; {job.job_id} {job.status.value} {rows_text(job, speed=False)}"
        for job in swarm.jobs
        if not job.status.final
    )
    ready = f"{swarm.replicas_ready} of {swarm.replicas_wanted} ready"
    where = swarm.whereabouts
    elsewhere = f" on the {where.kind} {where.name}" if where and where.elsewhere else ""
    phase = f"{_phase(swarm)}{elsewhere}"
    return f"{swarm.name} {phase}: {ready}" + (f" ({states})" if states else "") + jobs


def show_description(found: SwarmDescription, output: Format) -> None:
    """Everything about one swarm."""
    if output is not Format.TABLE:
        print_record(found, output)
        return
    show_swarm(found.swarm, Format.TABLE)
    layout = found.plan.layout
    print_gap()
    print_pairs(
        [
            ("layout", f"replicas: {layout.replicas}, GPUs of each: {layout.gpus_per_replica}"),
            ("nodes, at most", str(layout.nodes)),
            ("engine's command", shlex.join(found.engine_command)),
            ("tag", found.tag),
            *((name.replace("_", " "), str(path)) for name, path in found.paths.items()),
        ]
    )
    if found.parts:
        print_gap()
        print_table(
            ("part", "id", "state", "ends"),
            [
                (
                    one.kind if one.kind == "endpoint" else f"{one.kind} {one.index}",
                    one.platform_id,
                    State(one.observed) if not one.detail else f"{one.observed}: {one.detail}",
                    moment(one.expires_at) if one.expires_at else "-",
                )
                for one in found.parts
            ],
        )
    print_gap()
    print_pairs(("asked: " + name, value) for name, value in _flat(found.config))


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """A nested configuration as dotted keys, without unset ones."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        elif value not in (None, "", []):
            yield f"{prefix}{name}", str(value)


def show_down(results: Sequence[DownResult], output: Format) -> None:
    """The result of `down`, a line for each swarm."""
    if output is not Format.TABLE:
        from domyn_swarm.services.requests import DownReport

        print_record(DownReport(swarms=tuple(results)), output)
        return
    for result in results:
        became = "stopped" if result.stopped else "forgotten" if result.forgotten else "NOT stopped"
        typer.echo(f"{result.name} {became}")


def show_endpoint(info: EndpointInfo, output: Format) -> None:
    """How to reach a swarm; the key stays in its file."""
    if output is not Format.TABLE:
        print_record(info, output)
        return
    curl = (
        f'curl -H "Authorization: Bearer $(cat {info.key_file})" {info.url}/v1/chat/completions '
        "-H 'Content-Type: application/json' -d "
        f'\'{{"model": "{info.model}", "messages": [{{"role": "user", "content": "Hello"}}]}}\''
    )
    print_pairs(
        [
            ("base URL", f"{info.url}/v1"),
            ("model", info.model),
            ("key file", str(info.key_file)),
            ("metrics", info.metrics_url or "-"),
            ("metrics' key file", str(info.metrics_key_file or "-")),
        ]
    )
    typer.echo(f"\n{curl}")


def _phase(swarm: SwarmSnapshot) -> str:
    """The observed phase, if it was observed; else the record's."""
    unseen = swarm.observed in ("not_probed", "unknown", "elsewhere")
    if unseen or swarm.phase.value in ("failed", "stopping"):
        return swarm.phase.value
    return swarm.observed


def _running(one: ReplicaSnapshot) -> str:
    if one.requests_running is None:
        return "-"
    old = one.old_figures_s
    return f"{one.requests_running:.0f}" + ("" if old is None else f" ({old:.0f} s ago)")


def _backend_text(swarm: SwarmSnapshot) -> str:
    """Its platform, and if it is elsewhere also where, and the time of the shown values."""
    where = swarm.whereabouts
    if where is None or not where.elsewhere:
        return swarm.backend
    as_of = f", as of {moment(where.known_at)}" if where.known_at else ""
    return f"{swarm.backend} on the {where.kind} {where.name}{as_of}"


def _print_replicas(replicas: Iterable[ReplicaSnapshot]) -> None:
    print_table(
        ("replica", "state", Column("http", spare=2), "last seen", "restarts", "running", "why"),
        [
            (
                str(one.index),
                State(f"{one.state.value} (stale)" if one.stale else one.state.value),
                "-" if one.http_status is None else str(one.http_status),
                "never" if one.last_seen_s is None else f"{one.last_seen_s:.0f} s ago",
                str(one.restarts),
                _running(one),
                one.reason or "",
            )
            for one in replicas
        ],
    )
