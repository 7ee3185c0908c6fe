"""The tables of the live view: converts snapshots to cells of text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Protocol

from typing_extensions import override

from domyn_swarm.errors import quantity
from domyn_swarm.model import FailureGroup, ReplyVerdict, clock_time
from domyn_swarm.services.jobs import JobService
from domyn_swarm.services.merged_logs import swarm_logs
from domyn_swarm.services.requests import LogRequest
from domyn_swarm.services.swarms import SwarmService
from domyn_swarm.swarm.snapshot import JobSnapshot, ReplicaSnapshot, SwarmSnapshot

_LOG_LINES = 500


class Source(Protocol):
    """The operations on one swarm that the view needs. They block: call them on threads."""

    def snapshot(self) -> SwarmSnapshot:
        """The present state of the swarm.

        Raises:
            SwarmError: the state cannot be read.
        """

    def failures(self, job_id: str) -> tuple[FailureGroup, ...]:
        """A job's failed rows by signature, most frequent first.

        Raises:
            SwarmError: the job's files cannot be read.
        """

    def log(self, replica: int | None) -> list[str]:
        """The last lines of a replica's log, or of the endpoint's.

        Raises:
            SwarmError: there is no log.
        """

    def scale(self, replicas: int) -> None:
        """Change the number of replicas.

        Raises:
            SwarmError: the swarm cannot be scaled.
        """

    def cancel(self, job_id: str) -> None:
        """Stop one job.

        Raises:
            SwarmError: the job still runs.
        """


class Services(Source):
    """A `Source` of the swarm named `name`, through the services."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._swarms = SwarmService()
        self._jobs = JobService()

    @override
    def snapshot(self) -> SwarmSnapshot:
        return self._swarms.status(self._name)

    @override
    def failures(self, job_id: str) -> tuple[FailureGroup, ...]:
        return self._jobs.failures(job_id).groups

    @override
    def log(self, replica: int | None) -> list[str]:
        request = LogRequest(
            name=self._name,
            source="endpoint" if replica is None else "replica",
            replica=replica,
            last_lines=_LOG_LINES,
        )
        return list(swarm_logs(request))

    @override
    def scale(self, replicas: int) -> None:
        self._swarms.scale(self._name, replicas)

    @override
    def cancel(self, job_id: str) -> None:
        self._jobs.cancel(job_id)


REPLICA_COLUMNS = ("replica", "state", "run", "wait", "tok/s", "KV", "restarts", "node, cause")
SWARM_COLUMNS = ("swarm", "state", "replicas", "run", "wait", "tok/s", "model", "on", "cause, end")
JOB_COLUMNS = ("job", "status", "rows", "failed", "rows/s", "left", "tokens", "answers")
_NONE = "-"
_MESSAGE_CHARACTERS = 200


def summary(swarm: SwarmSnapshot, now: datetime) -> list[str]:
    """The lines above the tables: phase, endpoint, model, and load."""
    serving = [replica for replica in swarm.replicas if replica.serving]
    running, waiting, tokens_per_s = _busy(serving)
    busy = [
        f"{swarm.replicas_ready} of {quantity(swarm.replicas_wanted, 'replica')} ready",
        f"{running} running",
        f"{waiting} waiting",
        f"{tokens_per_s} tokens/s",
    ]
    if (age_s := max((replica.old_figures_s or 0.0 for replica in serving), default=0.0)) > 0:
        busy.append(f"as of up to {age_s:.0f} s ago")
    if swarm.expires_at is not None:
        busy.append(f"ends in {clock_time((swarm.expires_at - now).total_seconds())}")
    phase = _phase(swarm)
    lines = [
        f"{phase}  {swarm.endpoint or 'no endpoint'}",
        f"{swarm.model} ({swarm.engine} on {swarm.backend}{_where(swarm, now)})",
        ", ".join(busy),
    ]
    return [*lines, swarm.detail] if swarm.detail and phase != "ready" else lines


def swarm_row(swarm: SwarmSnapshot, now: datetime) -> tuple[str, ...]:
    """A row of the table of swarms: the cells of `SWARM_COLUMNS`."""
    phase = _phase(swarm)
    ends_s = None if swarm.expires_at is None else (swarm.expires_at - now).total_seconds()
    rest = [
        *([swarm.detail] if swarm.detail and phase != "ready" else []),
        *([] if ends_s is None else [f"ends in {clock_time(ends_s)}"]),
    ]
    return (
        swarm.name,
        phase,
        f"{swarm.replicas_ready}/{swarm.replicas_wanted}",
        *_busy([replica for replica in swarm.replicas if replica.serving]),
        swarm.model,
        swarm.backend + _where(swarm, now),
        ", ".join(rest),
    )


def _phase(swarm: SwarmSnapshot) -> str:
    """The observed phase; the recorded phase if the swarm could not be probed."""
    is_unknown = swarm.observed in ("unknown", "not_probed", "elsewhere")
    return swarm.phase.value if is_unknown else swarm.observed


def _busy(serving: Sequence[ReplicaSnapshot]) -> tuple[str, str, str]:
    """Running requests, waiting requests, and tokens per second of the serving replicas."""
    return (
        number(total(replica.requests_running for replica in serving)),
        number(total(replica.requests_waiting for replica in serving)),
        number(total(replica.tokens_per_s for replica in serving)),
    )


def _where(swarm: SwarmSnapshot, now: datetime) -> str:
    where = swarm.whereabouts
    if where is None or not where.elsewhere:
        return ""
    known = "" if where.known_at is None else clock_time((now - where.known_at).total_seconds())
    return f", {where.kind} {where.name}: not asked from here, known {known} ago"


def replica_row(replica: ReplicaSnapshot) -> tuple[str, ...]:
    """A row of the table of replicas: the cells of `REPLICA_COLUMNS`."""
    return (
        str(replica.index),
        f"{replica.state.value} (stale)" if replica.stale else replica.state.value,
        number(replica.requests_running) + _age(replica),
        number(replica.requests_waiting),
        number(replica.tokens_per_s),
        _NONE if replica.kv_cache_usage is None else f"{replica.kv_cache_usage:.0%}",
        str(replica.restarts),
        replica.reason or replica.node or "",
    )


def _age(replica: ReplicaSnapshot) -> str:
    """The age of an engine's figures, if they are not live; it follows the first of them."""
    is_old = replica.old_figures_s is not None and replica.requests_running is not None
    return f" ({replica.old_figures_s:.0f} s ago)" if is_old else ""


def job_row(job: JobSnapshot) -> tuple[str, ...]:
    """A row of the table of jobs: the cells of `JOB_COLUMNS`."""
    total_rows = "?" if job.rows_total is None else str(job.rows_total)
    return (
        job.external_id or job.name,
        f"{job.status.value}{_elsewhere(job)}{_silence(job)}",
        f"{job.rows_done}/{total_rows}",
        str(job.rows_failed),
        _NONE if job.rows_per_s is None or job.status.final else f"{job.rows_per_s:.1f}",
        _NONE if job.time_left is None else str(job.time_left),
        number(job.prompt_tokens + job.completion_tokens),
        _incomplete(job),
    )


def _silence(job: JobSnapshot) -> str:
    """The age of a job's figures, if they are not live."""
    return "" if job.old_figures_s is None else f" ({clock_time(job.old_figures_s)} ago)"


def _incomplete(job: JobSnapshot) -> str:
    """The counts of incomplete answers by verdict. Failed rows have a column of their own."""
    left_out = (ReplyVerdict.COMPLETE, ReplyVerdict.ERROR)
    counts = {name: rows for name, rows in job.verdicts.items() if rows and name not in left_out}
    return ", ".join(f"{number(counts[name])} {name.value}" for name in sorted(counts)) or _NONE


def _elsewhere(job: JobSnapshot) -> str:
    where = job.whereabouts
    return f" on {where.name}" if where is not None and where.elsewhere else ""


def failure_lines(job: JobSnapshot, groups: Sequence[FailureGroup], most: int = 4) -> list[str]:
    """The lines below the tables about the chosen job: its message and its failures."""
    lines = [f"{job.job_id}: {job.message}"] if job.message else []
    for group in groups[:most]:
        status = "" if group.status is None else f"{group.status} "
        message = " ".join(group.example_message.split())[:_MESSAGE_CHARACTERS]
        lines.append(f"{group.rows} x {status}{message} (row {group.example_row})")
    if len(groups) > most:
        rest = sum(group.rows for group in groups[most:])
        lines.append(f"{rest} more of {quantity(len(groups) - most, 'other kind')}")
    return lines or [f"{job.job_id}: no failed rows"]


def total(values: Iterable[float | None]) -> float | None:
    """The sum of the known values; None if no value is known."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def number(value: float | None) -> str:
    """A count in short form: 950, 12.3k, 4.5M."""
    if value is None:
        return _NONE
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            return f"{value / (1e3 if unit == 'k' else size):.1f}{unit}"
    return f"{value:.0f}"
